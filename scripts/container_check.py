#!/usr/bin/env python3
"""Check what of Dockerfile.cuda and compose.cuda.yaml can be checked without a container engine: that stages, variables and
copied files exist, that what the build reads is not ignored, and that both files agree on ports. Standard library only.
"""

import fnmatch
import json
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Set by the builder without a value in the file, once a stage declares them.
GIVEN = {"TARGETARCH", "TARGETOS", "TARGETPLATFORM", "BUILDPLATFORM", "PATH"}
NAME = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)(:-)?")


def text_of(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def instructions(text):
    """(instruction, its words) of each, with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def ignored(path, patterns):
    """Whether .dockerignore keeps the file out of the context: it matches, or a folder above it does."""
    parts = path.split("/")
    heads = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return any(fnmatch.fnmatch(head, pattern.replace("**/", "*")) or fnmatch.fnmatch(head, pattern.replace("**/", ""))
               for head in heads for pattern in patterns)


def faults_of(text, patterns):
    faults, stages, known, before = [], set(), set(), set()
    for name, rest in instructions(text):
        if name == "FROM":
            words = rest.split()
            faults += [f"FROM uses {used}, which no ARG before it declares" for used, _ in NAME.findall(words[0])
                       if used not in before]
            if len(words) == 3:
                stages.add(words[2])
            known = set(GIVEN - {"TARGETARCH", "TARGETOS", "TARGETPLATFORM", "BUILDPLATFORM"})
        elif name == "ARG":
            declared = rest.split("=")[0]
            (known if stages or known else before).add(declared)
            if declared not in GIVEN and "=" not in rest and declared not in before:
                faults.append(f"ARG {declared} has no default")
        elif name == "COPY":
            words = rest.split()
            sources = [word for word in words[:-1] if not word.startswith("--")]
            stage = next((word[len("--from="):] for word in words if word.startswith("--from=")), None)
            if stage is not None and stage not in stages:
                faults.append(f"COPY --from={stage}, which is no stage above")
            if stage is None:
                faults += [f"COPY {source}, which is not there" for source in sources
                           if not os.path.exists(os.path.join(ROOT, source))]
                faults += [f"COPY {source}, which .dockerignore leaves out" for source in sources
                           if source != "." and ignored(source, patterns)]
        else:
            # A shell's own variables are its own business; those of instructions must be declared.
            shell = name in ("RUN", "CMD", "HEALTHCHECK", "ENTRYPOINT")
            checked = " ".join(re.findall(r"--mount=\S+", rest)) if shell else rest
            faults += [f"{name} uses {used}, which the stage does not declare" for used, _ in NAME.findall(checked)
                       if used not in known]
            if name == "ENV":
                known |= {word.split("=")[0] for word in re.findall(r"[A-Za-z_]\w*=", rest)}
            match = re.search(r"\bCMD (\[.*)", f"{name} {rest}") or re.match(r"(\[.*)", rest)
            if name in ("CMD", "ENTRYPOINT", "HEALTHCHECK", "VOLUME") and match:
                try:
                    json.loads(match[1])
                except ValueError:
                    faults.append(f"{name} {match[1]} is not a JSON list")
    return faults


def main():
    docker, compose = text_of("Dockerfile.cuda"), text_of("compose.cuda.yaml")
    patterns = [line for line in text_of(".dockerignore").splitlines() if line and not line.startswith("#")]
    faults = faults_of(docker, patterns)
    # What make and cargo read must be in the context.
    members = re.search(r"^members = \[(.*)\]", text_of("Cargo.toml"), re.MULTILINE)
    needed = [f"{member}/Cargo.toml" for member in re.findall(r'"([^"]+)"', members[1] if members else "")]
    needed += ["Cargo.toml", "Cargo.lock", "Makefile", "kernels/build.rs", "scripts/stage", "scripts/cuda_place",
               "scripts/cuda_toolkit.py", "scripts/cuda_wheels.txt"]
    faults += [f".dockerignore leaves out {path}, which the build reads" for path in needed if ignored(path, patterns)]
    faults += [f"{path} is not there" for path in needed if not os.path.exists(os.path.join(ROOT, path))]
    exposed = set(re.search(r"^EXPOSE (.*)$", docker, re.MULTILINE)[1].split())
    published = set(re.findall(r'^\s+- "(?:127\.0\.0\.1:)?\d+:(\d+)"$', compose, re.MULTILINE))
    if exposed != published:
        faults.append(f"Dockerfile.cuda exposes {sorted(exposed)}, compose.cuda.yaml publishes {sorted(published)}")
    for port in ("8001", "8002"):
        if not re.search(rf'^\s+- "127\.0\.0\.1:\d+:{port}"$', compose, re.MULTILINE):
            faults.append(f"compose.cuda.yaml publishes {port} on other addresses than this machine's own")
    for fault in faults:
        print(f"container_check: {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
