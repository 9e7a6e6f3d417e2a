"""embed: the BERT base shape, alone in the device's steps and over HTTP."""

import place
import serving

MODEL = "model"


def run(bench):
    shape = bench.pick("bert-base", "tiny-bert")
    folder = bench.place.model(bench, shape, "bf16")
    if not folder:
        return
    for tokens in bench.pick((32, 128, 512), (32,)):
        steps(bench, folder, tokens)
    settings = serving.engine(bench, *bench.pick(("1GiB", 256, 32_768), ("64MiB", 64, 512)))
    server = serving.Server(bench.place, {MODEL: folder}, settings, min(120, bench.left() - 10))
    try:
        for tokens in bench.pick((32, 128, 512), (32,)):
            for inputs, concurrency in bench.pick(((1, 1), (1, 64), (32, 16)), ((1, 2), (4, 2))):
                over_http(bench, server, tokens, inputs, concurrency)
    finally:
        server.close()


def steps(bench, folder, tokens):
    """One step of as many inputs as 16384 tokens are."""
    batch = bench.pick(16_384, 128) // tokens
    name = f"step_{tokens}_tokens_x{batch}"
    if not bench.has(name, bench.pick(20, 2)):
        return
    words = bench.place.probe("steps", "--model", folder, "--batch", batch, "--context", tokens, "--new",
                              bench.pick(20, 3))
    command = " ".join(map(str, words))
    for line in place.lines(bench.run(name, words, 90)):
        if line["kind"] == "embed":
            more = {"device_us": line["device_us"], "host_us": line["host_us"], "launches": line["launches"],
                    "embeddings_per_s": line["tokens_per_s"] / tokens}
            bench.figure(name, line["tokens_per_s"], "tokens/s", command=command, **more)


def over_http(bench, server, tokens, inputs, concurrency):
    name = f"http_{tokens}_tokens_x{inputs}_c{concurrency}"
    seconds = bench.pick(10, 1)
    if not bench.has(name, seconds + bench.pick(10, 2)):
        return
    words, output = server.bench(MODEL, "--kind", "embeddings", "--prompt-tokens", tokens, "--inputs", inputs,
                                 "--concurrency", concurrency, "--seconds", seconds, "--vocab", bench.pick(30_000, 400))
    for result in serving.levels(bench, name, words, output, 4 * seconds + 30):
        if result["failed"] or not result["completed"]:
            bench.failed(name, f"{result['failed']} requests failed: {result['failures']}")
            continue
        more = {"tokens_per_s": result["prompt_throughput"], "p50_ms": result.get("p50_e2el_ms"),
                "p99_ms": result.get("p99_e2el_ms"), "server_us_per_request": result.get("server_us_per_request"),
                "client_us_per_request": result.get("client_us_per_request"), "void": result["void"]}
        bench.figure(name, result["embeddings_per_s"], "embeddings/s", command=" ".join(map(str, words)), **more)
