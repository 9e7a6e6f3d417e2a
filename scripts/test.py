#!/usr/bin/env python3
"""Run every test: cargo's, then the end-to-end cases in Python. The last line is `N passed, N failed`.

With `--chaos`, only faults: the server is killed a thousand times, its disk loses power ten thousand times, its PostgreSQL is
stopped fifty times. With `--prove`, only the proofs run (the Rust tests and the end-to-end modules below), at the full size of
their figures instead of a size fit for every change, and their `figure=NAME value=V` lines are shown.

Standard library only. What the end-to-end cases need (the official `openai` package, pinned in
tests/e2e/requirements.txt) is installed into .weir/py: `pip install --target` asks for no root and no venv, and so works
on a python that has neither ensurepip nor the leave to install.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import postgres

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WEIR_FOLDER = os.path.join(ROOT, ".weir")
MODELS = os.path.join(WEIR_FOLDER, "models")
REQUIREMENTS = os.path.join(ROOT, "tests", "e2e", "requirements.txt")
# The Rust tests that prove something by numbers, by parts of their names, and the end-to-end modules that do.
PROOF_TESTS = ["proofs::", "changes::whatever", "simulation::nobody_spends", "of_five_hundred", "partition::"]
PROOFS = ["mutations.", "storms.", "drains.", "executors.", "devices.", "files.", "shares."]
COUNTS = re.compile(r"(\d+) passed[,;] (\d+) failed")


def install():
    """Install the pinned packages once; a stamp with the python's version and the list says that they are complete."""
    into = os.path.join(WEIR_FOLDER, "py")
    with open(REQUIREMENTS, encoding="utf-8") as file:
        want = sys.version + "\n" + file.read()
    try:
        with open(os.path.join(into, ".installed"), encoding="utf-8") as file:
            if file.read() == want:
                return into
    except FileNotFoundError:
        pass
    print("==> the openai package, into .weir/py", flush=True)
    os.makedirs(WEIR_FOLDER, exist_ok=True)
    partial = tempfile.mkdtemp(prefix=".partial-", dir=WEIR_FOLDER)
    try:
        made = os.path.join(partial, "py")
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
             "--no-warn-conflicts", "--only-binary", ":all:", "--no-deps", "--target", made, "--requirement",
             REQUIREMENTS],
            env=dict(os.environ, PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0", PIP_ROOT_USER_ACTION="ignore"), check=True)
        with open(os.path.join(made, ".installed"), "w", encoding="utf-8") as file:
            file.write(want)
        shutil.rmtree(into, ignore_errors=True)
        os.rename(made, into)
    except subprocess.CalledProcessError:
        sys.exit("test: pip could not install the openai package (its words are above)")
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return into


def counted(command, **options):
    """Run a command, pass its stdout on, and add up what its lines count. A failure that counts nothing counts as one."""
    passed = failed = 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, errors="replace", **options) as child:
        for line in child.stdout:
            print(line, end="", flush=True)
            found = COUNTS.search(line)
            if found:
                passed += int(found[1])
                failed += int(found[2])
    if child.returncode != 0 and failed == 0:
        failed = 1
    return passed, failed


def main():
    cargo = os.environ.get("CARGO", "cargo")
    target = os.path.abspath(os.path.join(ROOT, os.environ.get("CARGO_TARGET_DIR", "target")))
    prove, chaos = sys.argv[1:] == ["--prove"], sys.argv[1:] == ["--chaos"]
    if sys.argv[1:] and not prove and not chaos:
        sys.exit(f"test: unknown words {' '.join(sys.argv[1:])!r}; there are only --prove and --chaos")
    environment = dict(os.environ, WEIR_TEST_MODELS=MODELS, **({"WEIR_PROOFS": "full"} if prove else {}))
    started = time.monotonic()
    packages = install()
    # The tests start a server of their own from these programs, and fail without them.
    environment["WEIR_POSTGRES_BIN"] = postgres.available()
    if chaos:
        command = [cargo, "test", "--release", "--locked", "--workspace", "--test", "store", "--", "--nocapture", "faults::"]
        passed, failed = counted(command, env=environment | {"WEIR_PROOFS": "full"})
        # The Makefile has built it.
        command = [sys.executable, os.path.join("tests", "e2e", "run.py"), "--models", MODELS, "--full", "chaos.",
                   "--weir", os.path.join(target, "release", "weir")]
        more = counted(command, env=environment | {"PYTHONPATH": packages})
        print(f"{passed + more[0]} passed, {failed + more[1]} failed")
        sys.exit(1 if failed + more[1] else 0)

    # One build for both: the same packages, targets and so features, else cargo would compile the dependencies twice.
    print("==> build", flush=True)
    command = [cargo, "build", "--release", "--locked", "--workspace", "--bins", "--tests"]
    if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode != 0:
        print("0 passed, 1 failed")
        sys.exit(1)
    built = time.monotonic()

    print("==> cargo test", flush=True)
    command = [cargo, "test", "--release", "--locked", "--workspace", "--no-fail-fast"]
    passed, failed = counted(command + (["--", "--nocapture", *PROOF_TESTS] if prove else []), env=environment)
    if prove:
        # What one build decides, another decides, too: the same digest without optimisation.
        print("==> cargo test, not optimised", flush=True)
        command = [cargo, "test", "--locked", "--package", "weir-scheduler", "--test", "facts", "--", "--nocapture",
                   "proofs::the_same_seed"]
        more = counted(command, env=environment)
        passed, failed = passed + more[0], failed + more[1]
    tested = time.monotonic()

    print("==> end to end", flush=True)
    weir = os.path.join(target, "release", "weir")
    command = [sys.executable, os.path.join("tests", "e2e", "run.py"), "--weir", weir, "--models", MODELS]
    more = counted(command + (["--full", *PROOFS] if prove else []), env=environment | {"PYTHONPATH": packages})
    passed, failed = passed + more[0], failed + more[1]
    ended = time.monotonic()
    print(f"build {built - started:.0f} s, cargo test {tested - built:.0f} s, end to end {ended - tested:.0f} s")
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
