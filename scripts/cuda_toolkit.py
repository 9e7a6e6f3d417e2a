#!/usr/bin/env python3
"""Set up CUDA 13.0 in .weir/cuda, on a machine that has neither a GPU nor CUDA.

Python 3.9's standard library and pip only. `pip download` is the transport: it honours the user's own index settings
and checks each wheel against scripts/cuda_wheels.txt; nothing of a package is installed. The wheels are unzipped into
one tree that is a CUDA_HOME.

`--compile` takes what compiles kernels (about 105 MB to fetch). `--link` takes all of it (about 680 MB), and makes
`lib/stubs/libcuda.so`: the driver's library is in no package, so a program that links it needs something to link with.
The stub exports the names that cudarc declares and nothing else, and calling one aborts. Its soname is libcuda.so.1 but
no file of that name is made, so no loader finds it by accident; it is never shipped.

The tree is made in `.weir/cuda.partial`, wheel by wheel, and renamed when it is whole: an interrupted run goes on where
it was. If CUDA_HOME or CUDA_PATH names a toolkit of 13.0 or later, that one is used and nothing is fetched.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

from fetch_models import Failure, reason, say, shown

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HOME = os.path.join(ROOT, ".weir", "cuda")
PARTIAL = HOME + ".partial"
# Beside a toolkit that is not ours, which we do not write into.
STUBS_BESIDE = os.path.join(ROOT, ".weir", "cuda-stubs")
WHEELS = os.path.join(ROOT, "scripts", "cuda_wheels.txt")
STAMP = ".toolkit"  # one line for each wheel that is in the tree
COMPILE = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime", "nvidia-cuda-cccl")
# Bytes that the trees take, with room for the largest wheel beside them.
ROOM = {"compile": 500 << 20, "link": 1900 << 20}
# In the wheels, but nothing here links them.
UNUSED = re.compile(r"lib/(lib[^/]*\.alt\.so|libnvblas\.)")
LINKED = ("libcudart.so", "libnvrtc.so", "libcurand.so", "libcublas.so", "libcublasLt.so")
OLDEST = (13, 0)
# The newest that cudarc 0.19.10 has bindings for; a newer toolkit still has what they name.
NEWEST = (13, 4)


def wheels(which):
    """The wheels of a set as {name==version: its lines of hashes}, in the file's order."""
    with open(WHEELS, encoding="utf-8") as file:
        text = re.sub(r"\s*\\\n\s*", " ", file.read())
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            pin, hashes = line.split(" ", 1)
            if which == "link" or pin.split("==")[0] in COMPILE:
                found[pin] = hashes
    return found


def stamped(folder):
    """The wheels whose every file is in the folder, as their lines in the stamp."""
    try:
        with open(os.path.join(folder, STAMP), encoding="utf-8") as file:
            # A line without its end was being written when the machine stopped.
            return {line.rstrip("\n") for line in file if line.endswith("\n")}
    except FileNotFoundError:
        return set()


def line_of(pin, hashes):
    return f"{os.uname().machine} {pin} {hashes}"


def missing(folder, which):
    have = stamped(folder)
    return [(pin, hashes) for pin, hashes in wheels(which).items() if line_of(pin, hashes) not in have]


