"""Model files by hand, right ones and wrong ones, with nothing but the standard library.

`good_folder` and `good_gguf` write a tiny decoder that loads and answers; each case of `CASES` spoils one of them in one way
and says what the answer must be: a code, and words of its message.
"""

import base64
import json
import math
import os
import pathlib
import socket
import struct

HIDDEN, VOCAB, CONTEXT = 32, 8, 64
SHAPES = {
    "model.embed_tokens.weight": [VOCAB, HIDDEN], "model.norm.weight": [HIDDEN],
    "model.layers.0.input_layernorm.weight": [HIDDEN], "model.layers.0.post_attention_layernorm.weight": [HIDDEN],
    "model.layers.0.self_attn.q_proj.weight": [32, HIDDEN], "model.layers.0.self_attn.k_proj.weight": [16, HIDDEN],
    "model.layers.0.self_attn.v_proj.weight": [16, HIDDEN], "model.layers.0.self_attn.o_proj.weight": [HIDDEN, 32],
    "model.layers.0.mlp.gate_proj.weight": [32, HIDDEN], "model.layers.0.mlp.up_proj.weight": [32, HIDDEN],
    "model.layers.0.mlp.down_proj.weight": [HIDDEN, 32],
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
}


def tokenizer():
    return {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None,
            "decoder": None, "model": {"type": "BPE", "vocab": {letter: i for i, letter in enumerate("abcdefgh")},
                                       "merges": [], "unk_token": None}}


def floats(count, seed):
    return b"".join(struct.pack("<f", ((i * 37 + seed) % 19) / 19 - 0.5) for i in range(count))


def safetensors(shapes=SHAPES, change=None, extra=b""):
    """A weight file; `change` may spoil the header before it is written."""
    header, data = {}, b""
    for name, shape in shapes.items():
        begin = len(data)
        data += floats(math.prod(shape), begin)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    if change:
        header = change(header) or header
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data + extra


def good_folder(path, config=CONFIG, tokens=None, weights=None, more=None):
    """A model's folder. Each part is data, or the bytes of the file; `more` maps further names to bytes."""
    path.mkdir()
    parts = {"config.json": config, "tokenizer.json": tokens or tokenizer(), "model.safetensors": weights or safetensors()}
    for name, part in (parts | (more or {})).items():
        if part is not None:
            (path / name).write_bytes(part if isinstance(part, bytes) else json.dumps(part).encode())


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
    "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
    "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight", "model.layers.0.self_attn.k_proj.weight": "blk.0.attn_k.weight",
    "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
    "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
    "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight", "model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up.weight",
    "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
}


def strings(values):
    return struct.pack("<IQ", STRING, len(values)) + b"".join(text(value) for value in values)


class Gguf:
    """A GGUF file put together piece by piece; cases change the pieces."""

    def __init__(self):
        self.magic, self.version, self.counts, self.cut, self.tail = b"GGUF", 3, None, None, 0
        number = lambda value: (U32, struct.pack("<I", value))  # noqa: E731
        real = lambda value: (F32, struct.pack("<f", value))  # noqa: E731
        self.pairs = {
            "general.architecture": (STRING, text("llama")), "llama.embedding_length": number(HIDDEN),
            "llama.block_count": number(1), "llama.feed_forward_length": number(32),
            "llama.attention.head_count": number(2), "llama.attention.head_count_kv": number(1),
            "llama.context_length": number(CONTEXT), "llama.attention.layer_norm_rms_epsilon": real(1e-5),
            "llama.rope.freq_base": real(10000.0), "tokenizer.ggml.model": (STRING, text("gpt2")),
            "tokenizer.ggml.pre": (STRING, text("smollm")),
            "tokenizer.ggml.tokens": (ARRAY, strings("abcdefgh")), "tokenizer.ggml.merges": (ARRAY, strings([])),
        }
        self.more = []
        self.tensors, self.data = [], b""
        for name, shape in SHAPES.items():
            self.add_tensor(GGUF_NAMES[name], list(reversed(shape)))

    def add_tensor(self, name, dims):
        self.data += b"\0" * (-len(self.data) % 32)
        self.tensors.append([name, dims, 0, len(self.data)])
        self.data += floats(math.prod(dims), len(self.data))

    def bytes(self):
        pairs = [(key, *value) for key, value in self.pairs.items()] + self.more
        out = self.magic + struct.pack("<I", self.version)
        out += struct.pack("<QQ", *(self.counts or (len(self.tensors), len(pairs))))
        for key, kind, value in pairs:
            out += text(key) + struct.pack("<I", kind) + value
        for name, dims, kind, offset in self.tensors:
            out += text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", dim) for dim in dims)
            out += struct.pack("<IQ", kind, offset)
        out += b"\0" * (-len(out) % 32) + self.data
        return out[:self.cut]


