"""What transformers says of a model, and how far from it ours is: JSON lines. A process of its own, for its memory.

`--task logits` and `vectors` compare files of `probe logits` with f32 arithmetic on the same weights; `greedy` prints
ids. The gate's figures are those that catch a wrong network and forgive rounding: *regret*, what the reference loses by
our choice of the likeliest id, and *delta*, how far the log-probabilities of its 64 likeliest ids are off.
"""

import argparse
import json
import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy  # noqa: E402 - after what it is told by the environment
import torch  # noqa: E402
import transformers  # noqa: E402

TOP = 64


def tensors(path):
    """The tensors of a safetensors file in f32, in the order of their numbers."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        base = file.tell()
    found = []
    for name in sorted(header, key=lambda name: int(name.split(".")[1])):
        begin, _ = header[name]["data_offsets"]
        data = numpy.memmap(path, numpy.float32, "r", base + begin, tuple(header[name]["shape"]))
        found.append(torch.from_numpy(numpy.array(data)))
    return found


class Reference:
    """transformers, in one type."""

    def __init__(self, folder, dtype, encoder):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
        # The fused kernels of attention may round f32 to less.
        attention = "eager" if dtype == torch.float32 else "sdpa"
        self.model = kind.from_pretrained(folder, dtype=dtype, attn_implementation=attention).to(self.device).eval()

    def ids(self, ids):
        return torch.tensor([ids], device=self.device)

    def logits(self, ids):
        return self.model(input_ids=self.ids(ids), use_cache=False).logits[0].float().cpu()

    def vector(self, ids):
        """The mean over all tokens, control tokens included."""
        return self.model(input_ids=self.ids(ids)).last_hidden_state[0].float().mean(0, keepdim=True).cpu()

    def greedy(self, ids, new):
        """Whole prefixes, no cache: slow, and nothing to get wrong."""
        drawn = []
        for _ in range(new):
            drawn.append(int(self.logits(ids + drawn)[-1].argmax()))
        return drawn


def error(ours, truth):
    """The norm of the difference over the norm of the truth, over all positions and at the worst."""
    ours, truth = torch.cat(ours).double(), torch.cat(truth).double()
    whole = (ours - truth).norm() / truth.norm()
    each = (ours - truth).norm(dim=1) / truth.norm(dim=1)
    return {"relative_error": float(whole), "worst_position": float(each.max()), "compared": ours.numel()}


def gate(ours, reference):
    regrets, deltas = [], []
    for mine, theirs in zip(ours, reference):
        mine, theirs = mine.log_softmax(-1), theirs.log_softmax(-1)
        best, top = theirs.topk(min(TOP, theirs.shape[-1]), dim=-1)
        regrets.append(best[:, 0] - theirs.gather(1, mine.argmax(-1, keepdim=True))[:, 0])
        deltas.append((mine.gather(1, top) - best).abs())
    regret, delta = torch.cat(regrets), torch.cat([one.flatten() for one in deltas])
    return {"regret_max": float(regret.max()), "delta_mean": float(delta.mean()),
            "delta_p99": float(delta.quantile(0.99)), "delta_max": float(delta.max()), "positions": regret.numel()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--ids", required=True)
    parser.add_argument("--task", choices=("logits", "vectors", "greedy"), required=True)
    parser.add_argument("--ours", action="append", default=[])
    parser.add_argument("--new", type=int, default=0)
    options = parser.parse_args()
    with open(options.ids, encoding="utf-8") as file:
        lists = json.load(file)
    encoder = options.task == "vectors"
    f32 = Reference(options.model, torch.float32, encoder)
    if options.task == "greedy":
        print(json.dumps({"ids": [f32.greedy(ids, options.new) for ids in lists]}), flush=True)
        return
    one = Reference.vector if encoder else Reference.logits
    truth = [one(f32, ids) for ids in lists]
    del f32
    bf16 = Reference(options.model, torch.bfloat16, encoder)
    yardstick = [one(bf16, ids) for ids in lists]
    del bf16
    ours = {who: tensors(path) for who, path in (word.split("=", 1) for word in options.ours)}
    if encoder:
        ours = {who: list(found[0].split(1)) for who, found in ours.items()}
    for who, found in [*ours.items(), ("transformers_bf16", yardstick)]:
        line = {"who": who, "reference": "transformers f32"} | error(found, truth)
        if not encoder and who != "transformers_bf16":
            line |= gate(found, yardstick) | {"gate_reference": "transformers bf16"}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
