"""Where the parts run: the executables, CUDA's libraries, the scratch folder, and the models made there."""

import ctypes
import dataclasses
import glob
import json
import lzma
import os
import pathlib
import shutil
import site
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PACKED = ROOT / "bench/gpu/bin"
BUILT = ROOT / "target/release"
# What weir-gpu needs beside the driver's libcuda.so.1.
LIBRARIES = ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libnvrtc.so.13")
# Bytes that must be free where models are made: the large one has 16 GB.
SCRATCH_BYTES = 24 << 30


@dataclasses.dataclass
class Done:
    """A command that ended: `ok`, `timeout` or `failed`."""

    status: str
    output: str = ""
    reason: str = ""
    seconds: float = 0.0


def run(words, seconds, environment=None, allow=(), **more):
    """Run a command for at most so long; its standard output, or why there is none. Statuses in `allow` are no failures."""
    began = time.monotonic()
    process = subprocess.Popen([str(word) for word in words], env=environment, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                               start_new_session=True, **more)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # Its children, too: a server's executor must not run beside the next measurement.
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        return Done("timeout", out, "", time.monotonic() - began)
    took = time.monotonic() - began
    if process.returncode != 0 and process.returncode not in allow:
        said = [line for line in (err or out).splitlines() if line.strip()]
        return Done("failed", out, f"status {process.returncode}: " + " | ".join(said[-3:])[-600:], took)
    return Done("ok", out, "", took)


def lines(output):
    """The JSON lines of an output."""
    return [json.loads(line) for line in (output or "").splitlines() if line.startswith("{")]


class Place:
    """The CPU or a GPU with what is needed to run on it."""

    def __init__(self, weir, gpu, libraries, scratch, device):
        self.weir, self.gpu, self.libraries, self.scratch, self.device = weir, gpu, libraries, scratch, device
        self.temporary = tempfile.TemporaryDirectory(prefix="weir-gpu-bench-")
        self.folder = pathlib.Path(self.temporary.name)

    def environment(self, with_libraries=True):
        """This process's own, without what would change a server, and with CUDA's libraries in reach."""
        left_out = ("WEIR_", "HF_", "PORT")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        folders = dict.fromkeys(str(path.parent) for path in self.libraries.values())
        if folders and with_libraries:
            kept["LD_LIBRARY_PATH"] = ":".join([*folders, *filter(None, [kept.get("LD_LIBRARY_PATH")])])
        return kept | {"HF_HUB_OFFLINE": "1"}

    def probe(self, *words):
        """The words of a probe on this place's device."""
        return [self.gpu if self.device == "cuda" else self.weir, "probe", *words]

    def cpu_probe(self, *words):
        return [self.weir, "probe", *words]

    def model(self, bench, shape, dtype=None, layers=None, seconds=150.0):
        """The folder of a made model, made now unless it is there; None with the reason recorded."""
        name = "-".join(filter(None, [shape, dtype, layers and f"{layers}layers"]))
        folder = self.scratch / name
        if not (folder / "config.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            words = [self.weir, "make-model", "--shape", shape, "--seed", "1", folder]
            words += ["--dtype", dtype] if dtype else []
            words += ["--layers", layers] if layers else []
            began = time.monotonic()
            if bench.run(f"make_model_{name}", words, seconds) is None:
                shutil.rmtree(folder, ignore_errors=True)
                return None
            bench.figure(f"make_model_{name}", time.monotonic() - began, "s", command=" ".join(map(str, words)))
        return folder

    def describe(self):
        print(f"weir      {self.weir}\nweir-gpu  {self.gpu or 'none'}\nscratch   {self.scratch}")
        for name in LIBRARIES if self.device == "cuda" else ():
            print(f"{name:<18}{self.libraries.get(name, 'NOT FOUND')}")

    def close(self):
        self.temporary.cleanup()


def find(dry, scratch):
    """A place, or why there is none. A rehearsal is on the CPU whatever the machine has."""
    scratch = scratch or default_scratch(dry)
    scratch.mkdir(parents=True, exist_ok=True)
    weir = executable("weir", "WEIR")
    if not weir:
        return "there is no weir in target/release, none in bench/gpu/bin, and WEIR names none"
    if dry:
        return Place(weir, None, {}, scratch, "cpu")
    gpu = executable("weir-gpu", "WEIR_GPU")
    if not gpu:
        return "there is no weir-gpu (`make cuda` builds it); --dry-run runs on the CPU"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"there is no NVIDIA driver ({error}); --dry-run runs on the CPU"
    return Place(weir, gpu, libraries(), scratch, "cuda")


def default_scratch(dry):
    """Memory where there is plenty of it, since models are read many times; else the folder for temporary files."""
    memory = pathlib.Path("/dev/shm")
    if not dry and memory.is_dir() and shutil.disk_usage(memory).free > SCRATCH_BYTES:
        return memory / "weir-gpu-bench"
    return pathlib.Path(tempfile.gettempdir()) / ("weir-gpu-bench-dry" if dry else "weir-gpu-bench")


def executable(name, variable):
    """The one a variable names, the one built here, or the one carried here, which is unpacked."""
    named = os.environ.get(variable)
    if named:
        return pathlib.Path(named).resolve()
    if (BUILT / name).exists():
        return BUILT / name
    for packed, unpack in ((PACKED / f"{name}.xz", unpack_xz), (PACKED / f"{name}.zst", unpack_zst)):
        if packed.exists():
            # Into one folder, since weir looks for weir-gpu beside itself; not into shared memory, where none may run.
            into = pathlib.Path(tempfile.gettempdir()) / "weir-gpu-bench-bin" / name
            if not into.exists() or into.stat().st_mtime < packed.stat().st_mtime:
                into.parent.mkdir(parents=True, exist_ok=True)
                unpack(packed, into)
                into.chmod(0o755)
            return into
    return None


def unpack_xz(packed, into):
    with lzma.open(packed) as source, open(into, "wb") as target:
        shutil.copyfileobj(source, target)


def unpack_zst(packed, into):
    subprocess.run(["zstd", "--decompress", "--quiet", "--force", packed, "-o", into], check=True)


def libraries():
    """CUDA's run-time libraries: of the toolkit, else of Python's packages, else of the system."""
    folders = [os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/lib64", *sorted(glob.glob("/usr/local/cuda-1*/lib64"))]
    packages = [*sys.path, *site.getsitepackages(), site.getusersitepackages()]
    for base in dict.fromkeys(filter(None, packages)):
        folders += sorted(glob.glob(f"{base}/nvidia/*/lib"))
    folders += ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"]
    found = {}
    for name in LIBRARIES:
        for folder in folders:
            if os.path.exists(os.path.join(folder, name)):
                found[name] = pathlib.Path(folder, name)
                break
    return found
