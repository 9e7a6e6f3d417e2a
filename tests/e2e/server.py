"""A `weir serve` process of our own: its configuration, its keys, its ports, and its end."""

import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

# How long to wait for what must happen; no case asserts that something is fast.
PATIENCE = 120.0

CHAT, EMBED, FAKE, FAKE_SLOW = "smollm2-135m-instruct", "all-minilm-l6-v2", "fake", "slow"

# name -> (key, more lines of its [[tenants]] table)
TENANTS = {
    "demo": ("weir-e2e-demo-key", ""),
    "other": ("weir-e2e-other-key", ""),
    "third": ("weir-e2e-third-key", ""),
    "embedder": ("weir-e2e-embedder-key", f'models = ["{EMBED}"]'),
    "small": ("weir-e2e-small-key", "queue_len_max = 1\nrunning_max = 1"),
}


def wait_until(what, fact, patience=PATIENCE):
    """Poll a fact until it holds; its value is returned. The deadline is for hangs, not for speed."""
    deadline = time.monotonic() + patience
    while True:
        value = fact()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience:.0f} s in vain for {what}")
        time.sleep(0.02)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Reply:
    """A response, read whole."""

    def __init__(self, response, body):
        self.status, self.headers, self.body = response.status, response.headers, body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def text(self):
        return self.body.decode()

    def events(self):
        """The data of each server-sent event."""
        return [line[len("data: "):] for line in self.text.splitlines() if line.startswith("data: ")]


class Server:
    """Started on construction, ready on return; `close` ends it and fails if it did not end well.

    `engine` and `front` are lines of `[engine]` and `[server]`, `plans` lines of a tenant's table by its name, and `before`
    is called in the new process before it becomes the server. With `ready=False` it may still be loading on return.
    """

    def __init__(self, weir, models, engine="", front="", plans=None, before=None, ready=True):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-e2e-"))
        self.port, self.metrics_port, self.admin_port = free_port(), free_port(), free_port()
        (self.folder / "weir.toml").write_text(self._config(models, engine, front, plans or {}))
        self.log = open(self.folder / "log", "w+", encoding="utf-8")
        self.weir, self.before = weir, before
        self._start(ready)

    def _start(self, ready=True):
        self.process = subprocess.Popen(
            [self.weir, "serve", "--config", "weir.toml"], cwd=self.folder, stdout=self.log, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, env=clean_environment(), preexec_fn=self.before)
        try:
            if ready:
                self.wait_ready()
        except BaseException:
            self.process.kill()
            self.process.wait()
            print(self.output())
            raise

    def restart(self, kill=False):
        """Ends the process, in order or by SIGKILL, and starts another in the same folder, with the same ports."""
        self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        self.process.wait(timeout=60)
        self._start()

    def _config(self, models, engine, front, plans):
        lines = ["[server]", 'host = "127.0.0.1"', f"port = {self.port}", f'metrics = "127.0.0.1:{self.metrics_port}"',
                 f'admin = "127.0.0.1:{self.admin_port}"',
                 # Nobody balances load over these servers, so none has to hear of their end in time.
                 *([] if "drain_accept_time" in front else ['drain_accept_time = "0s"']), front, "[engine]", engine]
        for name, source in models.items():
            lines += ["[[models]]", f'name = "{name}"', f"source = {json.dumps(str(source))}"]
        for name, (key, more) in TENANTS.items():
            lines += ["[[tenants]]", f'name = "{name}"', more, plans.get(name, ""), "[[tenants.keys]]", 'name = "e2e"',
                      f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"']
        return "\n".join(lines) + "\n"

    def wait_ready(self):
        def ready():
            if self.process.poll() is not None:
                raise AssertionError(f"weir ended with {self.process.returncode} before it was ready")
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.request("GET", "/ready", key=None).status == 200
            return False

        wait_until("/ready", ready)

    def output(self):
        self.log.flush()
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def request(self, method, path, body=None, key="weir-e2e-demo-key", headers=None, port=None):
        """One plain HTTP exchange; `body` is bytes, or anything that becomes JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, *self._prepared(body, key, headers))
            response = connection.getresponse()
            return Reply(response, response.read())
        finally:
            connection.close()

    def _prepared(self, body, key, headers):
        sent = {"Authorization": f"Bearer {key}"} if key else {}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            sent["Content-Type"] = "application/json"
        return body, sent | (headers or {})

    def post(self, path, body, **options):
        return self.request("POST", path, body, **options)

    def send_stream(self, path, body, key="weir-e2e-demo-key"):
        """The connection of a streamed request whose answer has not been read yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("POST", path, *self._prepared(body | {"stream": True}, key, None))
        return connection

    def open_stream(self, path, body, key="weir-e2e-demo-key"):
        """The connection and the unread response of a streamed request; closing the connection hangs up."""
        connection = self.send_stream(path, body, key)
        response = connection.getresponse()
        assert response.status == 200, (response.status, response.read())
        return connection, response

    def client(self, tenant="demo", **options):
        import openai

        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=TENANTS[tenant][0],
                             **({"max_retries": 0, "timeout": PATIENCE} | options))

    def metrics(self):
        """name{labels} -> value, of the Prometheus text."""
        reply = self.request("GET", "/metrics", key=None, port=self.metrics_port)
        assert reply.status == 200, reply.status
        found = {}
        for line in reply.text.splitlines():
            match = re.fullmatch(r"([a-zA-Z_:][^ ]*(?:\{.*\})?) ([^ ]+)( .*)?", line)
            if match and not line.startswith("#"):
                found[match[1]] = float(match[2])
        return found

    def children(self):
        """(pid, command line) of the processes that this server started, threads' children included."""
        found = []
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    found.append((int(pid), command))
        return found

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"weir did not end on SIGTERM:\n{self.output()}") from None
        finally:
            self.log.close()
        log = (self.folder / "log").read_text(encoding="utf-8", errors="replace")
        shutil.rmtree(self.folder, ignore_errors=True)
        assert code == 0, f"weir ended with {code} on SIGTERM:\n{log}"
        assert "panicked" not in log, log


def figure(name, value, **more):
    """One line of a result, for whoever collects them."""
    shown = "".join(f" {key}={one}" for key, one in more.items())
    print(f"figure={name} value={value}{shown}", flush=True)


def together(work, items):
    """Run `work` on every item in a thread of its own, all at once; the first failure is raised."""
    results, failures = [None] * len(items), []

    def one(index, item):
        try:
            results[index] = work(item)
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            failures.append(error)

    threads = [threading.Thread(target=one, args=pair, daemon=True) for pair in enumerate(items)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results


def clean_environment():
    """Ours without what would change the server's configuration."""
    return {name: value for name, value in os.environ.items()
            if not name.startswith(("WEIR_", "OPENAI_", "HF_")) and name not in ("PORT", "RUST_LOG", "DATABASE_URL", "DATABASE_URL_FILE", "DATABASE_OWNER_URL")}
