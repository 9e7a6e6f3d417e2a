"""A `weir serve` process of a part's own, and `weir bench serve` against it."""

import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time


TENANTS = ("amber", "blue", "coral")


class Server:
    """Started on construction, ready on return, or an exception with its last words. Each tenant has a key in a file."""

    def __init__(self, where, models, engine, seconds):
        self.where = where
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="serve-", dir=where.folder))
        self.port, self.metrics_port = free_port(), free_port()
        self.keys = {}
        lines = ["[server]", f"port = {self.port}", f'metrics = "127.0.0.1:{self.metrics_port}"', 'admin = "off"',
                 'drain_accept_time = "0s"', "[engine]"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in engine.items()]
        for name, folder in models.items():
            lines += ["[[models]]", f'name = "{name}"', f"source = {json.dumps(str(folder))}"]
        for name in TENANTS:
            key = f"weir-bench-{name}-{os.urandom(8).hex()}"
            self.keys[name] = self.folder / f"{name}.key"
            self.keys[name].touch(mode=0o600)
            self.keys[name].write_text(key + "\n")
            digest = hashlib.sha256(key.encode()).hexdigest()
            lines += ["[[tenants]]", f'name = "{name}"', "[[tenants.keys]]", 'name = "bench"', f'sha256 = "{digest}"']
        (self.folder / "weir.toml").write_text("\n".join(lines) + "\n")
        self.log = open(self.folder / "log", "w", encoding="utf-8")
        began = time.monotonic()
        self.process = subprocess.Popen([str(where.weir), "serve", "--config", "weir.toml"], cwd=self.folder,
                                        stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
                                        env=where.environment())
        try:
            while not self.ready():
                if self.process.poll() is not None or time.monotonic() - began > seconds:
                    raise RuntimeError("weir serve is not ready: " + " | ".join(self.said()[-4:])[-800:])
                time.sleep(0.05)
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.monotonic() - began

    def said(self):
        self.log.flush()
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()

    def get(self, port, path):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def ready(self):
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get(self.port, "/ready")[0] == 200
        return False

    def metrics(self):
        """name{labels} -> value, and when it was asked for and had come."""
        asked = time.monotonic()
        _, text = self.get(self.metrics_port, "/metrics")
        came = time.monotonic()
        found = {}
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            if name and not line.startswith("#"):
                with contextlib.suppress(ValueError):
                    found[name] = float(value)
        return found, asked, came

    def bench(self, model, *words, tenants=TENANTS[:1]):
        """The words of `weir bench serve` against this server; its results go to the file that is returned, too."""
        output = self.folder / f"bench-{time.monotonic_ns()}.json"
        keys = [word for name in tenants for word in ("--tenant", f"{name}={self.keys[name]}")]
        return [self.where.weir, "bench", "serve", "--url", f"http://127.0.0.1:{self.port}", "--model", model,
                "--allow-busy", "--output", output, *keys, *words], output

    def close(self):
        """Ends it and its executors, and waits for both."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def engine(bench, kv_memory, rows, step_tokens):
    """[engine] for this place. A node has the CPU unless it is told of GPUs."""
    settings = {"kv_memory": kv_memory, "rows_max": rows, "step_tokens_max": step_tokens, "queue_len_max": 4096}
    return settings | ({"devices": ["cuda:0"]} if bench.place.device == "cuda" else {})


def levels(bench, name, words, output, seconds):
    """The results of a run of `weir bench serve`, or none with the reason recorded under `name`."""
    if bench.run(name, words, seconds) is None:
        return []
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def account(found, name="weir_device_seconds_total"):
    """device -> account -> seconds, of the metrics."""
    devices = {}
    for key, value in found.items():
        if key.startswith(name + "{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', key))
            devices.setdefault(labels.get("device", ""), {})[labels.get("account", "")] = value
    return devices


def grown(before, device, accounts):
    """How much each account of a device grew since `before`, which are metrics."""
    earlier = account(before).get(device, {})
    return {name: value - earlier.get(name, 0.0) for name, value in accounts.items()}


def gauge(found, name):
    """The mean of a metric over its labels, or None if it is not there."""
    values = [value for key, value in found.items() if key.split("{")[0] == name]
    return sum(values) / len(values) if values else None