def good_gguf(path):
    path.write_bytes(Gguf().bytes())


INVALID, UNSUPPORTED, COSTLY, SOURCE, LARGE = (
    "invalid_model_file", "unsupported_model", "model_too_costly_to_inspect", "invalid_source", "model_too_large")
CASES = {}
# Sources that take as long as an inspection may: for full runs.
SLOW_CASES = {}


def case(name, code, words):
    """Registers a maker of one hostile source: it is called with the path that the source must have."""
    def register(make):
        assert name not in CASES
        CASES[name] = (make, code, words)
        return make
    return register


def gguf_case(name, code, words, change):
    def make(path):
        file = Gguf()
        change(file)
        path.write_bytes(file.bytes())
    case(name + ".gguf", code, words)(make)


def put(key, kind, value):
    return lambda file: file.pairs.__setitem__(key, (kind, value))


def add(key, kind, value):
    return lambda file: file.more.append((key, kind, value))


def attribute(name, value):
    return lambda file: setattr(file, name, value)


def tensor(index, field, value):
    return lambda file: file.tensors[index].__setitem__(field, value)


def u32(value):
    return struct.pack("<I", value)


gguf_case("magic", INVALID, "magic", attribute("magic", b"GGML"))
gguf_case("version-1", UNSUPPORTED, "version 1", attribute("version", 1))
gguf_case("big-endian", UNSUPPORTED, "big-endian", attribute("version", 3 << 24))
gguf_case("alignment-0", INVALID, "general.alignment", put("general.alignment", U32, u32(0)))
gguf_case("alignment-3", INVALID, "general.alignment", put("general.alignment", U32, u32(3)))
gguf_case("alignment-huge", INVALID, "general.alignment", put("general.alignment", U32, u32(1 << 31)))
gguf_case("alignment-text", INVALID, "general.alignment", put("general.alignment", STRING, text("32")))
gguf_case("shape-product", INVALID, "does not fit", tensor(0, 1, [1 << 33, 1 << 33]))
gguf_case("shape-sum", INVALID, "past the end", tensor(0, 1, [1 << 40]))
gguf_case("string-2-63", INVALID, "a string of 9223372036854775808", add("long", STRING, struct.pack("<Q", 1 << 63)))
gguf_case("string-past-end", INVALID, "pass the end", add("long", STRING, struct.pack("<Q", 1 << 21)))
gguf_case("tensor-count", INVALID, "tensors and", attribute("counts", ((1 << 64) - 1, 1)))
gguf_case("pair-count", INVALID, "values", attribute("counts", (1, 1 << 40)))
gguf_case("array-count", INVALID, "elements", add("list", ARRAY, struct.pack("<IQ", U32, (1 << 64) - 1)))
gguf_case("array-nested", INVALID, "elements of type 9", add("list", ARRAY, struct.pack("<IQIQ", ARRAY, 1, ARRAY, 1)))
gguf_case("value-type", INVALID, "value type 77", add("odd", 77, b""))
gguf_case("boolean", INVALID, "boolean of value 2", add("odd", BOOL, b"\x02"))
gguf_case("key-not-utf8", INVALID, "UTF-8", add(b"\xff\xfe", U32, u32(1)))
gguf_case("key-long", INVALID, "a string of 5000", add("k" * 5000, U32, u32(1)))
gguf_case("key-twice", INVALID, "appears twice", add("general.architecture", STRING, text("qwen2")))
gguf_case("tensor-twice", INVALID, "appears twice", tensor(2, 0, "token_embd.weight"))
gguf_case("overlap", INVALID, "overlap", tensor(1, 3, 32))
gguf_case("off-alignment", INVALID, "off the alignment", tensor(1, 3, 1025))
gguf_case("offset-wraps", INVALID, "past the end", tensor(1, 3, (1 << 64) - 32))
gguf_case("dims-5", INVALID, "5 dimensions", tensor(0, 1, [1, 1, 1, 1, 1]))
gguf_case("dims-0", INVALID, "0 dimensions", tensor(0, 1, []))
gguf_case("dims-huge", INVALID, "dimensions", tensor(0, 1, [1] * 1000))
gguf_case("dim-empty", INVALID, "empty dimension", tensor(0, 1, [32, 0]))
gguf_case("block-broken", INVALID, "does not fit", lambda file: file.tensors[0].__setitem__(slice(1, 3), [[33, 8], 2]))
gguf_case("type-iq2-xxs", UNSUPPORTED, "IQ2_XXS", lambda file: file.tensors[0].__setitem__(slice(1, 3), [[256, 1], 16]))
gguf_case("type-unknown", UNSUPPORTED, "type number 99", tensor(0, 2, 99))
gguf_case("split", UNSUPPORTED, "split model", add("split.count", U32, u32(2)))
gguf_case("architecture", UNSUPPORTED, "`rwkv`", put("general.architecture", STRING, text("rwkv")))
gguf_case("architecture-number", UNSUPPORTED, "general.architecture", put("general.architecture", U32, u32(1)))
gguf_case("heads-0", UNSUPPORTED, "head_count", put("llama.attention.head_count", U32, u32(0)))
gguf_case("heads-odd", UNSUPPORTED, "cannot be shared", put("llama.attention.head_count", U32, u32(3)))
gguf_case("layers-1e9", UNSUPPORTED, "block_count", put("llama.block_count", U32, u32(10 ** 9)))
gguf_case("layers-more", INVALID, "blk.1.", put("llama.block_count", U32, u32(2)))
gguf_case("context-0", UNSUPPORTED, "context_length", put("llama.context_length", U32, u32(0)))
gguf_case("context-huge", UNSUPPORTED, "too large to be run", put("llama.context_length", U32, u32(1 << 24)))
gguf_case("rope-nan", UNSUPPORTED, "rope.freq_base", put("llama.rope.freq_base", F32, struct.pack("<f", math.nan)))
gguf_case("rope-infinite", UNSUPPORTED, "rope.freq_base", put("llama.rope.freq_base", F32, struct.pack("<f", math.inf)))
gguf_case("shape-other", INVALID, "has shape", lambda file: file.tensors[4].__setitem__(1, [32, 16]))
gguf_case("tensor-missing", INVALID, "no tensor", lambda file: file.tensors.pop())
gguf_case("tensor-unknown", UNSUPPORTED, "does not use", lambda file: file.add_tensor("blk.0.odd.weight", [8]))
gguf_case("no-tokenizer", UNSUPPORTED, "no tokenizer", lambda file: file.pairs.pop("tokenizer.ggml.model"))
gguf_case("word-rule", UNSUPPORTED, "word rule", put("tokenizer.ggml.pre", STRING, text("klingon")))
gguf_case("merge-unknown", INVALID, "not made of tokens", put("tokenizer.ggml.merges", ARRAY, strings(["a b"])))
gguf_case("vocabulary-large", INVALID, "rows for 8", put("tokenizer.ggml.tokens", ARRAY, strings("abcdefghi")))
gguf_case("template-long", INVALID, "chat template", add("tokenizer.chat_template", STRING, text("x" * 300_000)))
for end in (4, 20, 100, 700, 1500, -40):
    gguf_case(f"cut-{end}", INVALID, "past the end" if end == -40 else "the end of the file", attribute("cut", end))


