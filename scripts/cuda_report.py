#!/usr/bin/env python3
"""Compile every kernels/cuda/*.cu for sm_80 and sm_90 and keep what ptxas says of them in kernels/cuda/registers.txt.

Standard library only; nvcc is the one in NVCC, on PATH or in CUDA_HOME (`scripts/cuda_toolkit.py --print-env` sets them).
`--check` writes nothing and fails if the report would differ, if a function spills registers to memory, or if nvcc warns.
Another version of nvcc than the report's gives other numbers; then only spills and warnings are checked, and it says so.
"""

import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCES = os.path.join(ROOT, "kernels", "cuda")
REPORT = os.path.join(SOURCES, "registers.txt")
ARCHITECTURES = ("sm_80", "sm_90")
# As kernels/build.rs compiles them, with ptxas asked to speak.
FLAGS = ["-cubin", "-O3", "-std=c++17", "--fmad=true", "-lineinfo", "-Xptxas", "-v"]
WARNING = re.compile(r"\bwarning\b ?[#:]", re.IGNORECASE)
COLUMNS = "{:<12} {:<40} {:<6} {:>9} {:>7} {:>6} {:>7} {:>7}"
HEADINGS = ("module", "kernel", "arch", "registers", "shared", "stack", "stored", "loaded")


def nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    for place in (os.environ.get("NVCC"), shutil.which("nvcc"), os.path.join(home, "bin", "nvcc")):
        if place and os.path.exists(place):
            return place
    sys.exit("cuda_report: no nvcc; run `make cuda-check`, or set NVCC or CUDA_HOME")


def version_of(compiler):
    said = subprocess.run([compiler, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = re.search(r"\bV(\d+\.\d+\.\d+)", said)
    return found[1] if found else "unknown"


def compile_one(compiler, source, arch, into):
    """(what nvcc and ptxas said, whether it compiled)"""
    folder = os.path.join(into, arch)
    os.makedirs(folder, exist_ok=True)
    name = os.path.splitext(os.path.basename(source))[0]
    done = subprocess.run([compiler, f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}", *FLAGS, "-o",
                           os.path.join(folder, name + ".cubin"), os.path.relpath(source, ROOT)],
                          cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout, done.returncode == 0


def kernels_of(said):
    """Each function that ptxas speaks of: name -> its numbers. A device function that was not inlined has no registers
    of its own; it is kept if it has a stack or spills."""
    found, current = {}, None
    for line in said.splitlines():
        if match := re.search(r"Function properties for '?([\w$.]+)'?", line):
            current = found.setdefault(match[1], dict.fromkeys(("registers", "shared", "stack", "stored", "loaded"), 0))
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            current.update(stack=int(match[1]), stored=int(match[2]), loaded=int(match[3]))
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            current.update(registers=int(match[1]), shared=int(shared[1]) if shared else 0)
    return {name: numbers for name, numbers in found.items() if any(numbers.values())}


def main():
    parser = argparse.ArgumentParser(description="Report registers, shared memory and spills of every CUDA kernel.")
    parser.add_argument("--check", action="store_true", help="compare with the kept report, and fail on a spill")
    parser.add_argument("--into", default=os.path.join(ROOT, "target", "cuda", "cubins"), metavar="FOLDER",
                        help="where the cubins go (default: target/cuda/cubins)")
    options = parser.parse_args()
    sources = sorted(os.path.join(SOURCES, entry) for entry in os.listdir(SOURCES) if entry.endswith(".cu")) \
        if os.path.isdir(SOURCES) else []
    if not sources:
        print("    no kernels in kernels/cuda")
        return
    compiler = nvcc()
    version = version_of(compiler)
    work = [(source, arch) for source in sources for arch in ARCHITECTURES]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        results = list(pool.map(lambda item: compile_one(compiler, *item, options.into), work))

    rows, faults = [], []
    for (source, arch), (said, compiled) in zip(work, results):
        module = os.path.splitext(os.path.basename(source))[0]
        if not compiled:
            faults.append(f"{module}.cu does not compile for {arch}:\n{said.rstrip()}")
            continue
        faults += [f"{module}.cu for {arch}: {line.strip()}" for line in said.splitlines() if WARNING.search(line)]
        for name, numbers in kernels_of(said).items():
            rows.append((module, name, arch, *numbers.values()))
            if numbers["stored"] or numbers["loaded"]:
                faults.append(f"{name} of {module}.cu spills for {arch}: {numbers['stored']} bytes stored, "
                              f"{numbers['loaded']} loaded")
    lines = [f"# What ptxas of nvcc {version} says of each kernel, by scripts/cuda_report.py. Bytes of shared memory are",
             "# the static ones, of stack per thread; `stored` and `loaded` are bytes of registers spilled to memory.",
             COLUMNS.format(*HEADINGS)]
    lines += [COLUMNS.format(*row) for row in sorted(rows)]
    made = "\n".join(line.rstrip() for line in lines) + "\n"

    try:
        with open(REPORT, encoding="utf-8") as file:
            kept = file.read()
    except FileNotFoundError:
        kept = ""
    if not options.check:
        if not any("does not compile" in fault for fault in faults) and made != kept:
            with open(REPORT, "w", encoding="utf-8") as file:
                file.write(made)
    elif f"nvcc {version} " not in kept and kept:
        print(f"    nvcc is {version}, not the report's: its numbers are not compared")
    elif made != kept:
        diff = difflib.unified_diff(kept.splitlines(), made.splitlines(), "kept", "now", lineterm="", n=0)
        faults.append("the report differs; run scripts/cuda_report.py and commit it:\n" + "\n".join(diff))
    for fault in faults:
        print(f"cuda_report: {fault}", file=sys.stderr)
    if faults:
        sys.exit(1)
    most = max(rows, key=lambda row: row[3])
    print(f"    {len(sources)} files, {len({row[:2] for row in rows})} kernels for {' and '.join(ARCHITECTURES)}: "
          f"no spills, at most {most[3]} registers ({most[1]}, {most[2]})")


if __name__ == "__main__":
    main()