def version_of(home):
    """(major, minor) of a toolkit's nvcc, or None."""
    try:
        said = subprocess.run([os.path.join(home, "bin", "nvcc"), "--version"], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"release (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else None


def library_folders(home):
    """Where a toolkit keeps its libraries, whichever machine and packaging it is for."""
    places = ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")
    return [folder for folder in (os.path.join(home, place) for place in places) if os.path.isdir(folder)]


def holds(home, library):
    return any(os.path.exists(os.path.join(folder, library)) for folder in library_folders(home))


def given(which):
    """The user's own toolkit and a line about it; (None, why it is not used) or (None, None) if none is named."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(name)
        if not home or os.path.realpath(home) == os.path.realpath(HOME):
            continue
        version = version_of(home)
        if version is None:
            return None, f"{name} is {home}, which has no nvcc that runs: setting up another"
        number = f"{version[0]}.{version[1]}"
        if version < OLDEST:
            return None, f"{name} is CUDA {number}, older than 13.0: setting up another"
        lacks = [library for library in LINKED if which == "link" and not holds(home, library)]
        if lacks:
            return None, f"{name} is CUDA {number} without {lacks[0]}: setting up another"
        return os.path.abspath(home), f"CUDA {number} of {name} ({home}) is used"
    return None, None


def download(pin, hashes, into):
    """Fetch one wheel into the folder; pip compares its sha256 with the pinned ones."""
    import importlib.util

    if importlib.util.find_spec("pip") is None:
        raise Failure(f"{sys.executable} has no pip, which fetches CUDA: install it (Debian and Ubuntu: apt install "
                      "python3-pip) and run this again")
    shutil.rmtree(into, ignore_errors=True)
    os.makedirs(into)
    wanted = os.path.join(into, "wanted.txt")
    with open(wanted, "w", encoding="utf-8") as file:
        file.write(f"{pin} {hashes}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes",
               "--no-cache-dir", "--disable-pip-version-check", "--no-input", "--retries", "2", "--dest", into,
               "--requirement", wanted]
    if not sys.stdout.isatty():
        command.insert(4, "--quiet")
    done = subprocess.run(command, env=dict(os.environ, TMPDIR=into, PIP_REQUIRE_VIRTUALENV="0"), check=False,
                          stdout=None if sys.stdout.isatty() else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                          errors="replace")
    if done.returncode != 0:
        if "DO NOT MATCH THE HASHES" in done.stderr:
            raise Failure(f"{pin} from the index is not the wheel that scripts/cuda_wheels.txt pins")
        raise Failure(reason("pip", pin, done.stderr, into))
    found = [entry for entry in os.listdir(into) if entry.endswith(".whl")]
    if len(found) != 1:
        raise Failure(f"pip left {len(found)} wheels for {pin}, want one")
    return os.path.join(into, found[0])


def unpack(wheel, name, tree):
    """Unzip what is below nvidia/cu13 into the tree, and the licence into its licenses/."""
    import zipfile

    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            path = member.filename
            if path.startswith("nvidia/cu13/"):
                path = path[len("nvidia/cu13/"):]
            elif path.endswith("License.txt"):
                path = f"licenses/{name}.txt"
            else:
                continue
            if member.is_dir() or UNUSED.match(path):
                continue
            if ".." in path.split("/") or path.startswith("/"):
                raise Failure(f"{name} holds a path outside its folder: {path}")
            target = os.path.join(tree, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with archive.open(member) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            if re.match(r"(nvvm/)?bin/[^/]+$", path):
                os.chmod(target, 0o755)


def link_names(tree):
    """Wheels carry libX.so.13 only; the linker asks for libX.so, and some build scripts for lib64."""
    libraries = os.path.join(tree, "lib")
    os.makedirs(libraries, exist_ok=True)
    for entry in sorted(os.listdir(libraries)):
        found = re.match(r"(lib[\w-]+\.so)\.\d+", entry)
        if found and not os.path.lexists(os.path.join(libraries, found[1])):
            os.symlink(entry, os.path.join(libraries, found[1]))
    if not os.path.lexists(os.path.join(tree, "lib64")):
        os.symlink("lib", os.path.join(tree, "lib64"))


def set_up(which):
    """Make .weir/cuda hold the set. What was there, or was begun, is kept."""
    import fcntl

    os.makedirs(os.path.dirname(HOME), exist_ok=True)
    with open(HOME + ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not missing(HOME, which):
            return
        started = time.monotonic()
        if os.path.isdir(HOME):
            shutil.rmtree(PARTIAL, ignore_errors=True)
            os.rename(HOME, PARTIAL)
        # Wheels of other versions or of another machine leave files behind that no later wheel overwrites.
        if stamped(PARTIAL) - {line_of(*wheel) for wheel in wheels("link").items()}:
            shutil.rmtree(PARTIAL)
        os.makedirs(PARTIAL, exist_ok=True)
        need, free = ROOM[which], shutil.disk_usage(PARTIAL).free
        if free < need:
            raise Failure(f"the disk is nearly full: CUDA needs {need >> 20} MB in .weir, {free >> 20} MB are free")
        fetch = os.path.join(PARTIAL, ".wheel")
        for pin, hashes in missing(PARTIAL, which):
            at = time.monotonic()
            wheel = download(pin, hashes, fetch)
            size = os.path.getsize(wheel)
            unpack(wheel, pin.split("==")[0], PARTIAL)
            shutil.rmtree(fetch)
            with open(os.path.join(PARTIAL, STAMP), "a", encoding="utf-8") as stamp:
                stamp.write(line_of(pin, hashes) + "\n")
            say(f"    {pin.replace('==', ' ')}: {size / 1e6:.0f} MB, {time.monotonic() - at:.1f} s")
        link_names(PARTIAL)
        os.rename(PARTIAL, HOME)
        say(f"    {shown(HOME)}: sha256 verified, {time.monotonic() - started:.1f} s")


def bindings(version):
    """The source text of the cudarc that Cargo.lock pins, and its version's number."""
    cargo = os.environ.get("CARGO", "cargo")
    import json

    # All features: cudarc is optional.
    done = subprocess.run([cargo, "metadata", "--locked", "--all-features", "--format-version", "1"], cwd=ROOT,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise Failure(f"cargo metadata: {lines[-1] if lines else 'failed without a word'}")
    for package in json.loads(done.stdout)["packages"]:
        if package["name"] == "cudarc":
            folder = os.path.dirname(package["manifest_path"])
            with open(os.path.join(folder, "src", "driver", "sys", "mod.rs"), encoding="utf-8") as file:
                return file.read(), package["version"]
    raise Failure("cudarc is not among the packages that Cargo.lock names")


def driver_names(text, version):
    """The driver's functions that the bindings declare for a version of CUDA.

    They are `pub unsafe fn cuX(`; one that is not in every version has a cfg line above it that lists those it is in.
    """
    feature = f'"cuda-{version[0]}0{version[1]}0"'
    found = re.findall(r"^(?:#\[cfg\(any\(([^\n]*)\)\)\]\n)?pub unsafe fn (cu[A-Z]\w*)\(", text, re.MULTILINE)
    return sorted({name for condition, name in found if not condition or feature in condition})


def make_stub(home, version):
    """A library to link with in the place of the driver's, unless the toolkit has one; the folder it is in."""
    for folder in library_folders(home):
        if os.path.exists(os.path.join(folder, "stubs", "libcuda.so")) and home != HOME:
            return
    into = stubs_of(home)
    mark = os.path.join(into, ".made")
    text, number = bindings(version)
    names = driver_names(text, version)
    want = f"cudarc {number}, CUDA {version[0]}.{version[1]}, {len(names)} names\n"
    library = os.path.join(into, "libcuda.so")
    if os.path.exists(library) and os.path.exists(mark):
        with open(mark, encoding="utf-8") as file:
            if file.read() == want:
                return
    if len(names) < 100:  # CUDA 13.0 has 445
        raise Failure(f"only {len(names)} names were found in cudarc {number}: its source is written differently now")
    os.makedirs(into, exist_ok=True)
    source, made = os.path.join(into, "stub.c"), library + ".new"
    with open(source, "w", encoding="utf-8") as file:
        file.write("/* Made by scripts/cuda_toolkit.py: to link with, never to run or to ship. */\n"
                   "extern int dprintf(int, const char *, ...);\nextern void abort(void);\n"
                   "static void refuse(const char *name) {\n"
                   "    dprintf(2, \"%s: this libcuda.so is a stub to link with, not the driver\\n\", name);\n"
                   "    abort();\n}\n")
        file.writelines(f"void {name}(void) {{ refuse(\"{name}\"); }}\n" for name in names)
    done = subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-fno-builtin",
                           "-Wl,-soname,libcuda.so.1", "-o", made, source],
                          stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"the stub of libcuda does not compile: {done.stderr.strip()}")
    os.rename(made, library)
    os.remove(source)
    with open(mark, "w", encoding="utf-8") as file:
        file.write(want)
    say(f"    {shown(library)}: {len(names)} names that cudarc {number} declares for CUDA {version[0]}.{version[1]}")


