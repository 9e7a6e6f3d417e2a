"""Quotas of device time: a tenant that has used its own is cut off, is told so, and pays for no more; nobody else notices."""

import contextlib
import json

from server import FAKE, TENANTS, Server, together

MONTH_MAX = 31 * 86_400

# Seconds of device time in a month, which hardly ends while a case runs; a step takes 4 ms.
PLANS = {
    "demo": "device_seconds_per_month = 1",
    "third": "device_seconds_per_month = 0.5\ndevice_seconds_per_day = 0.5",
    "small": "device_seconds_per_month = 0.5",
}


@contextlib.contextmanager
def limited(world, plans=PLANS):
    server = Server(world.weir, {FAKE: "fake:step=4ms,token=20us"}, "rows_max = 64", plans=plans)
    try:
        yield server
    finally:
        server.close()


def key(tenant):
    return TENANTS[tenant][0]


def long_text(tokens=4000, **more):
    return {"model": FAKE, "prompt": "Water ", "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}


def read(connection):
    """Status, headers and events of a streamed answer that was asked for."""
    response = connection.getresponse()
    lines = response.read().decode().splitlines()
    connection.close()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return response.status, events, lines


def streamed(server, tenant, body, path="/v1/completions"):
    return server.send_stream(path, body | {"stream_options": {"include_usage": True}}, key(tenant))


def ending(events):
    """Finish reason and usage of a stream with one choice."""
    reasons = [choice["finish_reason"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert len(reasons) == 1 and events[-1]["choices"] == [], events[-3:]
    return reasons[0], events[-1]["usage"]


def refused(reply):
    assert reply.status == 429, (reply.status, reply.text)
    assert reply.json["error"]["code"] == "insufficient_quota", reply.text
    assert 1 <= int(reply.headers["retry-after"]) <= MONTH_MAX
    assert reply.headers["x-should-retry"] == "false"


def test_a_stream_ends_where_the_quota_does_and_says_so(world):
    with limited(world) as server:
        # Another tenant beside it, with as much to do as the first could have had, is served whole.
        other = streamed(server, "other", long_text(700))
        status, events, lines = read(streamed(server, "demo", long_text()))
        reason, usage = ending(events)
        assert (status, reason, usage["weir"]["stop"]) == (200, "length", "quota"), (status, reason, usage)
        cut = usage["weir"]
        assert lines[-2] == "data: [DONE]", lines[-3:]
        text = "".join(choice["text"] for event in events for choice in event["choices"])
        assert len(text) == usage["completion_tokens"] < 4000
        # What a row is expected to take, and a quarter, may be left over, and a thousandth of it is no reason to end.
        assert 0.9 < usage["weir"]["device_seconds"] <= 1.0, usage

        for path, body in [("/v1/completions", long_text(1)),
                           ("/v1/completions", long_text(1, stream=True)),
                           ("/v1/chat/completions", {"model": FAKE, "messages": [{"role": "user", "content": "x"}]}),
                           ("/v1/embeddings", {"model": FAKE, "input": "x"})]:
            refused(server.post(path, body, key=key("demo")))

        status, events, _ = read(other)
        reason, usage = ending(events)
        assert (status, reason, usage["completion_tokens"]) == (200, "length", 700)
        assert "stop" not in usage["weir"], usage

        # The bills are all that tenants' account has: what was measured above a grant is in no bill.
        metrics = server.metrics()
        assert metrics['weir_requests_total{outcome="quota"}'] == 1
        tenants = metrics['weir_device_seconds_total{device="cpu:0",account="tenants"}']
        assert abs(tenants - cut["device_seconds"] - usage["weir"]["device_seconds"]) < 3e-6, (tenants, cut, usage)


def test_what_a_step_took_beyond_the_quota_is_the_operators(world):
    # A token costs 5 ms, and nobody knows yet: the first prompt starts against what the prior expects of it, a few milliseconds,
    # and takes 300 and more. Steps are never shorter than they are said to be.
    server = Server(world.weir, {FAKE: "fake:step=1ms,token=5ms"}, plans={"third": "device_seconds_per_month = 0.1"})
    try:
        reply = server.post("/v1/completions", {"model": FAKE, "prompt": "w" * 60, "max_tokens": 8, "temperature": 0,
                                                "ignore_eos": True}, key=key("third"))
        assert reply.status == 200, reply.text
        usage = reply.json["usage"]
        assert usage["weir"]["stop"] == "quota" and usage["completion_tokens"] < 8, usage
        assert 0.05 < usage["weir"]["device_seconds"] <= 0.1, usage
        account = {name: server.metrics()[f'weir_device_seconds_total{{device="cpu:0",account="{name}"}}']
                   for name in ("tenants", "overrun")}
        assert abs(account["tenants"] - usage["weir"]["device_seconds"]) < 2e-6 and account["overrun"] > 0.2, (account, usage)
    finally:
        server.close()


def test_an_answer_in_one_body_says_so_too(world):
    with limited(world) as server:
        reply = server.post("/v1/chat/completions", {
            "model": FAKE, "messages": [{"role": "user", "content": "Water"}], "max_tokens": 4000, "n": 2,
            "temperature": 0, "ignore_eos": True}, key=key("third"))
        assert reply.status == 200, reply.text
        answer = reply.json
        assert [choice["finish_reason"] for choice in answer["choices"]] == ["length", "length"]
        assert answer["usage"]["weir"]["stop"] == "quota"
        assert 0.4 < answer["usage"]["weir"]["device_seconds"] <= 0.5, answer["usage"]
        texts = [choice["message"]["content"] for choice in answer["choices"]]
        lens = [len(text) for text in texts]
        assert sum(lens) == answer["usage"]["completion_tokens"], (lens, answer["usage"], texts)


def test_together_many_streams_cost_no_more_than_the_quota(world):
    with limited(world) as server:
        def one(_):
            return read(streamed(server, "demo", long_text()))

        answers = together(one, range(24))
        # Whoever came too late was refused.
        usages = [ending(events)[1] for status, events, _ in answers if status == 200]
        assert len(usages) >= 12 and all(status in (200, 429) for status, _, _ in answers)
        assert all(usage["weir"]["stop"] == "quota" for usage in usages)
        micros = sum(round(usage["weir"]["device_seconds"] * 1e6) for usage in usages)
        # Each is rounded to the nearest microsecond.
        assert 800_000 < micros <= 1_000_000 + len(usages), micros


def test_what_waits_when_the_quota_ends_is_refused(world):
    with limited(world) as server:
        # One runs, one waits.
        first, second = (streamed(server, "small", long_text()) for _ in range(2))
        answers = [read(first), read(second)]
        statuses = sorted(status for status, _, _ in answers)
        assert statuses == [200, 429], statuses
        started = next(events for status, events, _ in answers if status == 200)
        assert ending(started)[1]["weir"]["stop"] == "quota"


def test_a_list_of_inputs_is_embedded_whole_or_refused(world):
    with limited(world) as server:
        reply = server.post("/v1/embeddings", {"model": FAKE, "input": ["water " * 10] * 1500}, key=key("third"))
        refused(reply)
        # What it took was used up all the same.
        refused(server.post("/v1/embeddings", {"model": FAKE, "input": ["water"]}, key=key("third")))


def test_short_requests_use_the_quota_up_and_no_more(world):
    with limited(world, {"third": "device_seconds_per_month = 0.3"}) as server:
        spent, refusals = 0, 0
        for _ in range(40):
            reply = server.post("/v1/completions", long_text(5), key=key("third"))
            if reply.status == 429:
                refused(reply)
                refusals += 1
                continue
            spent += round(reply.json["usage"]["weir"]["device_seconds"] * 1e6)
        assert refusals > 10 and 200_000 < spent <= 300_000 + 40, (refusals, spent)