@case("empty.gguf", INVALID, "is empty")
def _(path):
    path.write_bytes(b"")


@case("sparse.gguf", LARGE, "the machine has")
def _(path):
    # Three quarters of a terabyte of weights in a file that takes none of the disk.
    wide, file = 1 << 16, Gguf()
    file.pairs["llama.embedding_length"] = (U32, u32(wide))
    file.pairs["llama.feed_forward_length"] = (U32, u32(1 << 20))
    file.pairs["llama.attention.key_length"] = (U32, u32(16))
    end = 0
    for entry in file.tensors:
        entry[1] = [wide if dim == HIDDEN and not ("attn_output" in entry[0] and at == 0) else dim
                    for at, dim in enumerate(entry[1])]
        if "attn_q" in entry[0]:
            entry[1] = [wide, 32]
        if "ffn_gate" in entry[0] or "ffn_up" in entry[0]:
            entry[1] = [wide, 1 << 20]
        if "ffn_down" in entry[0]:
            entry[1] = [1 << 20, wide]
        entry[3], end = end, end + (4 * math.prod(entry[1]) + 31) // 32 * 32
    file.data = b""
    header = file.bytes()
    path.write_bytes(header)
    os.truncate(path, len(header) + end)


@case("encoder-endless", LARGE, "the machine has")
def _(path):
    # Positions cost one row of weights each, in a sparse file none; a step of so many tokens would cost 64 TiB.
    wide, deep = 1 << 20, 1 << 24
    shapes = {"embeddings.word_embeddings.weight": [VOCAB, 16], "embeddings.position_embeddings.weight": [deep, 16],
              "embeddings.token_type_embeddings.weight": [2, 16], "embeddings.LayerNorm.weight": [16],
              "embeddings.LayerNorm.bias": [16]}
    layer = "encoder.layer.0."
    for name, rows, columns in [("attention.self.query", 16, 16), ("attention.self.key", 16, 16), ("attention.self.value", 16, 16),
                                ("attention.output.dense", 16, 16), ("intermediate.dense", wide, 16), ("output.dense", 16, wide)]:
        shapes |= {f"{layer}{name}.weight": [rows, columns], f"{layer}{name}.bias": [rows]}
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        shapes |= {f"{layer}{name}.weight": [16], f"{layer}{name}.bias": [16]}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    config = {"architectures": ["BertModel"], "model_type": "bert", "vocab_size": VOCAB, "hidden_size": 16,
              "intermediate_size": wide, "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": deep,
              "type_vocab_size": 2}
    good_folder(path, config=config, weights=struct.pack("<Q", len(head)) + head)
    os.truncate(path / "model.safetensors", 8 + len(head) + end)


