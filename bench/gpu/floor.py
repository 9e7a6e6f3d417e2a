"""What a step takes at least: the weights and the keys and values must be read, and the products computed.

With rates measured on the machine itself: bytes / copy rate, operations / matrix rate, whichever is longer. Small models
are held up by the number of launches before either; that figure stands beside a fraction where launches are counted.
"""

import dataclasses
import json

# From one node of a graph to the next, beside its work: about 1.3 us of gap and as much for a tiny kernel.
NODE_SECONDS = 2.5e-6


@dataclasses.dataclass
class Costs:
    """Of one model."""

    weights_read: int  # bytes of a step; the input embedding only where it is the output, too
    kv_bytes: int  # of one position
    parameters: int  # of the matrices that a prompt's token goes through
    output_parameters: int  # of the output matrix, which a drawn token goes through as well
    attention_flops: float  # for one query and one key, all layers

    def decode_seconds(self, batch, context, copy_rate, matrix_rate):
        read = self.weights_read + batch * context * self.kv_bytes
        flops = batch * (2 * (self.parameters + self.output_parameters) + context * self.attention_flops)
        return max(read / copy_rate, flops / matrix_rate)

    def prefill_tokens_per_s(self, context, matrix_rate):
        """Of a prompt of `context` tokens, half of which a token sees on average."""
        return matrix_rate / (2 * self.parameters + context / 2 * self.attention_flops)


def costs(folder, bytes_per_weight=2, bytes_per_kv=2):
    """Of the decoder in a folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    matrices = layers * (attention + 3 * hidden * config["intermediate_size"])
    output = config["vocab_size"] * hidden
    return Costs(weights_read=(matrices + output) * bytes_per_weight,
                 kv_bytes=2 * layers * kv_heads * head_dim * bytes_per_kv, parameters=matrices, output_parameters=output,
                 attention_flops=4.0 * layers * heads * head_dim)
