"""The measured part of bench/RESULTS.md, written from the files that scripts/bench.py leaves."""

import json

BEGIN, END = "<!-- measured: scripts/bench.py --report -->", "<!-- end of what was measured -->"


SIMULATED_BEGIN, SIMULATED_END = "<!-- simulated: scripts/bench.py --report -->", "<!-- end of what was simulated -->"


def write_report(plots, results):
    """Replace what stands between the marks; what is around them is kept."""
    text = between(results.read_text(encoding="utf-8"), BEGIN, END, report(plots))
    results.write_text(between(text, SIMULATED_BEGIN, SIMULATED_END, simulated(plots)), encoding="utf-8")


def between(text, begin, end, part):
    head, rest = text.split(begin, 1)
    return f"{head}{begin}\n{part}\n{end}{rest.split(end, 1)[1]}"


def simulated(plots):
    """Named loads under every policy: what bench/examples/workloads.rs found."""
    figures = json.loads((plots / "workloads.json").read_text(encoding="utf-8"))
    loads = {}
    for name, value in figures.items():
        load, policy, what = name.split(".")
        loads.setdefault(load, {}).setdefault(policy, {})[what] = value
    rows, shared = [], []
    for load, policies in loads.items():
        for policy, of in policies.items():
            if policy == "solo":
                continue
            polite = "-"
            if "polite_ttft_p99_s" in of:
                polite = f"{1000 * of['polite_ttft_p99_s']:,.0f} ({of['polite_caps_over_solo']:+,.2f} caps)"
            jain = f"{of['jain_min']:.4f} ({of['jain_windows']:.0f})" if of["jain_windows"] else "-"
            rows.append([load, policy, f"{of['tokens_per_s']:,.0f}", f"{of['throughput_to_fcfs']:.4f}", jain, polite,
                         f"{of['ttft_p99_s']:,.1f}", f"{of['preemptions']:.0f}"])
            if "hit_rate" in of:
                shared.append([load, policy, f"{of['hit_rate']:.1%}", f"{of['hit_rate_to_locality']:.3f}"])
    charts = "\n\n".join(f"![](plots/workload_{load}.svg)" for load in loads)
    return "\n\n".join((
        table(["load", "policy", "tokens/s", "to FCFS", "least Jain's index (windows)", "polite tenant's p99 TTFT, ms (over solo)",
               "p99 TTFT of all, s", "preemptions"], rows),
        table(["load", "policy", "prompt tokens found in the cache", "to locality only"], shared), charts))


def report(plots):
    run = json.loads((plots / "run.json").read_text(encoding="utf-8"))
    figures = run["figures"]
    void = sum(figure["void"] for figure in figures.values())
    parts = [
        f"## This machine, {run['date']}",
        f"{run['machine']}; SmolLM2-135M-Instruct Q4_1 (98 MB), all-MiniLM-L6-v2 F32, default settings. `{run['command']}`, "
        f"{run['minutes']:g} minutes; the client on the same CPUs; {run['busy_before']:.1%} of the machine in use by others "
        "before.\n" + ("No figure is void." if not void else
                       f"**{void} of {len(figures)} figures are void**, marked \\*: something else used the machine."),
        "A rate stands with its lowest and highest fifth of the steady window, a time over repeats with its extremes. "
        "Latencies are p50 / p99 in ms.",
    ]
    for name, title, unit, per_second in (
            ("smollm2", "SmolLM2: 32 prompt tokens, 32 output tokens, streamed", "output tokens/s", "output_throughput"),
            ("minilm", "MiniLM: one input of 32 tokens", "embeddings/s", "embeddings_per_s"),
            ("fake", "`fake:step=4ms,token=20us`: 32 prompt tokens, 32 output tokens, streamed", "output tokens/s",
             "output_throughput")):
        closed, opened = levels(plots, f"{name}_concurrency"), levels(plots, f"{name}_rate")
        if closed:
            parts += [f"### {title}", closed_table(closed, unit, per_second), f"![](plots/{name}_concurrency.svg)"]
        if opened:
            parts += [open_words(opened[0]), open_table(opened), f"![](plots/{name}_rate.svg)"]
    parts += [part for part in (processor_table(figures), rates_table(plots), embeddings_table(plots),
                                machine_table(figures)) if part]
    return "\n\n".join(parts)


def levels(plots, name):
    path = plots / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def number(value):
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def mark(clean):
    return "" if clean else " \\*"


def spread(level, field):
    low, high = level.get(f"{field}_low"), level.get(f"{field}_high")
    around = f" ({number(low)} to {number(high)})" if low is not None else ""
    return number(level.get(field)) + around + mark(level["clean"])


