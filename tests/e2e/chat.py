"""/v1/chat/completions through the official client."""

import math

from server import CHAT, EMBED

# The model is sure of every token of its answer, so that no rounding changes it.
QUESTION = [{"role": "user", "content": "What is the capital city of France? Answer in one sentence."}]
LONGER = [{"role": "user", "content": "Write a short story about a river and a weir."}]


def ask(world, messages=LONGER, **options):
    """A greedy answer unless told otherwise."""
    options = {"model": CHAT, "temperature": 0, "max_tokens": 24} | options
    return world.real.client().chat.completions.create(messages=messages, **options)


def text_of(answer, choice=0):
    return answer.choices[choice].message.content


def read(stream, n=1):
    """Text and finish reason of each choice of a stream, its usage, and its chunks."""
    texts, reasons, usage, chunks = [""] * n, [None] * n, None, list(stream)
    for chunk in chunks:
        for choice in chunk.choices:
            assert reasons[choice.index] is None, "nothing follows a finish_reason"
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
        usage = chunk.usage or usage
    return texts, reasons, usage, chunks


def test_answer_is_right_and_complete(world):
    answer = ask(world, QUESTION, max_completion_tokens=32, max_tokens=32)
    assert "Paris" in text_of(answer), text_of(answer)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == CHAT
    assert answer.created > 1_700_000_000
    choice = answer.choices[0]
    assert len(answer.choices) == 1 and choice.index == 0 and choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length") and choice.logprobs is None
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens <= 32
    assert usage.prompt_tokens_details.cached_tokens >= 0
    assert usage.model_extra["weir"]["device_seconds"] > 0


def test_stream_equals_the_whole_answer(world):
    for messages in (QUESTION, LONGER, [{"role": "user", "content": "Repeat: 日本語 👩‍👩‍👧‍👦 Ünïcödé"}]):
        whole = ask(world, messages, max_tokens=48)
        (text,), (reason,), usage, chunks = read(
            ask(world, messages, max_tokens=48, stream=True, stream_options={"include_usage": True}))
        assert text == text_of(whole) and reason == whole.choices[0].finish_reason
        assert usage.completion_tokens == whole.usage.completion_tokens
        assert usage.prompt_tokens == whole.usage.prompt_tokens
        assert usage.model_extra["weir"]["device_seconds"] > 0
        first = chunks[0].choices[0]
        assert first.delta.role == "assistant" and first.delta.content == "" and first.finish_reason is None
        assert all(c.choices[0].delta.role is None for c in chunks[1:] if c.choices)
        assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1
        assert chunks[0].object == "chat.completion.chunk"
        assert chunks[-1].choices == [] and all(c.usage is None for c in chunks[:-1])


def test_stream_on_the_wire(world):
    body = {"model": CHAT, "messages": QUESTION, "max_tokens": 4, "temperature": 0, "stream": True}
    reply = world.real.post("/v1/chat/completions", body)
    assert reply.status == 200 and reply.headers["content-type"].startswith("text/event-stream")
    events = reply.events()
    assert events[-1] == "[DONE]" and events.count("[DONE]") == 1
    assert '"usage"' not in "".join(events), "no usage unless it is asked for"
    for block in reply.text.split("\n\n"):
        assert block == "" or block.startswith(("data: ", ":")), block
    with_null = world.real.post("/v1/chat/completions", body | {"stream_options": {"include_usage": True}}).events()
    assert all('"usage":null' in event for event in with_null[:-2]), with_null
    assert '"choices":[]' in with_null[-2]


def test_continuous_usage_counts_up(world):
    options = {"include_usage": True, "continuous_usage_stats": True}
    _, _, usage, chunks = read(ask(world, stream=True, stream_options=options, max_tokens=12))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == usage.completion_tokens == 12, counts
    assert len({chunk.usage.prompt_tokens for chunk in chunks}) == 1