@case("pipe.gguf", SOURCE, "no regular file")
def _(path):
    os.mkfifo(path)


@case("socket.gguf", SOURCE, "no regular file")
def _(path):
    here = os.getcwd()
    os.chdir(path.parent)  # A socket's path is short.
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


@case("link-out.gguf", SOURCE, "leads out")
def _(path):
    path.symlink_to("/etc/passwd")


@case("link-circle.gguf", SOURCE, "cannot be read")
def _(path):
    path.symlink_to(path)


@case("link-in-folder", SOURCE, "leads out")
def _(path):
    good_folder(path)
    (path / "tokenizer.json").unlink()
    (path / "tokenizer.json").symlink_to("/etc/hostname")


@case("pipe-in-folder", SOURCE, "no regular file")
def _(path):
    good_folder(path)
    (path / "chat_template.jinja").unlink(missing_ok=True)
    os.mkfifo(path / "chat_template.jinja")


@case("empty-folder", INVALID, "neither a config.json")
def _(path):
    path.mkdir()


@case("folder-for-weights", INVALID, "no *.safetensors")
def _(path):
    good_folder(path, weights=b"x")
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").mkdir()


def folder_case(name, code, words, **parts):
    case(name, code, words)(lambda path: good_folder(path, **{key: part() if callable(part) else part
                                                             for key, part in parts.items()}))