def latency(level, name):
    median = level.get(f"median_{name}_ms")
    return "-" if median is None else f"{number(median)} / {number(level[f'p99_{name}_ms'])}"


def latencies(found):
    """The columns of latencies that a sweep has: their titles, and the names in its levels."""
    return [(title, name) for title, name in (("TTFT", "ttft"), ("ITL", "itl"), ("end to end", "e2el"))
            if any(level.get(f"median_{name}_ms") is not None for level in found)]


def closed_table(found, unit, per_second):
    columns = latencies(found)
    rows = [[str(level["max_concurrency"]), spread(level, per_second), number(level["request_throughput"]),
             *(latency(level, name) for _, name in columns), number(level.get("server_us_per_request"))] for level in found]
    return table(["concurrency", unit, "requests/s", *(title for title, _ in columns), "`weir`, us of CPU per request"], rows)


def open_words(level):
    limits = ", ".join(f"{name} {limit:g} ms" for name, limit in level["goodput"].items() if limit is not None)
    return f"Open loop, Poisson arrivals; good requests keep {limits}."


def open_table(found):
    columns = latencies(found)
    rows = [[f"{number(level['request_rate'])} ({number(level['offered_throughput'])})",
             spread(level, "request_throughput"), number(level["request_goodput"]), str(level["failed"]),
             *(latency(level, name) for _, name in columns), str(level["max_concurrent_requests"]),
             number(level["late_ms_max"])] for level in found]
    return table(["offered/s (in the window)", "completed/s", "good/s", "refused", *(title for title, _ in columns),
                  "open at most", "client late at worst, ms"], rows)


def processor_table(figures):
    kinds = (("whole", "in one piece"), ("streamed", "streamed"), ("counted", "streamed with running token counts"))
    rows = []
    for kind, title in kinds:
        if f"{kind}_server_us_per_request" in figures:
            cells = [of(figures[f"{kind}_{field}"]) for field in (
                "server_us_per_request", "executor_us_per_request", "client_us_per_request", "request_throughput")]
            rows.append([title, *cells])
    if not rows:
        return ""
    return ("### Processor time of a short request\n\nUser and system, us per request: 16 prompt tokens, 8 output tokens, 32 "
            "connections kept alive, `fake:step=100us,token=1us`.\n\n"
            + table(["", "`weir`", "executor", "this client", "requests/s"], rows))


def of(figure):
    around = f" ({number(figure['low'])} to {number(figure['high'])})" if figure["low"] != figure["high"] else ""
    return number(figure["value"]) + around + mark(not figure["void"])


def rates_table(plots):
    prompts, decode = levels(plots, "smollm2_prompts"), levels(plots, "smollm2_decode")
    if not (prompts and decode):
        return ""
    rows = [
        ["prompt tokens/s (512 each)"] + [
            number(level["prompt_tokens_per_s"]) + mark(level["clean"]) for level in prompts],
        ["decode tokens/s, all streams together (128 each)"]
        + [number(level["decode_tokens_per_s"]) + mark(level["clean"]) for level in decode],
        ["time to first token (16-token prompts)"] + [latency(level, "ttft") for level in decode],
        ["inter-token latency"] + [latency(level, "itl") for level in decode],
    ]
    heads = [f"concurrency {level['max_concurrency']}" for level in decode]
    return "### SmolLM2: prompts and decoding apart\n\n" + table(["", *heads], rows)


def embeddings_table(plots):
    rows = []
    for name, title in (("minilm_64x32", "64 inputs of 32 tokens in one request"),
                        ("minilm_32x256", "32 inputs of 256 tokens in one request")):
        rows += [[title, spread(level, "embeddings_per_s")] for level in levels(plots, name)]
    return "### MiniLM: many inputs\n\n" + table(["", "embeddings/s"], rows) if rows else ""


def machine_table(figures):
    rows = [[title, of(figures[name])] for name, title in (
        ("start_cold_s", "start to `/ready`, files evicted from the page cache, s"),
        ("start_warm_s", "start to `/ready`, warm, s"),
        ("server_resident_mb_after_start", "`weir`, resident after start, MB"),
        ("server_resident_mb_after_load", "`weir`, resident after load, MB"),
        ("executor_resident_mb_after_start", "executor, resident after start, MB (1,024 of it the KV cache)"),
        ("executor_resident_mb_after_load", "executor, resident after load, MB"),
    ) if name in figures]
    return "### Start and memory\n\n" + table(["", ""], rows) if rows else ""
