"""scripts/cuda_toolkit.py with two small wheels in place of CUDA's, and what scripts/cuda_report.py reads."""

import base64
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile


def wheel(folder, name, members):
    """A wheel as pip wants it, with the members below nvidia/cu13; its line for cuda_wheels.txt."""
    stem = f"{name.replace('-', '_')}-1.0"
    files = {f"nvidia/cu13/{path}": content for path, content in members.items()}
    files |= {f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
              f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
              f"{stem}.dist-info/License.txt": b"terms\n"}
    record = "".join(f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip('=')},"
                     f"{len(content)}\n" for path, content in files.items())
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
        archive.writestr(f"{stem}.dist-info/RECORD", record + f"{stem}.dist-info/RECORD,,\n")
    return f"{name}==1.0 \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def nvcc(release):
    return f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n".encode()


class Place:
    """A folder with wheels, their pins, and where the toolkit goes."""

    def __init__(self, world, folder):
        self.world, self.folder = world, pathlib.Path(folder)
        self.home, self.wheels, self.pins = self.folder / "weir/cuda", self.folder / "wheels", self.folder / "pins.txt"
        self.wheels.mkdir()
        self.compiler = wheel(self.wheels, "tiny-compiler", {"bin/nvcc": nvcc("13.0"), "include/a.h": b"int a;\n"})
        self.library = wheel(self.wheels, "tiny-library", {"lib/libtiny.so.13": b"tiny",
                                                               "lib/libtiny.alt.so.13": b"no"})
        self.pin(self.compiler, self.library)

    def pin(self, *lines):
        self.pins.write_text("# pins\n" + "".join(lines), encoding="utf-8")

    def run(self, *arguments, both=True, **environment):
        """Run the script; `both` counts both wheels as the compiler's."""
        names = ("tiny-compiler", "tiny-library") if both else ("tiny-compiler",)
        program = f"""
import sys
sys.path.insert(0, {str(self.world.root / 'scripts')!r})
sys.argv = ["cuda_toolkit.py", *{list(arguments)!r}]
import cuda_toolkit as t
t.HOME, t.PARTIAL, t.WHEELS = {str(self.home)!r}, {str(self.home) + '.partial'!r}, {str(self.pins)!r}
t.COMPILE, t.make_stub = {names!r}, lambda *_: None
t.main()
"""
        others = ("PIP_", "CUDA", "PYTHONPATH")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        kept |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull}
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False,
                              env=kept | environment)


def one_line(done, *words):
    assert done.returncode == 1, done
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and all(word in lines[0] for word in words), done.stderr


def test_a_toolkit_is_made_of_wheels_once(world):
    with tempfile.TemporaryDirectory() as folder:
        place = Place(world, folder)
        one_line(place.run("--print-env"), "no toolkit is set up")
        done = place.run("--compile")
        assert done.returncode == 0 and not done.stderr, done
        assert os.access(place.home / "bin/nvcc", os.X_OK)
        assert (place.home / "lib64/libtiny.so").read_bytes() == b"tiny"
        assert not (place.home / "lib/libtiny.alt.so.13").exists()
        assert (place.home / "licenses/tiny-compiler.txt").read_bytes() == b"terms\n"
        # Nothing is fetched again: there is nothing to fetch it from.
        again = place.run("--compile", PIP_FIND_LINKS=os.devnull)
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
        exports = place.run("--print-env").stdout
        assert f"export NVCC={place.home}/bin/nvcc\n" in exports and "export CUDARC_CUDA_VERSION=13000\n" in exports


def test_a_broken_wheel_leaves_no_toolkit_and_the_next_run_goes_on(world):
    with tempfile.TemporaryDirectory() as folder:
        place = Place(world, folder)
        place.pin(place.compiler, "tiny-library==1.0 --hash=sha256:" + "0" * 64 + "\n")
        one_line(place.run("--compile"), "tiny-library==1.0", "not the wheel")
        assert not place.home.exists()
        one_line(place.run("--print-env"), "no toolkit is set up")
        # What was whole is kept: its wheel is not asked for again.
        place.pin(place.compiler, place.library)
        (place.wheels / "tiny_compiler-1.0-py3-none-any.whl").unlink()
        done = place.run("--compile")
        assert done.returncode == 0 and "tiny-compiler" not in done.stdout, done
        assert (place.home / "bin/nvcc").exists() and (place.home / "lib/libtiny.so").exists()