def weights_case(name, code, words, change):
    folder_case(name, code, words, weights=lambda: safetensors(change=change))


def entry(**fields):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | fields


def with_entry(**fields):
    return lambda header: {**header, "odd": entry(**fields)}


folder_case("header-10gb", INVALID, "does not fit the file", weights=struct.pack("<Q", 10 << 30) + b"{}")
folder_case("header-2-64", INVALID, "does not fit the file", weights=struct.pack("<Q", (1 << 64) - 1) + b"{}")
folder_case("header-cut", INVALID, "shorter than a header", weights=b"\x10\0\0")
folder_case("weights-empty", INVALID, "is empty", more={"model.safetensors": b""})
folder_case("weights-cut", INVALID, "past the end", weights=lambda: safetensors()[:-4])
weights_case("header-no-json", INVALID, "no tensor directory", lambda header: b"{" * 64)
weights_case("header-list", INVALID, "no tensor directory", lambda header: b"[]")
weights_case("header-deep", INVALID, "no tensor directory", lambda header: b'{"__metadata__": ' + b"[" * 100_000)
weights_case("name-twice", INVALID, "twice",
             lambda header: json.dumps(header)[:-1].encode() + b', "odd": ' + json.dumps(entry()).encode() + b', "odd": '
             + json.dumps(entry()).encode() + b"}")
weights_case("weights-overlap", INVALID, "overlap", with_entry())
weights_case("weights-outside", INVALID, "past the end", with_entry(data_offsets=[1 << 40, (1 << 40) + 8]))
weights_case("weights-backwards", INVALID, "cannot lie", with_entry(data_offsets=[8, 0]))
weights_case("weights-short", INVALID, "cannot lie", with_entry(data_offsets=[0, 4]))
weights_case("weights-product", INVALID, "overflows", with_entry(shape=[1 << 32, 1 << 32]))
weights_case("weights-dims", INVALID, "5 dimensions", with_entry(shape=[1, 1, 1, 1, 2]))
weights_case("weights-negative", INVALID, "no tensor directory", with_entry(shape=[-2]))
weights_case("weights-type", INVALID, "unknown type Q9", with_entry(dtype="Q9"))


def retype(header):
    header["model.norm.weight"]["dtype"] = "I32"


weights_case("weights-integers", UNSUPPORTED, "I32", retype)
folder_case("weights-missing", INVALID, "no tensor",
            weights=lambda: safetensors({k: v for k, v in SHAPES.items() if "down_proj" not in k}))
folder_case("weights-unknown", UNSUPPORTED, "does not use", weights=lambda: safetensors({**SHAPES, "odd.weight": [4]}))
folder_case("weights-shape", INVALID, "has shape", config={**CONFIG, "vocab_size": 9})

folder_case("config-deep", INVALID, "recursion limit", config=b'{"odd": ' + b"[" * 100_000)
folder_case("config-twice", INVALID, "appears twice", config=lambda: json.dumps(CONFIG)[:-1].encode() + b', "vocab_size": 8}')
folder_case("config-huge", INVALID, "larger than", config=lambda: json.dumps({**CONFIG, "odd": "x" * (17 << 20)}).encode())
folder_case("config-no-text", INVALID, "config.json", config=b"\xff\xfe{}")
folder_case("config-empty", INVALID, "is empty", config=lambda: b"")
folder_case("config-infinite", INVALID, "number out of range", config=lambda: json.dumps(CONFIG)[:-1].encode()
            + b', "rope_theta": 1e999}')
