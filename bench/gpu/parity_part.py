"""parity: kernels against their CPU bodies, models against transformers, and what compute-sanitizer says."""

import importlib.util
import json
import pathlib
import random
import re
import shutil
import sys

import place

HERE = pathlib.Path(__file__).resolve().parent
REFERENCE = (sys.executable, "-B", HERE / "reference.py")
# What must hold. The three of the gate are of log-probabilities, in nats, against transformers in bf16.
ERROR_MAX, REGRET_MAX, DELTA_MEAN_MAX, DELTA_P99_MAX = 1e-2, 0.20, 0.06, 0.20


def run(bench):
    kernels(bench)
    models(bench)
    sanitizer(bench)


def kernels(bench):
    """Every finding of `probe kernels`. It fails where one does not hold, and the findings are kept all the same."""
    words = bench.place.probe("kernels")
    done = place.run(words, min(150, bench.left()), bench.place.environment(), allow=(1,))
    found, command = [], " ".join(map(str, words))
    for line in place.lines(done.output):
        if line["kind"] == "unavailable":
            bench.unavailable("kernels", line["reason"])
        elif line["kind"] == "findings":
            bench.figure("kernels_failed", line["failed"], f"of {line['findings']} findings", command=command)
        elif "error" in line:
            found.append((f"kernel {line['check']}", None, "relative error", {"reason": line["error"], "holds": False}))
        else:
            more = {key: line[key] for key in ("check", "compared", "bound", "holds")}
            more["reason"] = None if line["holds"] else "out of bound"
            found.append((f"kernel {line['case']}", line["worst"], "relative error", more))
    bench.findings(found)
    if done.status != "ok":
        bench.failed("kernels", done.reason or f"it ran for {done.seconds:.0f} s and was ended", command=command)


def models(bench):
    torch = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "numpy"))
    if not torch:
        bench.unavailable("models", "this python has no torch, transformers and numpy")
    # Few layers of real width: what a layer does is the same in all of them, and a reference in f32 takes time.
    cases = bench.pick((("tiny-llama", "f32", None), ("tiny-qwen2", "f32", None), ("tiny-bert", "f32", None),
                        ("qwen2.5-0.5b", "bf16", 4), ("llama-3.1-8b", "bf16", 4), ("bert-base", "bf16", None)),
                       (("tiny-llama", "f32", None), ("tiny-qwen2", "bf16", None), ("tiny-bert", "f32", None)))
    for shape, dtype, layers in cases:
        if bench.has(f"logits_{shape}", bench.pick(45, 5)):
            folder = bench.place.model(bench, shape, dtype, layers)
            if folder:
                compare(bench, f"{shape}_{dtype}", folder, "bert" in shape, torch)
                if dtype == "f32" and "bert" not in shape:
                    greedy(bench, shape, folder, torch)


