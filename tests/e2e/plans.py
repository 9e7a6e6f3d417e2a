"""What plans promise: latency targets, priority classes, reserved devices, models on some devices, blocks metered in time."""

import threading

from devices import TWO, steps
from server import FAKE, TENANTS, Server, figure, together, wait_until

ENDLESS = {"model": FAKE, "prompt": "x", "max_tokens": 3000, "ignore_eos": True}
PLANS = {
    "demo": 'ttft_target = "1s"\nrunning_max = 1',
    "small": 'itl_target = "60ms"',
    "third": "running_max = 1",
    "other": "running_max = 1\npriority_ceiling = 5",
}


def key(tenant):
    return TENANTS[tenant][0]


def complete(server, tenant, prompt="x", tokens=1, **more):
    body = {"model": FAKE, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True} | more
    return server.post("/v1/completions", body, key=key(tenant))


def planned(world):
    """10 ms a step and 1 ms a token, with the costs known."""
    server = Server(world.weir, {FAKE: "fake:step=10ms,token=1ms"}, "rows_max = 16", plans=PLANS)
    for prompt in ("x", "x" * 40, "x" * 90):
        assert complete(server, "embedder", prompt, 1).status == 404, "not its model"
        assert complete(server, "small", prompt, 10).status == 200
    return server


def long_steps(server):
    """Steps of more than 64 tokens so far."""
    found = {name: value for name, value in server.metrics().items() if name.startswith("weir_step_tokens")}
    upto = [value for name, value in found.items() if "bucket" in name and ('le="64"' in name or 'le="64.0"' in name)]
    return sum(value for name, value in found.items() if "_count" in name) - sum(upto)


def test_targets_and_classes(world):
    server = planned(world)
    try:
        a_request_that_would_come_too_late_is_refused_with_the_time_to_come_back(server)
        a_long_prompt_beside_a_stream_with_a_target_is_cut_small(server)
        urgent_requests_go_first_as_far_as_the_plan_allows(server)
        seconds = [value for name, value in server.metrics().items()
                   if name.startswith("weir_tenant_kv_block_seconds_total") and 'tenant="small"' in name]
        assert len(seconds) == 2 and max(seconds) > 0, seconds
    finally:
        server.close()


def a_request_that_would_come_too_late_is_refused_with_the_time_to_come_back(server):
    assert complete(server, "demo").status == 200, "on an idle device nothing short is late"
    running, response = server.open_stream("/v1/completions", ENDLESS, key("demo"))
    response.readline()
    refused = complete(server, "demo")
    running.close()
    assert refused.status == 503 and refused.json["error"]["code"] == "latency_target_unmet", refused.text
    assert int(refused.headers["retry-after"]) >= 1, refused.headers
    wait_until("its turn", lambda: complete(server, "demo").status == 200)
    alone = complete(server, "demo", "x" * 1_500)
    assert alone.status == 400 and alone.json["error"]["code"] == "latency_target_unmet", alone.text
    assert "retry-after" not in alone.headers, "waiting does not make it shorter"
    assert complete(server, "third", "x" * 1_500).status == 200, "a plan without a target takes it"


def a_long_prompt_beside_a_stream_with_a_target_is_cut_small(server):
    counts = {}
    for tenant in ("small", "third"):
        running, response = server.open_stream("/v1/completions", ENDLESS, key(tenant))
        response.readline()
        before = long_steps(server)
        # Another text each time: one that is cached is no long prompt.
        assert complete(server, "other", tenant[0] * 700).status == 200
        counts[tenant] = long_steps(server) - before
        running.close()
        # A target holds until its stream has ended.
        wait_until("the stream's end", lambda: server.metrics()[f'weir_requests_running{{model="{FAKE}"}}'] == 0)
    figure("plans.long_steps", counts["small"], without_target=counts["third"])
    assert counts["small"] == 0 and counts["third"] > 0, counts


def urgent_requests_go_first_as_far_as_the_plan_allows(server):
    for tenant, classes, first in (("third", (5, 0), 1), ("other", (5, 0), 0)):
        running, response = server.open_stream("/v1/completions", ENDLESS, key(tenant))
        response.readline()
        ended, threads = [], []
        for place, priority in enumerate(classes):
            def ask(place=place, priority=priority):
                assert complete(server, tenant, tokens=20, priority=priority).status == 200
                ended.append(place)

            threads.append(threading.Thread(target=ask))
            threads[-1].start()
            waiting = f'weir_requests_waiting{{model="{FAKE}"}}'
            wait_until("it waits", lambda count=place + 1: server.metrics().get(waiting) == count)
        running.close()
        for thread in threads:
            thread.join()
        assert ended[0] == first, (tenant, ended)


def test_devices_are_reserved_and_models_live_where_they_are_put(world):
    tables = """
[[pools]]
name = "gold"
devices = ["cpu:1"]
[[models]]
name = "here"
source = "fake:step=2ms,token=20us,kv=8K"
devices = ["cpu:0"]
"""
    plans = {"other": 'pool = "gold"\npool_only = true'}
    server = Server(world.weir, {FAKE: "fake:step=2ms,token=20us,kv=8K"}, TWO + '\ncanary_interval = "60s"' + tables,
                    plans=plans)
    try:
        blocks = {name: server.metrics()[f'weir_kv_blocks{{model="{name}"}}'] for name in (FAKE, "here")}
        assert blocks[FAKE] == 2 * blocks["here"] > 0, blocks

        def share_of_the_pool(tenant, model):
            before = steps(server)
            done = together(lambda _: complete(server, tenant, tokens=40, model=model).status, range(8))
            assert done == [200] * 8, done
            grown = {name: count - before[name] for name, count in steps(server).items()}
            return grown["cpu:1"] / sum(grown.values())

        assert share_of_the_pool("demo", FAKE) == 0, "not its pool"
        assert share_of_the_pool("other", FAKE) == 1, "nothing but its pool"
        assert share_of_the_pool("demo", "here") == 0, "the model's only place"
        assert complete(server, "other", model="here").status == 503, "it may not go where the model is"
    finally:
        server.close()
