"""/v1/completions through the official client."""

import math

from server import CHAT

PROMPT = "The quick brown fox jumps over"


def go_on(world, prompt=PROMPT, **options):
    options = {"model": CHAT, "temperature": 0, "max_tokens": 12} | options
    return world.real.client().completions.create(prompt=prompt, **options)


def test_text_goes_on(world):
    answer = go_on(world)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-") and answer.model == CHAT
    choice = answer.choices[0]
    assert "lazy" in choice.text and choice.index == 0 and choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.usage.model_extra["weir"]["device_seconds"] > 0


def test_default_is_sixteen_tokens(world):
    answer = world.real.client().completions.create(
        model=CHAT, prompt=PROMPT, temperature=0, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16 and answer.choices[0].finish_reason == "length"


def test_strings_and_ids_are_the_same_prompt(world):
    plain = next(p for p in world.fixture("smollm2-ids.json")["plain"] if p["text"].startswith("The quick"))
    text, ids = go_on(world, plain["text"]), go_on(world, plain["ids"])
    assert text.choices[0].text == ids.choices[0].text
    assert text.usage.prompt_tokens == ids.usage.prompt_tokens == len(plain["ids"])


def test_plain_strings_have_the_reference_number_of_tokens(world):
    for plain in world.fixture("smollm2-ids.json")["plain"]:
        answer = go_on(world, plain["text"], max_tokens=1)
        assert answer.usage.prompt_tokens == len(plain["ids"]), plain["text"]


def test_lists_of_prompts_keep_their_order(world):
    prompts = ["One, two, three,", "Monday, Tuesday,", PROMPT]
    alone = [go_on(world, prompt).choices[0].text for prompt in prompts]
    answer = go_on(world, prompts)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.text for choice in answer.choices] == alone
    twice = go_on(world, prompts[:2], n=2)
    assert [choice.index for choice in twice.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in twice.choices] == [alone[0], alone[0], alone[1], alone[1]]
    plain = world.fixture("smollm2-ids.json")["plain"]
    lists = go_on(world, [plain[0]["ids"], plain[4]["ids"]])
    assert [c.text for c in lists.choices] == [go_on(world, plain[i]["text"]).choices[0].text for i in (0, 4)]


def test_stream_equals_the_whole_text(world):
    for options in ({}, {"n": 2, "temperature": 1.1, "seed": 5}, {"echo": True}, {"stop": " lazy"}):
        whole = go_on(world, **options)
        texts, reasons, usage = {}, {}, None
        for chunk in go_on(world, stream=True, stream_options={"include_usage": True}, **options):
            assert chunk.object == "text_completion" and chunk.id.startswith("cmpl-")
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + choice.text
                reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
        assert texts == {choice.index: choice.text for choice in whole.choices}, options
        assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
        assert usage.completion_tokens == whole.usage.completion_tokens


def test_echo_puts_the_prompt_first(world):
    plain, echoed = go_on(world), go_on(world, echo=True)
    assert echoed.choices[0].text == PROMPT + plain.choices[0].text
    assert echoed.usage.completion_tokens == plain.usage.completion_tokens
    reply = world.real.post("/v1/completions", {"model": CHAT, "prompt": PROMPT, "echo": True, "logprobs": 1})
    assert reply.status == 400 and reply.json["error"]["param"] in ("echo", "logprobs")


def test_logprobs_have_their_shape(world):
    answer = go_on(world, max_tokens=5, logprobs=3)
    logprobs = answer.choices[0].logprobs
    text = answer.choices[0].text
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 5
    assert "".join(logprobs.tokens) == text
    for offset, token, value, top in zip(
            logprobs.text_offset, logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert text[offset:].startswith(token)
        assert len(top) in (3, 4) and math.isclose(top[token], value, abs_tol=1e-6) and max(top.values()) == top[token]


def test_sampling_parameters_are_carried_out(world):
    hello = world.fixture("smollm2-ids.json")["plain"][0]["ids"][0]
    assert go_on(world, max_tokens=2, logit_bias={str(hello): 100}).choices[0].text == "HelloHello"
    one, two = (go_on(world, temperature=1.3, seed=11, top_p=0.9).choices[0].text for _ in range(2))
    assert one == two
    assert go_on(world, temperature=1.3, seed=11, extra_body={"top_k": 1}).choices[0].text == go_on(world).choices[0].text
    story = "The river is old. The river is wide. The river is"
    plain = go_on(world, story, max_tokens=24)
    for options in ({"frequency_penalty": 2}, {"presence_penalty": 2}, {"extra_body": {"repetition_penalty": 1.8}}):
        assert go_on(world, story, max_tokens=24, **options).choices[0].text != plain.choices[0].text


def test_eos_options(world):
    end = {"2": 100}
    assert go_on(world, logit_bias=end).usage.completion_tokens <= 1
    assert go_on(world, logit_bias=end, extra_body={"min_tokens": 5}).usage.completion_tokens in (5, 6)
    assert go_on(world, logit_bias=end, extra_body={"ignore_eos": True}).usage.completion_tokens == 12


def test_an_id_outside_the_vocabulary_is_refused(world):
    reply = world.real.post("/v1/completions", {"model": CHAT, "prompt": [1, 49152]})
    assert reply.status == 400 and reply.json["error"]["param"] == "prompt", reply.text
    bias = world.real.post("/v1/completions", {"model": CHAT, "prompt": "a", "logit_bias": {"49152": 1}})
    assert bias.status == 400 and bias.json["error"]["param"] == "logit_bias", bias.text
