"""What a figure was measured on."""

import functools
import os
import pathlib
import platform
import shutil
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
# Fields of nvidia-smi that do not change while it runs, and those that do.
FIXED = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "clocks.max.memory", "mig.mode.current")
MOVING = ("clocks.sm", "clocks.memory", "temperature.gpu", "power.draw", "utilization.gpu", "clocks_event_reasons.active")
# Seconds that a reading of the moving ones is used for.
FRESH = 2.0
_last = {}


def smi(fields):
    """field -> text, of the first GPU; nothing without a driver."""
    if not shutil.which("nvidia-smi"):
        return {}
    words = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = done.stdout.strip().split(", ")
    return dict(zip(fields, values)) if done.returncode == 0 and len(values) == len(fields) else {}


@functools.cache
def fixed():
    found = {"cpu": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))}
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            found["cpu"] = line.split(": ", 1)[1]
            break
    return found | ({"gpu": smi(FIXED)} if smi(FIXED) else {})


def facts():
    if "gpu" not in fixed():
        return fixed()
    if time.monotonic() - _last.get("at", -FRESH) >= FRESH:
        _last.update(at=time.monotonic(), values=smi(MOVING))
    return fixed() | {"gpu_now": _last["values"]}


def utilisation():
    """NVML's utilisation of the first GPU, 0 to 1, read now; None without a driver."""
    value = smi(("utilization.gpu",)).get("utilization.gpu", "")
    return float(value) / 100 if value.replace(".", "").isdigit() else None


@functools.cache
def commit():
    """What was built: as pack.sh wrote it down, or as git says."""
    packed = HERE / "bin" / "COMMIT"
    if packed.exists() and not (HERE.parent.parent / ".git").exists():
        return packed.read_text(encoding="utf-8").strip()
    words = ["git", "-C", str(HERE), "describe", "--always", "--abbrev=12", "--dirty"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
