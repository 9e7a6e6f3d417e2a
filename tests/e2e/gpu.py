"""GPUs seen from `weir`: what it does, and says in one line, where the program that runs them is missing, broken, or fine.

Stand-ins take the place of `weir-gpu`. Who names a GPU exits with code 1 and the line; `auto` serves on the CPU and says it once.
"""

import contextlib
import ctypes
import json
import pathlib
import shutil
import signal
import subprocess
import tempfile

from server import FAKE, Server, clean_environment, free_port, together

H200 = json.dumps({"ordinal": 0, "name": "NVIDIA H200", "compute_capability": "9.0", "memory_bytes": 150754820096})
MODEL = "fake:step=4ms,token=20us"


@contextlib.contextmanager
def folder():
    place = pathlib.Path(tempfile.mkdtemp(prefix="weir-e2e-gpu-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def script(place, text):
    program = place / "weir-gpu"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return program


def without_its_driver(place):
    """A program linked, as `weir-gpu` is, against the driver's library, which is then not there."""
    name = "libcuda.so.1"
    with contextlib.suppress(OSError):
        ctypes.CDLL(name)
        name = "libcuda.so.0"  # this machine has a driver, and no library of that name
    (place / "stub.c").write_text("int cuInit(unsigned flags) { return (int)flags; }\n")
    (place / "main.c").write_text("int cuInit(unsigned); int main(void) { return cuInit(0); }\n")
    for command in (["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "stub.c", "-o", "libcuda.so"],
                    ["cc", "main.c", "-o", "weir-gpu", "-L.", "-lcuda"]):
        subprocess.run(command, cwd=place, check=True, capture_output=True)
    (place / "libcuda.so").unlink()
    return place / "weir-gpu", f"weir-gpu does not start: {name} is not there (no NVIDIA driver on this machine)"


def posing(world, place, executor=None):
    """A program that says it has a GPU; its executor is the CPU's, or the shell words given."""
    executor = executor or f"echo the card is warm >&2; exec {world.weir} executor"
    return script(place, f"""case "$1" in
version) echo 'weir-gpu 0.0.0, compute capability 9.0';;
devices) echo '{H200}';;
executor) [ "$*" = "executor --device 0" ] || exit 9; {executor};;
*) exit 8;;
esac""")


def serve(world, place, *words):
    """`weir serve` that is expected to end by itself."""
    return subprocess.run([world.weir, "serve", MODEL, "--port", str(free_port()), "--metrics", "off", "--admin", "off", *words],
                          cwd=place, env=clean_environment(), capture_output=True, text=True, timeout=120, check=False,
                          stdin=subprocess.DEVNULL)


def told(text):
    """The lines that are neither empty nor only informative."""
    return [line for line in text.splitlines() if line.strip() and " INFO " not in line]


def exits_with_the_line(world, place, program, line):
    ended = serve(world, place, "--devices", "cuda:0", "--gpu-executor", str(program))
    assert ended.returncode == 1, ended
    assert told(ended.stderr) == [f"weir: cuda:0: {line}"], ended.stderr


def one_chat(server):
    reply = server.client().chat.completions.create(
        model=FAKE, messages=[{"role": "user", "content": "Hello"}], max_tokens=4, extra_body={"ignore_eos": True})
    assert reply.usage.completion_tokens == 4, reply


def serves_on_the_cpu_and_says_so(world, program, line, devices="auto", more=""):
    server = Server(world.weir, {FAKE: MODEL}, f'devices = ["{devices}"]\ngpu_executor = "{program}"\n{more}')
    try:
        one_chat(server)
        metrics = server.metrics()
        assert any('device="cpu:0"' in name for name in metrics), metrics
        assert not any('device="cuda' in name for name in metrics), metrics
        # The tenants of these tests may use models that this server has not.
        logged = [line for line in told(server.output()) if "a tenant is allowed a model" not in line]
    finally:
        server.close()
    ending = "models run on the CPU" if devices == "auto" else "serving without it"
    line = f"{devices}: {line}; {ending}"
    # Once in the log, once on standard output; both are in this file.
    assert [line in said for said in logged].count(True) == 2, logged
    assert [said for said in logged if " WARN " in said or " ERROR " in said][1:] == [], logged


def doctor_says(world, place, program, line):
    environment = clean_environment() | {"WEIR_GPU_EXECUTOR": str(program)}
    done = subprocess.run([world.weir, "doctor"], cwd=place, env=environment, capture_output=True, text=True, timeout=120,
                          check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done
    if pathlib.Path("/proc/driver/nvidia").exists():
        return  # it has more to say here
    said = [row for row in done.stdout.splitlines() if "gpu" in row.lower() or "nvidia" in row.lower()]
    assert len(said) == 1 and line in said[0], done.stdout


def all_three(world, place, program, line, doctor=None):
    together(lambda check: check(), [
        lambda: exits_with_the_line(world, place, program, line),
        lambda: serves_on_the_cpu_and_says_so(world, program, line),
        lambda: doctor_says(world, place, program, line if doctor is None else doctor),
    ])


def test_a_program_that_is_not_there(world):
    with folder() as place:
        # Who has neither a driver nor the program lacks the driver first.
        all_three(world, place, place / "weir-gpu", f"there is no {place}/weir-gpu", "no NVIDIA driver on this machine")


def test_a_driver_that_is_not_there(world):
    with folder() as place:
        all_three(world, place, *without_its_driver(place))


def test_a_program_that_talks_nonsense(world):
    with folder() as place:
        all_three(world, place, script(place, "echo '<html>'; echo '<body>'"),
                  "weir-gpu answers what makes no sense: `<html>`")


def test_a_program_that_hangs(world):
    with folder() as place:
        all_three(world, place, script(place, "sleep 600"), "weir-gpu does not answer within 20 s")


def test_a_program_that_complains(world):
    with folder() as place:
        all_three(world, place, script(place, "echo 'CUDA_ERROR_NO_DEVICE: no CUDA-capable device' >&2; exit 1"),
                  "weir-gpu fails: CUDA_ERROR_NO_DEVICE: no CUDA-capable device")


def test_a_gpu_that_is_not_among_those_found(world):
    with folder() as place:
        ended = serve(world, place, "--devices", "cuda:5", "--gpu-executor", str(posing(world, place)))
        line = "weir: cuda:5: it is not among the GPUs that weir-gpu finds, 1 in all"
        assert ended.returncode == 1 and told(ended.stderr) == [line], ended


def test_a_named_gpu_can_be_done_without(world):
    with folder() as place:
        serves_on_the_cpu_and_says_so(world, place / "weir-gpu", f"there is no {place}/weir-gpu", "cuda:0",
                                      'gpu_missing = "cpu"')


def test_a_gpu_serves(world):
    with folder() as place:
        program = posing(world, place)
        for devices in ("cuda", "cuda:0", "auto"):
            server = Server(world.weir, {FAKE: MODEL}, f'devices = ["{devices}"]\ngpu_executor = "{program}"')
            try:
                one_chat(server)
                metrics = server.metrics()
                assert any('device="cuda:0"' in name for name in metrics), metrics
                assert not any('device="cpu' in name for name in metrics), metrics
                log = told(server.output())
                # What the executor says on standard error is in the log, under the device's name.
                warm = [line for line in log if "the card is warm" in line]
                assert len(warm) == 1 and 'device="cuda:0"' in warm[0], log
                assert not any("CPU" in line for line in log), log
            finally:
                server.close()


def test_an_executor_that_lacks_a_library_says_which(world):
    with folder() as place, folder() as broken:
        program, line = without_its_driver(broken)
        ended = serve(world, place, "--devices", "cuda", "--gpu-executor", str(posing(world, place, f"exec {program}")))
        last = ended.stderr.strip().splitlines()[-1]
        assert ended.returncode == 1 and last.startswith("weir: ") and last.endswith(line), ended.stderr


def test_a_gpu_executor_that_dies_is_started_again(world):
    with folder() as place:
        server = Server(world.weir, {FAKE: MODEL}, f'devices = ["cuda"]\ngpu_executor = "{posing(world, place)}"')
        try:
            one_chat(server)
            (pid, _), = [(pid, command) for pid, command in server.children() if "executor" in command]
            subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(pid)], check=True)
            one_chat(server)
            assert server.metrics()["weir_executor_restarts_total"] >= 1
        finally:
            server.close()


def test_metrics_of_gpus_are_there_without_any(world):
    metrics = world.fake.metrics()
    up = metrics["weir_nvml_up"]
    assert up == float(pathlib.Path("/proc/driver/nvidia").exists()), up
    if not up:
        ours = {name: value for name, value in metrics.items() if name.startswith("weir_gpu_")}
        assert len(ours) == 16 and set(ours.values()) == {0.0}, ours
        assert all('gpu="0"' in name for name in ours), ours