def test_stop_strings_end_the_text_and_stay_out_of_it(world):
    whole = text_of(ask(world, max_tokens=40))
    words = whole.split(" ")
    # One inside a word and one across a space: neither falls on the edges of tokens.
    for stop in (words[6][1:] + " " + words[7][:2], words[4]):
        expected = whole[: whole.index(stop)]
        for given in (stop, ["never seen", stop]):
            answer = ask(world, max_tokens=40, stop=given)
            assert text_of(answer) == expected and answer.choices[0].finish_reason == "stop", (stop, text_of(answer))
        (text,), (reason,), _, _ = read(ask(world, max_tokens=40, stop=stop, stream=True))
        assert text == expected and reason == "stop"


def test_end_token_stops_and_ignore_eos_goes_on(world):
    answer = ask(world, QUESTION, max_tokens=200)
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens < 200
    assert "<|im_end|>" not in text_of(answer)
    longer = ask(world, QUESTION, max_tokens=answer.usage.completion_tokens + 20, extra_body={"ignore_eos": True})
    assert longer.choices[0].finish_reason == "length"
    assert longer.usage.completion_tokens == answer.usage.completion_tokens + 20


def test_min_tokens_holds_the_end_back(world):
    end = {"2": 100}  # <|im_end|> at once
    assert ask(world, logit_bias=end).usage.completion_tokens <= 1
    answer = ask(world, logit_bias=end, extra_body={"min_tokens": 7})
    assert 7 <= answer.usage.completion_tokens <= 8 and answer.choices[0].finish_reason == "stop"


def test_seed_repeats_and_other_seeds_differ(world):
    def draw(seed):
        return text_of(ask(world, temperature=1.2, top_p=0.95, seed=seed))

    texts = [draw(seed) for seed in (7, 7, 8, -1)]
    assert texts[0] == texts[1] and len(set(texts)) == 3, texts
    streamed = read(ask(world, temperature=1.2, top_p=0.95, seed=7, stream=True))[0][0]
    assert streamed == texts[0]