for name, words, change in [
    ("heads-0", "num_attention_heads", {"num_attention_heads": 0}),
    ("heads-odd", "cannot be shared", {"num_attention_heads": 3}),
    ("kv-heads", "cannot share", {"num_key_value_heads": 3, "num_attention_heads": 2}),
    ("layers-1e9", "num_hidden_layers", {"num_hidden_layers": 10 ** 9}),
    ("vocab-2-31", "vocab_size", {"vocab_size": 1 << 31}),
    ("context-0", "max_position_embeddings", {"max_position_embeddings": 0}),
    ("context-huge", "too large to be run", {"max_position_embeddings": 1 << 24}),
    ("rope-negative", "rope_theta", {"rope_theta": -1.0}),
    ("rope-scaling", "not built", {"rope_scaling": {"rope_type": "magic"}}),
    ("architecture", "not built", {"architectures": ["Magic"]}),
]:
    folder_case("config-" + name, UNSUPPORTED, words, config={**CONFIG, **change})

folder_case("index-outside", INVALID, "outside the folder",
            more={"model.safetensors.index.json": {"weight_map": {"a": "../../../etc/passwd"}}})
folder_case("index-missing-file", INVALID, "cannot read", more={"model.safetensors.index.json": {"weight_map": {"a": "b"}}})
folder_case("index-of-nothing", INVALID, "0 files", more={"model.safetensors.index.json": {"weight_map": {}}})


def tokenizer_case(name, code, words, **change):
    tokens = tokenizer()
    for key, value in change.items():
        if key in ("vocab", "merges", "unk_token", "unk_id", "dropout", "continuing_subword_prefix", "type"):
            tokens["model"][key] = value
        else:
            tokens[key] = value
    folder_case("tokenizer-" + name, code, words, tokens=tokens)


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def nested(count):
    step = {"type": "NFC"}
    for _ in range(count):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
tokenizer_case("nested-quantifiers", INVALID, "nests quantifiers", pre_tokenizer=split("(a+)+$"))
tokenizer_case("nested-inside", INVALID, "nests quantifiers",
               pre_tokenizer={"type": "Sequence", "pretokenizers": [split(r"(?:x*y*)*z")]})
tokenizer_case("polynomial", INVALID, "too many steps", pre_tokenizer=split("a*a*a*a*(?!a|$)"))
tokenizer_case("backreference", INVALID, "references", pre_tokenizer=split(r"(a)\1"))
tokenizer_case("pattern-long", INVALID, "2000 bytes", pre_tokenizer=split("ab" * 1000))
tokenizer_case("pattern-repeats", INVALID, "too often", pre_tokenizer=split("a{100000}"))
tokenizer_case("pattern-automaton", INVALID, "cannot be used", pre_tokenizer=split(r"(?:(?:\w{900}){900}){900}"))
tokenizer_case("words-of-nothing", INVALID, "no length", pre_tokenizer={"type": "FixedLength", "length": 0})
tokenizer_case("growth", INVALID, "times as long", normalizer={"type": "Sequence", "normalizers": [
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 20}] * 30})
tokenizer_case("replace-nothing", INVALID, "nothing", normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "a"})
tokenizer_case("replace-costly", INVALID, "plain enough", normalizer={
    "type": "Replace", "pattern": {"Regex": "[^x]*x|."}, "content": ""})
tokenizer_case("steps", INVALID, "more than 32", normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100})
tokenizer_case("deep", INVALID, "nests too deeply", normalizer=nested(30))
tokenizer_case("character-map", INVALID, "character map", normalizer={
    "type": "Precompiled", "precompiled_charsmap": base64.b64encode(struct.pack("<II", 4, 5000 << 10)).decode()})
