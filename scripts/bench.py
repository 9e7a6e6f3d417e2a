#!/usr/bin/env python3
"""Measure Weir on this machine, all of it through `weir bench serve`: the figures of bench/RESULTS.md.

Standard library only. Each part starts `weir serve` in an empty folder, drives it over HTTP, and leaves a result a level in
bench/plots/NAME.jsonl and a chart in bench/plots/NAME.svg; start times, memory and the machine go into bench/plots/run.json.
Every figure is printed as `figure=7.NAME value=V low=L high=H`
(the front end's with keys and ledger as `figure=6.5.NAME`), with void=true when something else used the machine: low and
high are the extremes over five parts of a level's steady window, or over repeats. The client shares the machine with the
server, as a user's own client would. `--report` writes the tables of bench/RESULTS.md anew from those files.

    make bench
    scripts/bench.py --weir target/release/weir --models .weir/models --only cpu --allow-busy
    scripts/bench.py --report
"""

import argparse
import contextlib
import datetime
import http.client
import itertools
import json
import os
import pathlib
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from bench_report import write_report

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLOTS = ROOT / "bench" / "plots"
CHAT, EMBED, FAKE = "smollm2-135m-instruct", "all-minilm-l6-v2", "fake"
# The curves' fake model has the costs that `fake:` has by default; the one of the processor time costs next to nothing, so
# that the front end is what is measured.
FAKE_CURVE, FAKE_SHORT = "fake:step=4ms,token=20us", "fake:step=100us,token=1us"
CONCURRENCY = "1,2,4,8,16,32,64"
# Open loops are offered these parts of the best rate that the closed loop found: up to saturation, and past it.
LOADS = (0.25, 0.5, 0.75, 0.9, 1.1, 1.5)
BUSY_MAX = 0.05  # of the machine, by others, before it starts
PARTS = ("start", "smollm2", "minilm", "fake", "cpu", "front")


