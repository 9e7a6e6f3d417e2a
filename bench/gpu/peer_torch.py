"""Baselines in torch at our shapes: JSON lines.

    peer_torch.py ops                    products and attention alone: what cuBLAS and SDPA reach on this machine
    peer_torch.py graph SHAPE BATCH      a decoder of our own over fixed buffers, its decode step captured in a CUDA graph
    peer_torch.py eager SHAPE BATCH      transformers as it comes

Weights are drawn on the device; a step's time does not depend on them. On the CPU the graph is left out, so that the
rest can be rehearsed.
"""

import argparse
import json
import statistics
import time

import torch
from torch.nn import functional

# Qwen2: biases on q, k and v, and an output matrix that is the embedding.
SHAPES = {
    "llama-3.1-8b": dict(vocab=128_256, hidden=4096, wide=14_336, layers=32, heads=32, kv_heads=8, dim=128, qwen=False),
    "qwen2.5-0.5b": dict(vocab=151_936, hidden=896, wide=4864, layers=24, heads=14, kv_heads=2, dim=64, qwen=True),
    "tiny-llama": dict(vocab=512, hidden=256, wide=512, layers=2, heads=4, kv_heads=2, dim=64, qwen=False),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WARM_UP = 3


def say(figure, value, unit, **more):
    print(json.dumps({"figure": figure, "value": value, "unit": unit, "torch": torch.__version__, **more}), flush=True)


def clock(work, repeats):
    """Seconds of each of some calls, by CUDA events; by the clock on the CPU."""
    for _ in range(WARM_UP):
        work()
    if DEVICE == "cpu":
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        return times
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in zip(marks, marks[1:])]


def drawn(*shape, std=0.02):
    return torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).normal_(0, std)


class Static:
    """A decoder over fixed buffers: q, k and v in one product, gate and up in one. Keys and values are
    `[layer, 2, row, head, position, dim]`."""

    def __init__(self, shape, batch, positions):
        self.s, self.batch = shape, batch
        q, kv = shape["heads"] * shape["dim"], shape["kv_heads"] * shape["dim"]
        hidden, wide = shape["hidden"], shape["wide"]
        self.embedding = drawn(shape["vocab"], hidden)
        self.head = self.embedding if shape["qwen"] else drawn(shape["vocab"], hidden)
        self.norm = torch.ones(hidden, dtype=torch.bfloat16, device=DEVICE)
        self.layers = [dict(qkv=drawn(q + 2 * kv, hidden), bias=drawn(q + 2 * kv) if shape["qwen"] else None,
                            out=drawn(hidden, q), gate_up=drawn(2 * wide, hidden), down=drawn(hidden, wide))
                       for _ in range(shape["layers"])]
        self.kv = drawn(shape["layers"], 2, batch, shape["kv_heads"], positions, shape["dim"])
        self.ids = torch.zeros(batch, dtype=torch.long, device=DEVICE)
        self.at = torch.full((1,), positions - 64, dtype=torch.long, device=DEVICE)
        self.places = torch.arange(positions, device=DEVICE)
        frequencies = 1.0 / 500_000.0 ** (torch.arange(0, shape["dim"], 2, device=DEVICE).float() / shape["dim"])
        angles = torch.outer(self.places.float(), torch.cat((frequencies, frequencies)))
        self.cos, self.sin = angles.cos().bfloat16(), angles.sin().bfloat16()

    def rotate(self, x, cos, sin):
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    def blocks(self, x, positions, mask, causal):
        """All layers over `x` [rows, tokens, hidden] at `positions`."""
        s, (rows, tokens, _) = self.s, x.shape
        cos, sin = self.cos[positions], self.sin[positions]
        for index, layer in enumerate(self.layers):
            normed = functional.rms_norm(x, (s["hidden"],), self.norm, 1e-5)
            qkv = functional.linear(normed, layer["qkv"], layer["bias"])
            qkv = qkv.view(rows, tokens, -1, s["dim"]).transpose(1, 2)
            q, k, v = qkv.split((s["heads"], s["kv_heads"], s["kv_heads"]), 1)
            q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
            keys, values = self.kv[index, 0], self.kv[index, 1]
            keys.index_copy_(2, positions, k)
            values.index_copy_(2, positions, v)
            if causal:
                attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            else:
                # The queries of a key's head stand beside each other: kernels with a mask know no groups.
                grouped = q.reshape(rows, s["kv_heads"], -1, s["dim"])
                attended = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).view(q.shape)
            x = x + functional.linear(attended.transpose(1, 2).reshape(rows, tokens, -1), layer["out"])
            normed = functional.rms_norm(x, (s["hidden"],), self.norm, 1e-5)
            gate, up = functional.linear(normed, layer["gate_up"]).chunk(2, -1)
            x = x + functional.linear(functional.silu(gate) * up, layer["down"])
        return functional.rms_norm(x, (s["hidden"],), self.norm, 1e-5)

    def decode(self):
        """One id for each row, fed back; the position is in a buffer, so that a captured step moves on."""
        mask = (self.places <= self.at).view(1, 1, 1, -1)
        x = self.blocks(self.embedding[self.ids].unsqueeze(1), self.at, mask, False)
        self.ids.copy_(functional.linear(x[:, 0], self.head).argmax(-1))
        self.at.add_(1)

    def prefill(self, tokens):
        x = self.blocks(self.embedding[:tokens].unsqueeze(0).expand(self.batch, -1, -1), self.places[:tokens], None, True)
        return functional.linear(x[:, -1], self.head).argmax(-1)


