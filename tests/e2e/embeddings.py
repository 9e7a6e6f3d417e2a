"""/v1/embeddings through the official client."""

import base64
import math
import struct

from server import CHAT, EMBED, together


def embed(world, given, **options):
    """With `encoding_format` left out the client asks for base64 and decodes it."""
    return world.real.client().embeddings.create(model=EMBED, input=given, **options)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def references(world):
    """Empty text is refused as input by the API, a cut input needs `truncate`, and a special token in text is text."""
    inputs = world.fixture("minilm-vectors.json")["inputs"]
    return [e for e in inputs if e["text"] and not e["truncated"] and "[SEP]" not in e["text"]]


def test_vectors_equal_the_reference_alone_and_mixed(world):
    inputs = references(world)
    for entry in inputs:
        answer = embed(world, entry["text"])
        assert cosine(answer.data[0].embedding, entry["vector"]) > 0.9999, entry["text"]
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == len(entry["ids"]), entry["text"]
    mixed = embed(world, [entry["text"] for entry in inputs])
    assert [item.index for item in mixed.data] == list(range(len(inputs)))
    for item, entry in zip(mixed.data, inputs, strict=True):
        assert cosine(item.embedding, entry["vector"]) > 0.9999, entry["text"]
        assert abs(sum(x * x for x in item.embedding) - 1) < 1e-4
    assert mixed.object == "list" and mixed.model == EMBED and mixed.data[0].object == "embedding"
    assert mixed.usage.prompt_tokens == sum(len(entry["ids"]) for entry in inputs)
    assert mixed.usage.model_extra["weir"]["device_seconds"] > 0


def test_formats_are_the_same_numbers(world):
    floats = embed(world, "a weir", encoding_format="float").data[0].embedding
    raw = world.real.post("/v1/embeddings", {"model": EMBED, "input": "a weir", "encoding_format": "base64"})
    decoded = struct.unpack("<384f", base64.b64decode(raw.json["data"][0]["embedding"]))
    assert len(floats) == 384 and all(abs(a - b) < 1e-7 for a, b in zip(floats, decoded, strict=True))
    default = world.real.post("/v1/embeddings", {"model": EMBED, "input": "a weir"}).json["data"][0]["embedding"]
    assert isinstance(default, list)


def test_token_ids_are_taken_as_they_are(world):
    one, two = references(world)[3:5]
    assert cosine(embed(world, one["ids"]).data[0].embedding, one["vector"]) > 0.9999
    both = embed(world, [one["ids"], two["ids"]])
    assert cosine(both.data[1].embedding, two["vector"]) > 0.9999
    reply = world.real.post("/v1/embeddings", {"model": EMBED, "input": [101, 30522]})
    assert reply.status == 400 and reply.json["error"]["param"] == "input", reply.text


def test_special_tokens_in_text_are_text(world):
    """The reference reads them as tokens, as its library does; an API that many people's text passes through must not."""
    entry = next(e for e in world.fixture("minilm-vectors.json")["inputs"] if "[SEP]" in e["text"])
    assert embed(world, entry["text"]).usage.prompt_tokens > len(entry["ids"])
    assert cosine(embed(world, entry["ids"]).data[0].embedding, entry["vector"]) > 0.9999


def test_over_long_input_is_refused_unless_truncated(world):
    entry = next(e for e in world.fixture("minilm-vectors.json")["inputs"] if e["truncated"])
    reply = world.real.post("/v1/embeddings", {"model": EMBED, "input": entry["text"]})
    assert reply.status == 400 and reply.json["error"]["type"] == "invalid_request_error", reply.text
    assert reply.json["error"]["param"] == "input"
    answer = embed(world, [entry["text"], "short"], extra_body={"truncate": True})
    assert cosine(answer.data[0].embedding, entry["vector"]) > 0.9999
    assert answer.usage.prompt_tokens == 256 + 3


def test_limits_on_lists(world):
    def refused(given, **more):
        reply = world.real.post("/v1/embeddings", {"model": EMBED, "input": given} | more)
        assert reply.status == 400 and reply.json["error"]["param"], (reply.status, reply.text)
        return reply.json["error"]

    assert refused([])["param"] == "input"
    assert refused(["x"] * 2049)["param"] == "input"
    assert refused([[101] * 250] * 1201)["param"] == "input"  # 300,250 tokens
    assert refused("x", dimensions=16)["param"] == "dimensions"
    assert refused("x", encoding_format="int8")["param"] == "encoding_format"
    assert refused("x", truncate="yes")["param"] == "truncate"
    assert refused(["x", 3])["param"].startswith("input")


def test_many_inputs_in_one_request(world):
    texts = [f"sentence number {i}" for i in range(300)]
    answer = embed(world, texts)
    assert [item.index for item in answer.data] == list(range(300))
    for probe in (0, 150, 299):
        assert cosine(answer.data[probe].embedding, embed(world, texts[probe]).data[0].embedding) > 0.9999


def test_requests_at_once_do_not_mix(world):
    inputs = references(world)
    answers = together(lambda entry: embed(world, entry["text"]).data[0].embedding, inputs * 3)
    for vector, entry in zip(answers, inputs * 3, strict=True):
        assert cosine(vector, entry["vector"]) > 0.9999, entry["text"]


def test_a_chat_model_does_not_embed(world):
    reply = world.real.post("/v1/embeddings", {"model": CHAT, "input": "x"})
    assert reply.status == 400 and reply.json["error"]["param"] == "model"


def test_fake_vectors_are_seeded(world):
    def vector(text):
        return world.fake.client().embeddings.create(model="fake", input=text).data[0].embedding

    assert len(vector("a")) == 384 and vector("a") == vector("a") and vector("a") != vector("b")