def test_the_compiler_grows_into_all_of_it(world):
    with tempfile.TemporaryDirectory() as folder:
        place = Place(world, folder)
        assert place.run("--compile", both=False).returncode == 0
        assert not (place.home / "lib/libtiny.so").exists()
        (place.wheels / "tiny_compiler-1.0-py3-none-any.whl").unlink()
        assert place.run("--link", both=False).returncode == 0
        assert (place.home / "bin/nvcc").exists() and (place.home / "lib/libtiny.so").exists()


def test_another_pin_leaves_nothing_of_the_old_tree(world):
    with tempfile.TemporaryDirectory() as folder:
        place = Place(world, folder)
        assert place.run("--compile").returncode == 0
        other = wheel(place.wheels, "tiny-compiler", {"bin/nvcc": nvcc("13.0"), "include/b.h": b"int b;\n"})
        place.pin(other, place.library)
        assert place.run("--compile").returncode == 0
        assert sorted(path.name for path in (place.home / "include").iterdir()) == ["b.h"]


def test_the_users_own_toolkit_is_used_if_it_is_new_enough(world):
    with tempfile.TemporaryDirectory() as folder:
        place = Place(world, folder)
        own = place.folder / "own"
        (own / "bin").mkdir(parents=True)
        (own / "bin/nvcc").write_bytes(nvcc("13.1"))
        (own / "bin/nvcc").chmod(0o755)
        done = place.run("--compile", CUDA_HOME=str(own))
        assert done.returncode == 0 and f"CUDA 13.1 of CUDA_HOME ({own}) is used" in done.stdout, done
        assert not place.home.exists()
        assert "export CUDARC_CUDA_VERSION=13010\n" in place.run("--print-env", CUDA_HOME=str(own)).stdout
        # Without the libraries it cannot link.
        assert "without libcudart.so" in place.run("--link", CUDA_HOME=str(own)).stdout
        assert place.home.exists()
        (own / "bin/nvcc").write_bytes(nvcc("12.9"))
        assert "CUDA 12.9, older than 13.0" in place.run("--compile", CUDA_HOME=str(own)).stdout


def imported(world, name):
    sys.path.insert(0, str(world.root / "scripts"))
    try:
        return __import__(name)
    finally:
        sys.path.pop(0)


def test_the_stub_has_the_names_of_one_version(world):
    text = """
pub unsafe fn cuInit(Flags: ::core::ffi::c_uint) -> CUresult {
#[cfg(any(feature = "cuda-12090", feature = "cuda-13000"))]
pub unsafe fn cuDeviceOld(x: *mut CUdevice) -> CUresult {
#[cfg(any(feature = "cuda-13010", feature = "cuda-13020"))]
pub unsafe fn cuDeviceNew(x: *mut CUdevice) -> CUresult {
#[cfg(feature = "dynamic-loading")]
pub unsafe fn culib() -> &'static ::libloading::Library {
"""
    names = imported(world, "cuda_toolkit").driver_names
    assert names(text, (13, 0)) == ["cuDeviceOld", "cuInit"]
    assert names(text, (13, 1)) == ["cuDeviceNew", "cuInit"]


def test_the_report_reads_registers_and_spills(world):
    said = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'norm_f32' for 'sm_90'
ptxas info    : Function properties for norm_f32
    264 bytes stack frame, 312 bytes spill stores, 316 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 264 bytes cumulative stack size, 128 bytes smem
ptxas info    : Function properties for _Z1ff
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""
    found = imported(world, "cuda_report").kernels_of(said)
    assert found == {"norm_f32": {"registers": 32, "shared": 128, "stack": 264, "stored": 312, "loaded": 316}}