class Server:
    """`weir serve` in an empty folder, with the key that it made."""

    def __init__(self, weir, models):
        self.weir = weir
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
            [weir, "serve", "--port", str(self.port), *map(str, models)], cwd=self.folder.name, env=environment,
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT)
        while not self.ready():
            if self.process.poll() is not None:
                sys.exit("bench: weir did not start:\n" + pathlib.Path(self.folder.name, "log").read_text())
            time.sleep(0.005)
        self.start_seconds = time.monotonic() - started

    def ready(self):
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        return False

    def memory(self):
        """Megabytes of the server and its executor: resident, the part of it that is not file pages, and the peak."""
        found = {"server": self.process.pid}
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                found["executor"] = int(pid)
        for name, pid in found.items():
            status = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
            for field, title in (("VmRSS", "resident"), ("RssAnon", "anonymous"), ("VmHWM", "peak")):
                yield f"{name}_{title}_mb", int(status[field].split()[0]) / 1024

    def cpu_seconds(self):
        """What the server's process has used of the processors, all its threads and the kernel on their behalf."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def idle_us_per_second(self, seconds):
        """Processor time that it takes while nobody asks for anything."""
        before = self.cpu_seconds()
        time.sleep(seconds)
        return (self.cpu_seconds() - before) / seconds * 1e6

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        self.log.close()
        self.folder.cleanup()


class Bench:
    """One run of the set: what it has found so far, and how it asks for more."""

    def __init__(self, weir, models, plots, busy):
        self.weir, self.models, self.plots, self.busy = weir, models, plots, busy
        self.seeds = itertools.count(1)  # a seed that a server has seen may have its prompts cached
        self.figures, self.void = {}, 0

    def figure(self, name, value, low=None, high=None, void=False, of="7"):
        low, high = value if low is None else low, value if high is None else high
        self.void += void
        self.figures[name] = {"value": value, "low": low, "high": high, "void": void}
        print(f"figure={of}.{name} value={value:.4g} low={low:.4g} high={high:.4g}" + (" void=true" if void else ""),
              flush=True)

    def spread(self, name, values, void=False, of="7"):
        self.figure(name, statistics.median(values), min(values), max(values), void, of)

    def measure(self, server, model, name, *words, plot=True):
        """`weir bench serve` with these words; the results of its levels."""
        output = self.plots / f"{name}.jsonl"
        command = [self.weir, "bench", "serve", "--url", f"http://127.0.0.1:{server.port}", "--model", model,
                   "--seed", str(next(self.seeds)), "--output", output, "--allow-busy", *map(str, words)]
        if plot:
            command += ["--plot", output.with_suffix(".svg")]
        print(f"==> {name}: weir bench serve --model {model} {' '.join(map(str, words))}", flush=True)
        environment = os.environ | {"WEIR_API_KEY": pathlib.Path(server.folder.name, ".weir/demo.key").read_text().strip()}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
            for line in child.stdout:
                if not line.startswith("figure="):
                    print(line, end="", flush=True)
        if child.returncode != 0:
            sys.exit(f"bench: {name} failed")
        return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]

    def levels(self, name, levels, *fields):
        """Figures of a sweep's levels, by their place in it."""
        for level in levels:
            place = f"c{level['max_concurrency']}" if level["max_concurrency"] else f"r{level['request_rate']:g}"
            for field in fields:
                if level.get(field) is not None:
                    self.figure(f"{name}_{field}_{place}", level[field], level.get(f"{field}_low"),
                                level.get(f"{field}_high"), void=not level["clean"])

    def curves(self, server, model, name, throughput, goodput, words, seconds):
        """Latency and throughput over concurrency, then over rate up to saturation and past it."""
        closed = self.measure(server, model, f"{name}_concurrency", "--concurrency", CONCURRENCY, "--seconds", seconds,
                              *words)
        latencies = ("median_ttft_ms", "p99_ttft_ms", "median_itl_ms", "p99_itl_ms", "median_e2el_ms", "p99_e2el_ms")
        self.levels(name, closed, throughput, "request_throughput", *latencies)
        best = max(level["request_throughput"] for level in closed)
        rates = ",".join(f"{best * load:.3g}" for load in LOADS)
        opened = self.measure(server, model, f"{name}_rate", "--request-rate", rates, "--seconds", seconds,
                              "--goodput", *goodput, *words)
        self.levels(name, opened, "request_throughput", "request_goodput", "late_ms_max", *latencies)

    def start(self, repeats):
        cold, warm = [], []
        for _ in range(repeats):
            evict(self.weir, self.models / CHAT, self.models / EMBED)
            for times in (cold, warm):
                with Server(self.weir, [self.models / CHAT, self.models / EMBED]) as server:
                    times.append(server.start_seconds)
        self.spread("start_cold_s", cold, self.busy)
        self.spread("start_warm_s", warm, self.busy)

    def smollm2(self, _):
        with Server(self.weir, [self.models / CHAT, self.models / EMBED]) as server:
            for name, value in server.memory():
                self.figure(f"{name}_after_start", value)
            self.curves(server, CHAT, "smollm2", "output_throughput", ("ttft:1000", "tpot:100"),
                        ("--prompt-tokens", 32, "--output-tokens", 32, "--vocab", 40000), 20)
            prompts = self.measure(server, CHAT, "smollm2_prompts", "--concurrency", "1,8,32", "--seconds", 10,
                                   "--prompt-tokens", 512, "--output-tokens", 1, "--vocab", 40000, plot=False)
            self.levels("smollm2_prompts", prompts, "prompt_tokens_per_s")
            decode = self.measure(server, CHAT, "smollm2_decode", "--concurrency", "1,8,32", "--seconds", 15,
                                  "--prompt-tokens", 16, "--output-tokens", 128, "--vocab", 40000, plot=False)
            self.levels("smollm2_decode", decode, "decode_tokens_per_s", "output_throughput", "median_ttft_ms",
                        "median_itl_ms", "p99_itl_ms")
            for name, value in server.memory():
                self.figure(f"{name}_after_load", value)

    def minilm(self, _):
        with Server(self.weir, [self.models / EMBED]) as server:
            words = ("--kind", "embeddings", "--vocab", 30000)
            self.curves(server, EMBED, "minilm", "embeddings_per_s", ("e2el:250",),
                        (*words, "--inputs", 1, "--prompt-tokens", 32), 8)
            for inputs, length in ((64, 32), (32, 256)):
                name = f"minilm_{inputs}x{length}"
                levels = self.measure(server, EMBED, name, "--concurrency", 1, "--seconds", 8, *words, "--inputs", inputs,
                                      "--prompt-tokens", length, plot=False)
                self.levels(name, levels, "embeddings_per_s")

    def fake(self, _):
        with Server(self.weir, [f"{FAKE}={FAKE_CURVE}"]) as server:
            self.curves(server, FAKE, "fake", "output_throughput", ("ttft:100", "tpot:20"),
                        ("--prompt-tokens", 32, "--output-tokens", 32, "--vocab", 250), 8)

    def cpu(self, repeats):
        """Processor time of a short request: what the front end costs, and what the client does beside it."""
        with Server(self.weir, [f"{FAKE}={FAKE_SHORT}"]) as server:
            for kind, words in (("whole", ["--no-stream"]), ("streamed", ["--no-delta-counts"]), ("counted", [])):
                runs = [self.measure(server, FAKE, f"cpu_{kind}", "--concurrency", 32, "--seconds", 6, "--warmup", 500,
                                     "--prompt-tokens", 16, "--output-tokens", 8, "--vocab", 250, *words, plot=False)[0]
                        for _ in range(min(3, repeats))]
                void = not all(run["clean"] for run in runs)
                for field in ("server_us_per_request", "executor_us_per_request", "client_us_per_request",
                              "request_throughput"):
                    self.spread(f"{kind}_{field}", [run[field] for run in runs], void)


    def front(self, repeats):
        """Processor time of the server for a chat of a few words that is answered in eight tokens: keys looked up, and each request in
        the ledger, on the disk, before its end is told. What the server takes when nobody asks is left out."""
        with Server(self.weir, [f"{FAKE}={FAKE_SHORT}"]) as server:
            time.sleep(1)
            idle = server.idle_us_per_second(5)
            self.figure("idle_us_per_second", idle, of="6.5")
            for kind, words in (("whole", ["--no-stream"]), ("streamed", ["--no-delta-counts"])):
                runs = [self.measure(server, FAKE, f"front_{kind}", "--kind", "chat", "--concurrency", 64, "--seconds", 6,
                                     "--warmup", 500, "--prompt-tokens", 4, "--output-tokens", 8, *words, plot=False)[0]
                        for _ in range(min(3, repeats))]
                void = not all(run["clean"] for run in runs)
                beyond = [run["server_us_per_request"] - idle / run["request_throughput"] for run in runs]
                self.spread(f"cpu_per_request_us_{kind}", beyond, void, of="6.5")
                self.spread(f"requests_per_s_{kind}", [run["request_throughput"] for run in runs], void, of="6.5")