def report(name, batch, context, times, **more):
    times = sorted(times)
    pick = lambda percent: 1e3 * times[(len(times) - 1) * percent // 100]  # noqa: E731
    say(name, 1e3 * statistics.median(times), "ms", batch=batch, context=context, p10_ms=pick(10), p90_ms=pick(90),
        tokens_per_s=batch / statistics.median(times), **more)


def graph(shape, batch, context, steps):
    model = Static(SHAPES[shape], batch, context + 64)
    step, captured = model.decode, DEVICE == "cuda"
    if captured:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                model.decode()
        torch.cuda.current_stream().wait_stream(side)
        taken = torch.cuda.CUDAGraph()
        with torch.cuda.graph(taken):
            model.decode()
        step = taken.replay
    report(f"graph_decode_{shape}_b{batch}", batch, context, clock(step, steps), captured=captured)
    if batch == 1:
        times = clock(lambda: model.prefill(context), 5)
        say(f"graph_prefill_{shape}", context / statistics.median(times), "tokens/s", context=context, captured=False)


def eager(shape, batch, context, steps):
    import transformers

    s = SHAPES[shape]
    kind = transformers.Qwen2Config if s["qwen"] else transformers.LlamaConfig
    config = kind(vocab_size=s["vocab"], hidden_size=s["hidden"], intermediate_size=s["wide"], num_hidden_layers=s["layers"],
                  num_attention_heads=s["heads"], num_key_value_heads=s["kv_heads"], head_dim=s["dim"],
                  tie_word_embeddings=s["qwen"], max_position_embeddings=8192, bos_token_id=0, eos_token_id=1)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    cache = transformers.DynamicCache(config=config)
    # A part of all rows' prompts at a time: the activations of 256 whole ones are more than a GPU holds.
    ids = torch.randint(0, s["vocab"], (batch, context), device=DEVICE)
    began = time.perf_counter()
    for part in ids.split(max(1, 32_768 // batch), dim=1):
        out = model(input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    first = time.perf_counter() - began
    last = [out.logits[:, -1].argmax(-1, keepdim=True)]

    def step():
        logits = model(input_ids=last[0], past_key_values=cache, use_cache=True).logits
        last[0] = logits[:, -1].argmax(-1, keepdim=True)

    report(f"eager_decode_{shape}_b{batch}", batch, context, clock(step, steps), prefill_s=first,
           transformers=transformers.__version__)


def ops(small):
    """Products at the shapes of the 8B model for 1, 32, 256 and 2048 tokens, and attention over 1k."""
    s = SHAPES["tiny-llama" if small else "llama-3.1-8b"]
    qkv = (s["heads"] + 2 * s["kv_heads"]) * s["dim"]
    for name, rows, columns in (("qkv", qkv, s["hidden"]), ("gate_up", 2 * s["wide"], s["hidden"]),
                                ("down", s["hidden"], s["wide"]), ("head", s["vocab"], s["hidden"])):
        # Several copies in turn, so that none stays in a cache.
        weights = [drawn(rows, columns) for _ in range(2 if small else 4)]
        for tokens in (1, 8) if small else (1, 32, 256, 2048):
            x, turn = drawn(tokens, columns), [0]

            def product():
                turn[0] = (turn[0] + 1) % len(weights)
                return functional.linear(x, weights[turn[0]])

            took = statistics.median(clock(product, 5 if small else 20))
            say(f"ops_{name}_m{tokens}", 2 * tokens * rows * columns / took / 1e12, "TFLOP/s",
                gb_per_s=2 * rows * columns / took / 1e9, us=1e6 * took)
    context = 64 if small else 1024
    for batch, queries in ((1, context), (1, 1), (4 if small else 256, 1)):
        q, k, v = (drawn(batch, heads, length, s["dim"], std=1.0)
                   for heads, length in ((s["heads"], queries), (s["kv_heads"], context), (s["kv_heads"], context)))

        def attention():
            return functional.scaled_dot_product_attention(q, k, v, is_causal=queries > 1, enable_gqa=True)

        took = statistics.median(clock(attention, 5 if small else 20))
        say(f"ops_attention_b{batch}_q{queries}_k{context}", 1e6 * took, "us", gb_per_s=2 * 2 * k.numel() / took / 1e9)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("ops", "graph", "eager"))
    parser.add_argument("shape", nargs="?", choices=SHAPES)
    parser.add_argument("batch", nargs="?", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="short and few, for a rehearsal")
    options = parser.parse_args()
    context, steps = (64, 3) if options.small else (1024, 32)
    with torch.inference_mode():
        if options.task == "ops":
            ops(options.small)
        else:
            {"graph": graph, "eager": eager}[options.task](options.shape, options.batch, context, steps)


if __name__ == "__main__":
    main()
