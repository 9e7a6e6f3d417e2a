"""serve: the 0.5B shape over HTTP; three tenants and where all device time went; busy by two clocks."""

import threading
import time

import machine
import serving

MODEL = "model"
FIELDS = (("request_throughput", "requests/s"), ("output_throughput", "tokens/s"), ("decode_tokens_per_s", "tokens/s"),
          ("prompt_tokens_per_s", "tokens/s"), ("p50_ttft_ms", "ms"), ("p99_ttft_ms", "ms"), ("p50_itl_ms", "ms"),
          ("p99_itl_ms", "ms"), ("p50_e2el_ms", "ms"))


def run(bench):
    shape = bench.pick("qwen2.5-0.5b", "tiny-qwen2")
    folder = bench.place.model(bench, shape, "bf16")
    if not folder:
        return
    settings = serving.engine(bench, *bench.pick(("32GiB", 256, 4096), ("64MiB", 64, 512)))
    server = serving.Server(bench.place, {MODEL: folder}, settings, min(120, bench.left() - 10))
    try:
        bench.figure("ready", server.start_seconds, "s", command="weir serve", engine=settings)
        best = concurrency(bench, server)
        tenants(bench, server)
        busy(bench, server, best)
    finally:
        server.close()


def lengths(bench):
    """Ids below what any tiny vocabulary has, and what the published figures at small lengths have: 128 in, 128 out."""
    prompt, output, vocab = bench.pick((128, 128, 30_000), (16, 8, 400))
    return ["--prompt-tokens", prompt, "--output-tokens", output, "--vocab", vocab]


def concurrency(bench, server):
    """A level each; the best rate of requests."""
    best = 0.0
    for level in bench.pick((1, 32, 256), (1, 4)):
        name = f"c{level}"
        seconds = bench.pick(25, 2)
        if not bench.has(name, seconds + bench.pick(15, 2)):
            continue
        words, output = server.bench(MODEL, "--concurrency", level, "--seconds", seconds, "--warmup", min(level, 32),
                                     *lengths(bench))
        for result in serving.levels(bench, name, words, output, 4 * seconds + 30):
            record(bench, name, result, words)
            best = max(best, result["request_throughput"])
    return best


def record(bench, name, result, words):
    if result["failed"] or not result["completed"]:
        reason = f"{result['failed']} requests failed, {result['completed']} were answered: {result['failures']}"
        bench.failed(name, reason)
    more = {"completed": result["completed"], "duration_s": result["duration"], "void": result["void"],
            "server_us_per_request": result.get("server_us_per_request"),
            "executor_us_per_request": result.get("executor_us_per_request")}
    for field, unit in FIELDS:
        if result.get(field) is not None:
            bench.figure(f"{name}_{field}", result[field], unit, command=" ".join(map(str, words)), **more)


def tenants(bench, server):
    """Three tenants at once: the accounts of a device must grow by exactly the time that passed.

    The server's clock is read somewhere between asking for the metrics and having them, so the time that passed is known
    between two bounds, a few milliseconds apart; the accounts themselves are printed to the nanosecond.
    """
    seconds = bench.pick(60, 3)
    if not bench.has("conservation", seconds + 15):
        return
    words, output = server.bench(MODEL, "--concurrency", bench.pick(96, 6), "--seconds", seconds, "--warmup", 0,
                                 "--seed", 5, *lengths(bench), tenants=serving.TENANTS)
    before, asked, came = server.metrics()
    results = serving.levels(bench, "tenants", words, output, 4 * seconds + 30)
    after, asked_again, came_again = server.metrics()
    shortest, longest = asked_again - came, came_again - asked
    for device, accounts in sorted(serving.account(after).items()):
        grown = serving.grown(before, device, accounts)
        total = sum(grown.values())
        more = {**{f"{name}_s": value for name, value in grown.items()}, "wall_s_from": shortest, "wall_s_to": longest}
        # Sums of decimal fractions in binary may be off by a part of a nanosecond.
        holds = shortest - 1e-6 <= total <= longest + 1e-6
        name = f"conservation_{device}"
        if holds:
            bench.figure(name, total, "s", command=" ".join(map(str, words)), **more)
        else:
            bench.failed(name, f"accounts grew by {total:.9f} s while {shortest:.9f} to {longest:.9f} s passed", **more)
    for result in results:
        shares = [tenant["output_throughput"] for tenant in result["tenants"]]
        fair = sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares)) if any(shares) else 0.0
        bench.figure("tenants_jain", fair, "of 1", output_tokens_per_s=shares, completed=result["completed"])


def busy(bench, server, best):
    """Idle, half load, full load: what the ledger says was busy, and what the driver says, in one window each."""
    seconds = bench.pick(15, 1.5)
    loads = [("idle", None), ("half", ["--request-rate", max(0.5, round(best / 2, 2))]),
             ("full", ["--concurrency", bench.pick(256, 8)])]
    for name, load in loads:
        if not bench.has(f"busy_{name}", 2 * seconds + 5):
            continue
        if name == "half" and not best:
            bench.skip("busy_half", "no rate was measured to take half of")
            continue
        thread = None
        if load:
            words, _ = server.bench(MODEL, *load, "--seconds", int(seconds) + bench.pick(8, 2), "--warmup", 0,
                                    "--seed", 9, *lengths(bench))
            thread = threading.Thread(target=bench.run, args=(f"busy_{name}_load", words, 6 * seconds + 30))
            thread.start()
            # Past its look at the idle machine and its first requests.
            time.sleep(bench.pick(6, 1))
        window(bench, server, name, seconds)
        if thread:
            thread.join()


def window(bench, server, name, seconds):
    gauges, driver = [], []
    before, asked, _ = server.metrics()
    until = time.monotonic() + seconds
    found = before
    while time.monotonic() < until:
        gauges.append([serving.gauge(found, name) for name in ("weir_device_busy_ratio", "weir_gpu_utilization_ratio")])
        driver.append(machine.utilisation())
        time.sleep(0.5)
        found, _, _ = server.metrics()
    ledger = {}
    for device, accounts in serving.account(found).items():
        grown = serving.grown(before, device, accounts)
        total = sum(grown.values())
        if total > 0:
            ledger[device] = 1 - grown.get("idle", 0.0) / total
    if not ledger:
        return bench.failed(f"busy_{name}", "the metrics name no device")
    more = {"ledger": ledger, "weir_device_busy_ratio": mean(gauge for gauge, _ in gauges),
            "weir_gpu_utilization_ratio": mean(gauge for _, gauge in gauges), "nvidia_smi_utilization": mean(driver),
            "window_s": seconds, "samples": len(driver)}
    return bench.figure(f"busy_{name}", sum(ledger.values()) / len(ledger), "of the time", **more)


def mean(values):
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