def evict(*folders):
    """Ask the kernel to forget the files' pages; needs no rights."""
    for folder in folders:
        for path in [folder] if folder.is_file() else folder.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


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
    if share > BUSY_MAX:
        print(f"warning: others use {share:.0%} of this machine", file=sys.stderr)
    return share


def describe(weir):
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8")
                  if line.startswith("model name")), platform.processor())
    memory = next(int(line.split()[1]) >> 20 for line in open("/proc/meminfo", encoding="ascii") if "MemTotal" in line)
    version = subprocess.run([weir, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return f"{model}, {os.cpu_count()} CPUs, {memory} GiB, {platform.system()} {platform.release()}; {version}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weir", type=pathlib.Path, default=ROOT / "target/release/weir")
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / ".weir/models")
    parser.add_argument("--plots", type=pathlib.Path, default=PLOTS, help="where results and charts go")
    parser.add_argument("--repeats", type=int, default=5, help="of starts; processor times take 3 of them at most")
    parser.add_argument("--quiet-wait", type=float, default=60.0, help="seconds to wait for an idle machine")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may be given again")
    parser.add_argument("--allow-busy", action="store_true", help="do not fail when figures are void")
    parser.add_argument("--report", action="store_true", help="measure nothing: write the tables of bench/RESULTS.md")
    options = parser.parse_args()
    if options.report:
        write_report(options.plots, ROOT / "bench" / "RESULTS.md")
        return
    options.plots.mkdir(parents=True, exist_ok=True)
    machine = describe(options.weir.resolve())
    print(f"machine: {machine}", flush=True)
    share, started = wait_for_quiet(options.quiet_wait), time.monotonic()
    bench = Bench(options.weir.resolve(), options.models.resolve(), options.plots.resolve(), share > BUSY_MAX)
    for part in options.only or PARTS:
        getattr(bench, part)(options.repeats)
    kept = options.plots / "run.json"
    known = json.loads(kept.read_text(encoding="utf-8"))["figures"] if options.only and kept.exists() else {}
    kept.write_text(json.dumps({
        "machine": machine,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "command": "make bench" if not options.only else "scripts/bench.py " + " ".join(f"--only {p}" for p in options.only),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "busy_before": round(share, 3),
        "figures": known | bench.figures,
    }, indent=1) + "\n", encoding="utf-8")
    print(f"{len(bench.figures)} figures, {bench.void} void, {(time.monotonic() - started) / 60:.1f} minutes")
    if bench.void and not options.allow_busy:
        sys.exit("bench: something else used this machine, so some figures are void; --allow-busy lets them pass")


if __name__ == "__main__":
    main()
