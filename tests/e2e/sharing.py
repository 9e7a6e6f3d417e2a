"""Requests that meet: many streams at once, tenants that share a machine and nothing else, clients that hang up."""

import json
import time

from server import CHAT, FAKE, FAKE_SLOW, TENANTS, together, wait_until

# Longer than two KV blocks of 32 positions.
ESSAY = "A weir is a low dam built across a river to raise the water or to control its flow. " * 6


def timeline(server, model, streams, tokens):
    """(time, stream) of every event with text, over all streams started at once."""
    # All requests are sent before any answer is read: the status line comes with the first token.
    sent = [server.send_stream("/v1/completions", {
        "model": model, "prompt": f"Stream {index}:", "max_tokens": tokens, "temperature": 0, "ignore_eos": True})
        for index in range(streams)]

    def one(index):
        seen, response = [], sent[index].getresponse()
        assert response.status == 200, response.read()
        while line := response.readline():
            if line.startswith(b"data: {"):
                seen.append((time.monotonic(), index, line))
        sent[index].close()
        choices = [(when, index, choice) for when, index, line in seen for choice in json.loads(line[6:])["choices"]]
        assert choices[-1][2]["finish_reason"] == "length", choices[-1]
        return [(when, index) for when, index, choice in choices if choice["text"] or choice["finish_reason"]]

    return sorted(event for seen in together(one, range(streams)) for event in seen)


def most_open(events):
    """The most streams that were under way (first text seen, last not yet) at one time."""
    last = {index: when for when, index in events}
    started, most = set(), 0
    for when, index in events:
        started.add(index)
        most = max(most, sum(last[i] > when for i in started))
    return most


def test_64_streams_interleave(world):
    # Steps slow enough for this client to have them all open before the first one ends.
    events = timeline(world.fake, FAKE_SLOW, 64, 100)
    assert most_open(events) == 64, most_open(events)


def test_64_streams_of_a_real_model_interleave(world):
    events = timeline(world.real, CHAT, 64, 48)
    assert len({index for _, index in events}) == 64
    # The batch need not hold all of them, but no stream runs alone to its end.
    assert most_open(events) >= 32, most_open(events)


def test_greedy_text_does_not_depend_on_the_batch(world):
    def answer(prompt):
        return world.real.client(timeout=600).completions.create(
            model=CHAT, prompt=prompt, temperature=0, max_tokens=24).choices[0].text

    prompts = ["The capital of Italy is", "def add(a, b):", "Привет, как", ESSAY, "1, 2, 3, 4,", "Once upon a time"]
    alone = [answer(prompt) for prompt in prompts]
    assert together(answer, prompts * 3) == alone * 3


def cached(server, tenant, prompt, model):
    answer = server.client(tenant).completions.create(model=model, prompt=prompt, max_tokens=2, temperature=0)
    return answer.usage.prompt_tokens_details.cached_tokens


def test_tenants_share_no_cache(world):
    for server, model in ((world.real, CHAT), (world.fake, FAKE)):
        prompt = f"{time.time_ns()} " + ESSAY  # never seen before, by anyone
        assert cached(server, "demo", prompt, model) == 0
        again = cached(server, "demo", prompt, model)
        assert again > 0 and again % 32 == 0, again
        assert cached(server, "other", prompt, model) == 0, "another tenant saw the cache"
        assert cached(server, "other", prompt, model) == again
        assert cached(server, "third", prompt, model) == 0


def test_cached_prompts_give_the_same_text(world):
    prompt = f"{time.time_ns()} " + ESSAY

    def answer():
        return world.real.client().completions.create(model=CHAT, prompt=prompt, max_tokens=24, temperature=0)

    cold, warm = answer(), answer()
    assert warm.usage.prompt_tokens_details.cached_tokens > 0
    assert warm.choices[0].text == cold.choices[0].text
    assert warm.usage.prompt_tokens == cold.usage.prompt_tokens


def blocks_used(server):
    """KV blocks held by requests (a cached block that nobody holds is free to take)."""
    metrics = server.metrics()
    found = [value for name, value in metrics.items() if "kv_blocks" in name and "used" in name]
    assert found, sorted(metrics)
    return sum(found)


def test_a_client_that_hangs_up_frees_its_blocks(world):
    server = world.fake
    wait_until("an idle server", lambda: blocks_used(server) == 0)
    body = {"model": FAKE_SLOW, "prompt": ESSAY, "max_tokens": 2000, "ignore_eos": True}
    held = [server.open_stream("/v1/completions", body, TENANTS[name][0]) for name in ("demo", "other", "third")]
    for _, response in held:
        assert response.readline().startswith(b"data: ")
    wait_until("blocks in use", lambda: blocks_used(server) > 0)
    for connection, response in held:
        response.close()
        connection.close()
    wait_until("the blocks of clients that hung up", lambda: blocks_used(server) == 0)
    # A request that is not streamed is given up in the same way.
    connection = held[0][0]
    connection.request("POST", "/v1/completions", json.dumps(body).encode(),
                       {"Authorization": f"Bearer {TENANTS['demo'][0]}", "Content-Type": "application/json"})
    wait_until("blocks in use", lambda: blocks_used(server) > 0)
    connection.close()
    wait_until("the blocks of a client that hung up", lambda: blocks_used(server) == 0)


def test_neighbours_are_served_while_one_tenant_floods(world):
    server = world.fake
    body = {"model": FAKE_SLOW, "prompt": "flood", "max_tokens": 300, "ignore_eos": True}
    flood = [server.open_stream("/v1/completions", body, TENANTS["demo"][0]) for _ in range(40)]
    try:
        answer = server.client("other").completions.create(model=FAKE_SLOW, prompt="quiet", max_tokens=3)
        assert answer.usage.completion_tokens >= 1
        # It was not at the end of a queue: the flood is still under way.
        assert blocks_used(server) > 0
    finally:
        for connection, response in flood:
            response.close()
            connection.close()
    wait_until("the flood to end", lambda: blocks_used(server) == 0)