tokenizer_case("character-map-no-base64", INVALID, "character map", normalizer={
    "type": "Precompiled", "precompiled_charsmap": "!"})
tokenizer_case("template-token", INVALID, "does not declare", post_processor={
    "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [], "special_tokens": {}})
tokenizer_case("template-second-text", INVALID, "exactly once", post_processor={
    "type": "TemplateProcessing", "single": [{"Sequence": {"id": "B", "type_id": 0}}], "pair": [], "special_tokens": {}})
tokenizer_case("id-2-31", INVALID, "largest token id", vocab={"a": 0, "b": 1 << 31})
tokenizer_case("ids-sparse", INVALID, "largest token id", vocab={"a": 0, "b": 100_000})
tokenizer_case("ids-past-rows", INVALID, "rows for 8", vocab={letter: i for i, letter in enumerate("abcdefghij")})
tokenizer_case("added-outside", INVALID, "cannot have the id", added_tokens=[{"id": 100, "content": "<x>", **ADDED}])
tokenizer_case("added-empty", INVALID, "empty or there twice", added_tokens=[{"id": 8, "content": "", **ADDED}])
tokenizer_case("merge-unknown", INVALID, "not made of tokens", merges=["a b"])
tokenizer_case("merge-no-pair", INVALID, "no pair", merges=["a b c"])
tokenizer_case("prefix-long", INVALID, "not made of tokens", merges=["a b"], continuing_subword_prefix="longer")
tokenizer_case("random", INVALID, "at random", dropout=0.5)
tokenizer_case("unknown-token", INVALID, "unk_token", unk_token="<nowhere>")
tokenizer_case("token-long", INVALID, "bytes, at most", vocab={"a" * 10_000: 0})
tokenizer_case("no-tokens", INVALID, "empty", vocab={})
folder_case("tokenizer-unigram-unknown", INVALID, "unk_id", tokens={
    **tokenizer(), "model": {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 7}})
folder_case("tokenizer-twice", INVALID, "appears twice",
            tokens=lambda: json.dumps(tokenizer()).replace('"a": 0', '"a": 0, "a": 3').encode())
folder_case("tokenizer-json-deep", INVALID, "damaged", tokens=b'{"normalizer": ' + b'{"a": ' * 50_000)
folder_case("tokenizer-empty", INVALID, "is empty", more={"tokenizer.json": b""})
folder_case("tokenizer-none", INVALID, "tokenizer.json", more={"tokenizer.json": None})

folder_case("template-broken", INVALID, "broken", more={"chat_template.jinja": b"{% for %}"})
folder_case("template-huge", INVALID, "larger than", more={"chat_template.jinja": b"x" * 300_000})
folder_case("template-no-text", INVALID, "UTF-8", more={"chat_template.jinja": b"\xff"})
folder_case("template-endless", COSTLY, "too large", more={
    "chat_template.jinja": b"{% for i in range(9999) %}{% for j in range(9999) %}{{ '' }}{% endfor %}{% endfor %}"})
folder_case("template-memory", COSTLY, "its memory", more={
    "chat_template.jinja": b"{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"})


# Each instruction is cheap by count and dear by time.
SLOW_CASES["template-busy"] = (lambda path: good_folder(path, more={
    "chat_template.jinja": b"{% set x = 'a' * 9000000 %}{% for i in range(90000) %}{% set y = x | upper | length %}{% endfor %}"}),
    COSTLY, "the inspecting process")


def make_all(root, slow=False):
    """Writes every hostile source beneath `root`, and two that are good; returns the hostile ones."""
    root, cases = pathlib.Path(root), CASES | (SLOW_CASES if slow else {})
    for name, (make, _, _) in cases.items():
        make(root / name)
    good_folder(root / "good")
    good_gguf(root / "good.gguf")
    return cases
