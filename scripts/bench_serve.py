#!/usr/bin/env python3
"""Measure a Weir server on this machine: the figures of bench/RESULTS.md, as `figure=NAME value=V low=L high=H n=N`.

Standard library only. Starts `weir serve` with the two default models in an empty folder (cold, with the files evicted from
the page cache, then warm), and measures through the API: prompt tokens/s, decode tokens/s and time to first token at
several concurrencies, embeddings/s, and resident memory of the server and its executor. A value is the median of the
repeats, low and high their extremes. Prompts are token ids drawn from a seed, so that no prefix is ever in the cache and
every length is exact. The client shares the machine with the server, as a user's own client would.

    make bench
    scripts/bench_serve.py --weir target/release/weir --models .weir/models --repeats 5 --only decode
"""

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

CHAT, EMBED = "smollm2-135m-instruct", "all-minilm-l6-v2"
CONCURRENCIES = (1, 8, 32)
PATIENCE = 600.0
BUSY_MAX = 0.10  # of all cores, by others; above it the figures carry a warning
RANDOM = random.Random(20260)


def figure(name, values, digits=2):
    values = sorted(values)
    print(f"figure={name} value={statistics.median(values):.{digits}f} low={values[0]:.{digits}f} "
          f"high={values[-1]:.{digits}f} n={len(values)}", flush=True)


def busy(seconds=2.0):
    """The share of the machine that is at work, over a while."""
    def read():
        with open("/proc/stat", encoding="ascii") as stat:
            fields = [int(field) for field in stat.readline().split()[1:9]]
        return sum(fields), fields[3] + fields[4]

    total, idle = read()
    time.sleep(seconds)
    total_after, idle_after = read()
    return 1 - (idle_after - idle) / max(1, total_after - total)


def wait_for_quiet(patience):
    """Wait until nobody else uses the machine; say so if it does not come to that."""
    deadline = time.monotonic() + patience
    while (share := busy()) > BUSY_MAX and time.monotonic() < deadline:
        pass
    print(f"figure=machine_busy_before value={share:.3f}")
    if share > BUSY_MAX:
        print(f"warning: others use {share:.0%} of this machine; these figures are too low", file=sys.stderr)


class Server:
    """`weir serve` in an empty folder, with the key that it made."""

    def __init__(self, weir, models):
        self.folder = tempfile.TemporaryDirectory(prefix="weir-bench-")
        with socket.socket() as probe, socket.socket() as other:
            probe.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            self.port, metrics = probe.getsockname()[1], other.getsockname()[1]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WEIR_") and k != "PORT"}
        environment["WEIR_METRICS"] = f"127.0.0.1:{metrics}"
        environment["WEIR_ADMIN"] = "off"
        started = time.monotonic()
        self.log = open(pathlib.Path(self.folder.name, "log"), "w", encoding="utf-8")
        self.process = subprocess.Popen(
            [weir, "serve", "--port", str(self.port), str(models / CHAT), str(models / EMBED)], cwd=self.folder.name,
            env=environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT)
        while not self.ready():
            if self.process.poll() is not None:
                sys.exit("bench_serve: weir did not start:\n" + pathlib.Path(self.folder.name, "log").read_text())
            time.sleep(0.005)
        self.start_seconds = time.monotonic() - started
        key = pathlib.Path(self.folder.name, ".weir", "demo.key").read_text().strip()
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def ready(self):
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = self.connection()
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        return False

    def post(self, path, body, connection=None):
        """The parsed answer, and the seconds it took."""
        connection = connection or self.connection()
        payload = json.dumps(body)
        started = time.perf_counter()
        connection.request("POST", path, payload, self.headers)
        response = connection.getresponse()
        answer = response.read()
        taken = time.perf_counter() - started
        if response.status != 200:
            sys.exit(f"bench_serve: {path}: {response.status} {answer.decode(errors='replace')}")
        return json.loads(answer), taken

    def stream(self, body, together_from):
        """Start, then the (time, line) of every event; parsed by the caller, after the clock has stopped."""
        connection = self.connection()
        connection.connect()
        payload = json.dumps(body | {"stream": True})
        together_from.wait()
        started = time.perf_counter()
        connection.request("POST", "/v1/completions", payload, self.headers)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status} {response.read().decode(errors='replace')}")
        events = []
        while line := response.readline():
            if line.startswith(b"data: {"):
                events.append((time.perf_counter(), line))
        connection.close()
        return started, events

    def memory(self):
        """(name, kilobytes) for the server and its children: resident, and the part of it that is not file pages."""
        found = {"server": self.process.pid}
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                found["executor"] = int(pid)
        for name, pid in found.items():
            status = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
            yield f"{name}_resident_mb", int(status["VmRSS"].split()[0]) / 1024
            yield f"{name}_anonymous_mb", int(status["RssAnon"].split()[0]) / 1024
            yield f"{name}_peak_mb", int(status["VmHWM"].split()[0]) / 1024

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        self.log.close()
        self.folder.cleanup()


def ids(count):
    """A prompt of exactly that many tokens, which nobody has sent before."""
    return [RANDOM.randrange(1000, 40000) for _ in range(count)]


def together(work, count):
    results, failures = [None] * count, []

    def one(index):
        try:
            results[index] = work(index)
        except Exception as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit(f"bench_serve: {failures[0]}")
    return results