def test_choices_are_n_and_differ(world):
    answer = ask(world, temperature=1.5, seed=1, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert 3 < answer.usage.completion_tokens <= 72
    texts, reasons, usage, _ = read(ask(world, temperature=1.5, seed=1, n=3, stream=True,
                                        stream_options={"include_usage": True}), n=3)
    assert texts == [choice.message.content for choice in answer.choices] and all(reasons)
    assert usage.completion_tokens == answer.usage.completion_tokens
    same = ask(world, n=2)
    assert text_of(same, 0) == text_of(same, 1), "greedy choices are the same"


def test_truncations_leave_the_greedy_token(world):
    greedy = text_of(ask(world))
    for options in ({"extra_body": {"top_k": 1}}, {"top_p": 1e-6}, {"extra_body": {"min_p": 1.0}}):
        assert text_of(ask(world, temperature=1.5, seed=3, **options)) == greedy, options
    for options in ({"extra_body": {"top_k": -1}}, {"extra_body": {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1}}):
        assert text_of(ask(world, **options)) == greedy, options


def test_logit_bias_forces_and_forbids(world):
    hello = world.fixture("smollm2-ids.json")["plain"][0]["ids"][0]
    answer = ask(world, max_tokens=3, logit_bias={str(hello): 100})
    assert text_of(answer) == "HelloHelloHello", text_of(answer)
    forbidden = ask(world, max_tokens=3, logit_bias={str(hello): -100}, temperature=1.0, seed=1)
    assert "HelloHello" not in text_of(forbidden)


def test_penalties_spread_the_tokens(world):
    def distinct(extra_body=None, **options):
        answer = ask(world, max_tokens=64, logprobs=True, extra_body={"ignore_eos": True} | (extra_body or {}), **options)
        return len({entry.token for entry in answer.choices[0].logprobs.content})

    plain = distinct()
    assert distinct(frequency_penalty=2) > plain
    assert distinct(presence_penalty=2) > plain
    assert distinct(extra_body={"repetition_penalty": 1.5}) > plain
    assert distinct(frequency_penalty=-2) < plain


def test_logprobs_have_their_shape(world):
    answer = ask(world, max_tokens=6, logprobs=True, top_logprobs=5)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens == 6
    for entry in content:
        assert bytes(entry.bytes).decode(errors="replace") == entry.token
        values = [top.logprob for top in entry.top_logprobs]
        assert len(values) == 5 and values == sorted(values, reverse=True) and all(v <= 0 for v in values)
        assert entry.top_logprobs[0].token == entry.token and math.isclose(values[0], entry.logprob, abs_tol=1e-6)
        assert sum(math.exp(v) for v in values) <= 1 + 1e-4
    assert "".join(entry.token for entry in content) == text_of(answer)
    assert ask(world, max_tokens=2, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    streamed = [entry for chunk in ask(world, max_tokens=6, logprobs=True, top_logprobs=5, stream=True)
                for choice in chunk.choices if choice.logprobs for entry in choice.logprobs.content]
    assert [(e.token, e.logprob) for e in streamed] == [(e.token, e.logprob) for e in content]


def test_logprobs_agree_with_the_float32_reference(world):
    """Where the reference's text goes on with its own top-1, ours is as sure of its top-1."""
    entry = next(e for e in world.fixture("smollm2-logprobs.json")["texts"] if e["name"] == "numbers")
    differences = []
    for i in range(16):
        end = entry["from"] + i + 1
        if entry["f32_top"][i] == entry["ids"][end]:
            answer = world.real.client().completions.create(
                model=CHAT, prompt=entry["ids"][:end], temperature=0, max_tokens=1, logprobs=0)
            differences.append(abs(answer.choices[0].logprobs.token_logprobs[0] - entry["f32_logprob"][i]))
    assert len(differences) > 10 and sum(differences) / len(differences) < 0.05, differences


def test_prompts_have_the_reference_number_of_tokens(world):
    """The template and the tokenizer agree with llama.cpp, seen through the API; also as ids, with the same answer."""
    for chat in world.fixture("smollm2-ids.json")["chats"]:
        answer = ask(world, chat["messages"], max_tokens=4)
        assert answer.usage.prompt_tokens == len(chat["ids"]), chat["name"]
        same = world.real.client().completions.create(model=CHAT, prompt=chat["ids"], temperature=0, max_tokens=4)
        assert same.usage.prompt_tokens == len(chat["ids"])
        assert same.choices[0].text == text_of(answer), chat["name"]


def test_content_may_come_in_parts_and_roles_are_the_clients(world):
    parts = [{"type": "text", "text": QUESTION[0]["content"][:20]},
             {"type": "text", "text": QUESTION[0]["content"][20:]}]
    assert text_of(ask(world, [{"role": "user", "content": parts}])) == text_of(ask(world, QUESTION))
    system = [{"role": "system", "content": "You are terse."}, *QUESTION]
    developer = [{"role": "developer", "content": "You are terse."}, *QUESTION]
    assert text_of(ask(world, system)) == text_of(ask(world, developer))


def test_control_tokens_in_content_are_text(world):
    """A user cannot end its turn by writing the end token."""
    plain = ask(world, [{"role": "user", "content": "a"}], max_tokens=1).usage.prompt_tokens
    sly = ask(world, [{"role": "user", "content": "a<|im_end|>"}], max_tokens=1).usage.prompt_tokens
    assert sly > plain + 2, (plain, sly)


def test_harmless_fields_are_accepted(world):
    answer = ask(world, QUESTION, max_tokens=4, user="someone", metadata={"a": "b"}, store=False, service_tier="auto",
                 response_format={"type": "text"}, extra_body={"safety_identifier": "x", "prompt_cache_key": "y"})
    assert text_of(answer) == text_of(ask(world, QUESTION, max_tokens=4))


def test_an_embedding_model_does_not_chat(world):
    reply = world.real.post("/v1/chat/completions", {"model": EMBED, "messages": QUESTION})
    assert reply.status == 400 and reply.json["error"]["param"] == "model"
