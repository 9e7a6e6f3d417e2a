"""The first start in an empty folder, as the README has it: the key, the configuration, the printed lines."""

import json
import os
import pathlib
import re
import shlex
import signal
import stat
import subprocess
import sys
import tempfile

from server import CHAT, EMBED, clean_environment, free_port, wait_until


class Started:
    """`weir serve` with the two models in a folder; `lines` is what it printed once it was ready."""

    def __init__(self, world, folder, port):
        self.out = pathlib.Path(folder, "out")
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [world.weir, "serve", "--port", str(port), *(str(world.models / name) for name in (CHAT, EMBED))],
                cwd=folder, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=clean_environment() | {"WEIR_METRICS": f"127.0.0.1:{free_port()}", "WEIR_ADMIN": f"127.0.0.1:{free_port()}"})
        wait_until("the printed lines", self.printed)

    def printed(self):
        assert self.process.poll() is None, self.out.read_text()
        return len(re.findall(r"^\s*curl ", self.out.read_text(), re.MULTILINE)) >= 2 and "openai" in self.out.read_text()

    def text(self):
        return self.out.read_text()

    def end(self):
        self.process.send_signal(signal.SIGINT)  # as Ctrl-C does
        code = self.process.wait(timeout=60)
        assert code == 0, (code, self.text())


def curl_lines(text):
    return [line.strip() for line in text.splitlines() if line.strip().startswith("curl ")]


def python_scripts(text):
    """The shell commands that feed a script to python, whole."""
    return re.findall(r"^python3 - <<'EOF'\n.*?^EOF$", text, re.MULTILINE | re.DOTALL)


def shell(line, folder):
    import openai

    # The python that a user would have installed the package into.
    environment = clean_environment() | {"PYTHONPATH": str(pathlib.Path(openai.__file__).resolve().parent.parent)}
    line = re.sub(r"^python3?", shlex.quote(sys.executable), line)
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
                          check=False)
    assert done.returncode == 0, (line, done)
    return done.stdout


def test_first_start_then_second(world):
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        key, config = pathlib.Path(folder, ".weir", "demo.key"), pathlib.Path(folder, "weir.toml")
        started = Started(world, folder, port)
        try:
            assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
            assert key.read_text().strip() not in started.text(), "the key itself is printed"
            assert "#" in config.read_text() and config.read_text().count("tenants") >= 2, config.read_text()
            curls = curl_lines(started.text())
            assert any("/v1/chat/completions" in line for line in curls), curls
            assert any("/v1/embeddings" in line for line in curls), curls
            for line in curls:
                out = shell(line, folder)
                if "/v1/embeddings" in line:
                    assert len(json.loads(out)["data"][0]["embedding"]) > 300, out[:300]
                else:
                    assert "data: [DONE]" in out and '"delta"' in out, out[:300]
            scripts = python_scripts(started.text())
            assert scripts, started.text()
            for script in scripts:
                said = shell(script, folder).strip().splitlines()
                assert len(said) >= 2 and said[-1].startswith("["), said  # an answer, then a vector's head
            first = (key.read_bytes(), config.read_bytes())
        finally:
            started.end()
        with config.open("a") as file:
            file.write("# a note of the operator\n")
        again = Started(world, folder, port)
        try:
            assert key.read_bytes() == first[0], "the key was replaced"
            assert config.read_bytes() == first[1] + b"# a note of the operator\n", "the configuration was overwritten"
            assert "data: [DONE]" in shell(next(line for line in curl_lines(again.text()) if "chat" in line), folder)
        finally:
            again.end()


def test_a_key_that_others_can_read_is_refused(world):
    with tempfile.TemporaryDirectory() as folder:
        key = pathlib.Path(folder, ".weir", "demo.key")
        key.parent.mkdir()
        key.write_text("weir-" + "a" * 43 + "\n")
        key.chmod(0o644)
        done = subprocess.run([world.weir, "serve", "fake", "--port", str(free_port())], cwd=folder, capture_output=True,
                              text=True, timeout=60, check=False, env=clean_environment(), stdin=subprocess.DEVNULL)
        assert done.returncode == 1 and "demo.key" in done.stderr and "panicked" not in done.stderr, done