def texts(folder, encoder, count=8):
    """Lists of ids of different lengths, the same for every run."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    chance = random.Random(1)
    low, high = (104, config["vocab_size"]) if encoder else (0, min(config["vocab_size"], 128_000) - 64)
    lists = [[chance.randrange(low, high) for _ in range(chance.randrange(9, 90))] for _ in range(count)]
    return [[101, *ids, 102] for ids in lists] if encoder else lists


def compare(bench, name, folder, encoder, torch):
    """Logits (or vectors) by each path of ours against transformers in f32 on the same weights, its own bf16 beside it."""
    ids = bench.place.folder / f"ids-{name}.json"
    ids.write_text(json.dumps(texts(folder, encoder)))
    ours = {}
    for path in ("decode",) if encoder else ("decode", "prefill"):
        out = bench.place.folder / f"{name}-{path}.safetensors"
        words = bench.place.probe("logits", "--model", folder, "--ids", ids, "--out", out, "--path", path)
        if bench.run(f"logits_{name}_{path}", words, 120) is not None:
            ours[path] = out
    if not torch or not ours:
        return
    words = [*REFERENCE, "--model", folder, "--ids", ids, "--task", "vectors" if encoder else "logits",
             *(word for path, out in ours.items() for word in ("--ours", f"{path}={out}"))]
    command = " ".join(map(str, words))
    for line in place.lines(bench.run(f"logits_{name}", words, 200)):
        # What transformers itself loses in bf16 is beside our figure, not under our bound.
        bound = ERROR_MAX if line["who"] != "transformers_bf16" else float("inf")
        judge(bench, f"relative_error_{name}_{line['who']}", line["relative_error"], "of the norm", bound, command,
              worst_position=line["worst_position"], compared=line["compared"], reference=line["reference"])
        if "regret_max" in line:
            gate = {"regret_max": REGRET_MAX, "delta_mean": DELTA_MEAN_MAX, "delta_p99": DELTA_P99_MAX}
            for field, bound in gate.items():
                judge(bench, f"{field}_{name}_{line['who']}", line[field], "nat", bound, command,
                      reference=line["gate_reference"], delta_max=line["delta_max"], positions=line["positions"])
    for out in ours.values():
        out.unlink()


def judge(bench, name, value, unit, bound, command, **more):
    if value <= bound:
        bench.figure(name, value, unit, command=command, bound=bound if bound < float("inf") else None, **more)
    else:
        bench.failed(name, f"{value:.6g} is above {bound}", command=command, value=value, unit=unit, bound=bound, **more)


def greedy(bench, shape, folder, torch):
    """The likeliest ids must be the same ones: of transformers, and of our own CPU."""
    ids = bench.place.folder / f"greedy-{shape}.json"
    ids.write_text(json.dumps([ids[:24] for ids in texts(folder, False)]))
    new = bench.pick(32, 8)
    words = ["greedy", "--model", folder, "--ids", ids, "--new", new]
    drawn = place.lines(bench.run(f"greedy_{shape}", bench.place.probe(*words), 60))
    if not drawn:
        return
    references = {}
    if bench.place.device != "cpu":
        references["weir_cpu"] = place.lines(bench.run(f"greedy_{shape}_weir_cpu", bench.place.cpu_probe(*words), 60))
    if torch:
        of_torch = [*REFERENCE, "--model", folder, "--ids", ids, "--task", "greedy", "--new", new]
        references["transformers_f32"] = place.lines(bench.run(f"greedy_{shape}_transformers", of_torch, 90))
    for who, lines in references.items():
        if lines:
            pairs = [(a, b) for ours, theirs in zip(drawn[0]["ids"], lines[0]["ids"]) for a, b in zip(ours, theirs)]
            equal = sum(a == b for a, b in pairs)
            name, unit = f"greedy_equal_{shape}_{who}", f"of {len(pairs)} ids"
            if equal == len(pairs):
                bench.figure(name, equal, unit)
            else:
                bench.failed(name, "ids differ", value=equal, unit=unit)


def sanitizer(bench):
    tools = ("memcheck", "synccheck", "racecheck")
    found = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if bench.place.device != "cuda" or not found:
        for tool in tools:
            why = "there is no compute-sanitizer" if bench.place.device == "cuda" else "this is the CPU"
            bench.unavailable(f"sanitizer_{tool}", why)
        return
    for number, tool in enumerate(tools):
        if not bench.has(f"sanitizer_{tool}", 30):
            continue
        words = [found, "--tool", tool, "--error-exitcode", 86, "--print-limit", 20, *bench.place.probe("kernels")]
        # It makes kernels slower by tens of times; what time there is, the tools share.
        done = place.run(words, (bench.left() - 10) / (len(tools) - number), bench.place.environment(), allow=(1, 86))
        said = [line for line in done.output.splitlines() if line.startswith("=========")]
        summary = next((line.strip("= ") for line in reversed(said) if "SUMMARY" in line), None)
        command = " ".join(map(str, words))
        if done.status == "timeout":
            bench.skip(f"sanitizer_{tool}", f"time: not over after {done.seconds:.0f} s")
        elif summary is None:
            bench.unavailable(f"sanitizer_{tool}", (" | ".join(said[-3:]) or done.reason or "it said nothing")[:400])
        elif re.search(r"\b0 (errors|hazards)", summary):
            bench.figure(f"sanitizer_{tool}", 0, "errors", command=command, summary=summary)
        else:
            bench.failed(f"sanitizer_{tool}", summary, command=command, said=said[:20])