def prompt_rate(server, streams, length=512):
    """Prompt tokens/s: one new token each, all requests at once."""
    prompts = [ids(length) for _ in range(streams)]
    started = time.perf_counter()
    together(lambda i: server.post("/v1/completions", {
        "model": CHAT, "prompt": prompts[i], "max_tokens": 1, "temperature": 0, "ignore_eos": True}), streams)
    return streams * length / (time.perf_counter() - started)


def decode_rates(server, streams, tokens=128, length=16):
    """(decode tokens/s while all streams decode, median time to first token, median and worst gap between tokens)."""
    together_from = threading.Barrier(streams)
    bodies = [{"model": CHAT, "prompt": ids(length), "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
               "stream_options": {"include_usage": True, "continuous_usage_stats": True}} for _ in range(streams)]
    runs = together(lambda i: server.stream(bodies[i], together_from), streams)
    first, counts, gaps = [], [], []
    for started, events in runs:
        times = []  # (time, completion tokens so far)
        for when, line in events:
            usage = json.loads(line[6:]).get("usage")
            if usage and usage["completion_tokens"] > (times[-1][1] if times else 0):
                times.append((when, usage["completion_tokens"]))
        assert times[-1][1] == tokens, times[-1]
        first.append(times[0][0] - started)
        gaps += [(b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(times, times[1:])]
        counts.append(times)
    # The window in which every stream decodes: after the last one began, before the first one ended.
    opened, closed = max(times[0][0] for times in counts), min(times[-1][0] for times in counts)
    if closed <= opened:
        return None, statistics.median(first), gaps
    made = sum(max((n for when, n in times if when <= closed), default=0)
               - max((n for when, n in times if when <= opened), default=0) for times in counts)
    return made / (closed - opened), statistics.median(first), gaps


def embedding_rate(server, inputs, length, requests=1):
    """Embeddings/s: requests at once, each with so many inputs of so many tokens."""
    lists = [[[101] + ids(length - 2) + [102] for _ in range(inputs)] for _ in range(requests)]
    lists = [[[token % 28000 + 1000 if token > 102 else token for token in one] for one in many] for many in lists]
    started = time.perf_counter()
    together(lambda i: server.post("/v1/embeddings", {
        "model": EMBED, "input": lists[i], "encoding_format": "base64"}), requests)
    return inputs * requests / (time.perf_counter() - started)


def evict(*folders):
    """Ask the kernel to forget the files' pages; needs no rights."""
    for folder in folders:
        for path in [folder] if folder.is_file() else folder.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def describe(weir):
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8")
                  if line.startswith("model name")), platform.processor())
    memory = next(int(line.split()[1]) >> 20 for line in open("/proc/meminfo", encoding="ascii") if "MemTotal" in line)
    version = subprocess.run([weir, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    print(f"machine: {model}, {os.cpu_count()} CPUs, {memory} GiB, {platform.system()} {platform.release()}; {version}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weir", type=pathlib.Path, default=pathlib.Path("target/release/weir"))
    parser.add_argument("--models", type=pathlib.Path, default=pathlib.Path(".weir/models"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quiet-wait", type=float, default=60.0, help="seconds to wait for an idle machine")
    parser.add_argument("--only", choices=["start", "prompt", "decode", "embed"])
    options = parser.parse_args()
    weir, models, repeats = options.weir.resolve(), options.models.resolve(), options.repeats

    def wanted(part):
        return options.only in (None, part)

    describe(weir)
    wait_for_quiet(options.quiet_wait)
    if wanted("start"):
        cold, warm = [], []
        for _ in range(repeats):
            evict(weir, models / CHAT, models / EMBED)
            for times in (cold, warm):
                server = Server(weir, models)
                times.append(server.start_seconds)
                server.end()
        figure("start_cold_s", cold)
        figure("start_warm_s", warm)
    server = Server(weir, models)
    try:
        for name, value in server.memory():
            figure(f"{name}_after_start", [value], 1)
        prompt_rate(server, 1)  # warm-up
        if wanted("prompt"):
            for streams in CONCURRENCIES:
                figure(f"prompt_tokens_per_s_c{streams}", [prompt_rate(server, streams) for _ in range(repeats)], 1)
        if wanted("decode"):
            for streams in CONCURRENCIES:
                runs = [decode_rates(server, streams) for _ in range(repeats)]
                rates = [rate for rate, _, _ in runs if rate is not None]
                if rates:
                    figure(f"decode_tokens_per_s_c{streams}", rates, 1)
                figure(f"time_to_first_token_ms_c{streams}", [first * 1e3 for _, first, _ in runs], 1)
                figure(f"inter_token_ms_p50_c{streams}", [statistics.median(gaps) * 1e3 for _, _, gaps in runs], 2)
                figure(f"inter_token_ms_p99_c{streams}",
                       [sorted(gaps)[int(len(gaps) * 0.99)] * 1e3 for _, _, gaps in runs], 2)
        if wanted("embed"):
            embedding_rate(server, 1, 32)  # warm-up
            for inputs, length, requests in ((1, 32, 1), (1, 32, 8), (64, 32, 1), (32, 256, 1)):
                figure(f"embeddings_per_s_{inputs}x{length}tokens_c{requests}",
                       [embedding_rate(server, inputs, length, requests) for _ in range(repeats)], 1)
        for name, value in server.memory():
            figure(f"{name}_after_load", [value], 1)
    finally:
        server.end()
    print(f"figure=machine_busy_after value={busy():.3f}")


if __name__ == "__main__":
    main()