def stubs_of(home):
    return os.path.join(HOME, "lib", "stubs") if home == HOME else STUBS_BESIDE


def exports(home, version):
    """Lines for `eval`. CUDA_COMPUTE_CAP stays what the user set."""
    quote = shlex.quote
    folders = library_folders(home)
    stubs = [stubs_of(home)] + [os.path.join(folder, "stubs") for folder in folders]
    linked = folders + list(dict.fromkeys(folder for folder in stubs if os.path.isdir(folder)))
    binding = min(version, NEWEST)
    return "".join(f"export {line}\n" for line in (
        f"CUDA_HOME={quote(home)}",
        f"CUDA_PATH={quote(home)}",
        f"NVCC={quote(os.path.join(home, 'bin', 'nvcc'))}",
        f"CUDARC_CUDA_VERSION={binding[0]}0{binding[1]}0",
        "CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}",
        f"PATH={quote(os.path.join(home, 'bin'))}:$PATH",
        f"LIBRARY_PATH={quote(':'.join(linked))}${{LIBRARY_PATH:+:$LIBRARY_PATH}}",
    ))


def main():
    parser = argparse.ArgumentParser(description="Set up CUDA 13.0 in .weir/cuda from wheels, each checked against its "
                                                 "sha256 in scripts/cuda_wheels.txt.")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--compile", action="store_true", help="what compiles kernels, about 105 MB to fetch")
    group.add_argument("--link", action="store_true", help="all that weir-gpu is linked with, about 680 MB")
    group.add_argument("--print-env", action="store_true", help="print what to `eval` before cargo, and set nothing up")
    options = parser.parse_args()
    which = "link" if options.link else "compile"
    try:
        home, word = given(which)
        if options.print_env:
            if home is None and missing(HOME, which):
                raise Failure("no toolkit is set up; run this with --compile or --link first")
            home = home or HOME
            sys.stdout.write(exports(home, version_of(home) or OLDEST))
            return
        if word:
            say(f"    {word}")
        if home is None:
            if missing(HOME, which):
                say(f"==> CUDA 13.0, {'all of it' if options.link else 'the compiler'}, into {shown(HOME)}")
                set_up(which)
            home = HOME
        if options.link:
            make_stub(home, version_of(home) or OLDEST)
    except Failure as failure:
        sys.exit(f"cuda_toolkit: {failure}")
    except OSError as error:
        where = f" ({shown(error.filename)})" if error.filename else ""
        sys.exit(f"cuda_toolkit: {error.strerror or error}{where}")
    except KeyboardInterrupt:
        sys.exit("cuda_toolkit: interrupted; run this again to go on")


if __name__ == "__main__":
    main()
