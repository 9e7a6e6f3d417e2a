"""roofline: what the device can do, then how close steps come to it."""

import floor
import place


def run(bench):
    rates = device(bench)
    for shape in bench.pick(("qwen2.5-0.5b", "llama-3.1-8b"), ("tiny-qwen2", "tiny-llama")):
        if not bench.has(shape, bench.pick(60, 5)):
            continue
        folder = bench.place.model(bench, shape, "bf16")
        if folder:
            for batch in bench.pick((1, 32, 256), (1, 4)):
                steps(bench, shape, folder, batch, rates)


def device(bench):
    """The rates of the device by name, each recorded."""
    words = bench.place.probe("device")
    output = bench.run("device", words, 120)
    rates = {}
    for line in place.lines(output):
        if line["kind"] == "rate":
            rates[line["name"]] = line["value"]
            bench.figure(f"{line['name']}_rate", line["value"], line["unit"], command=" ".join(map(str, words)),
                         how=line["how"])
    return rates


def steps(bench, shape, folder, batch, rates):
    context, new, prefill = bench.pick((1024, 32, 2048), (64, 8, 32))
    name = f"decode_{shape}_b{batch}"
    words = bench.place.probe("steps", "--model", folder, "--batch", batch, "--context", context, "--new", new,
                              "--prefill", prefill)
    command = " ".join(map(str, words))
    costs = floor.costs(folder)
    # By the first estimates of an untuned executor: prompts at a tenth of the floor, after the loading.
    estimate = bench.pick(30 + batch * context / 5000, 2)
    if not bench.has(name, estimate):
        return
    for line in place.lines(bench.run(name, words, bench.left())):
        if line["kind"] == "load":
            bench.figure(f"load_{shape}_b{batch}", line["seconds"], "s", command=command)
        if line["kind"] == "prefill":
            more = {"step_tokens": line["step_tokens"], "device_us": line["device_us"], "host_us": line["host_us"]}
            if "matrix" in rates:
                ceiling = costs.prefill_tokens_per_s(context, rates["matrix"])
                more |= {"floor": ceiling, "fraction_of_floor": line["tokens_per_s"] / ceiling}
            bench.figure(f"prefill_{shape}_b{batch}", line["tokens_per_s"], "tokens/s", command=command, **more)
        if line["kind"] == "decode":
            decode(bench, name, line, costs, rates, command)


def decode(bench, name, line, costs, rates, command):
    took = line["device_us"]["median"] / 1e3
    more = {"context": line["context"], "p10_ms": line["device_us"]["p10"] / 1e3,
            "p90_ms": line["device_us"]["p90"] / 1e3, "host_ms": line["host_us"]["median"] / 1e3,
            "tokens_per_s": line["tokens_per_s"], "launches": line["launches"]}
    if "copy" in rates and "matrix" in rates:
        least = 1e3 * costs.decode_seconds(line["batch"], line["context"], rates["copy"], rates["matrix"])
        more |= {"floor_ms": least, "fraction_of_floor": least / took}
    if line["launches"] and bench.place.device == "cuda":
        more["launch_floor_ms"] = 1e3 * floor.NODE_SECONDS * line["launches"]
    bench.figure(name, took, "ms", command=command, **more)
    if "fraction_of_floor" in more:
        bench.figure(f"{name}_fraction", more["fraction_of_floor"], "of the floor")
