"""Several devices in one node: streams spread, a device is lost or drained, and no reader notices more than a pause.

Two CPU executors stand for two GPUs: to the engine they differ in nothing but speed.
"""

import os
import random
import signal
import threading
import time

from executors import LOAD, POISON, Load, answered, body, counts, percentile, streamed
from server import CHAT, FAKE, Server, figure, together, wait_until

TWO = 'devices = ["cpu", "cpu"]'
DEVICES = "/admin/v1/devices"


def operator(server, method, path, content=None):
    """One exchange with the operators' API."""
    key = (server.folder / ".weir/admin.key").read_text().strip()
    return server.request(method, path, content, key=key, port=server.admin_port)


def devices(server):
    """name -> what the operators' API says of it."""
    reply = operator(server, "GET", DEVICES)
    assert reply.status == 200, reply.text
    return {device["name"]: device for device in reply.json["data"]}


def wait_for(server, name, state):
    wait_until(f"{name} {state}", lambda: devices(server)[name]["state"] == state)


def kill(server, name):
    """Kill the device's executor, once it is ready."""
    wait_for(server, name, "ready")
    os.kill(devices(server)[name]["pid"], signal.SIGKILL)


def steps(server):
    return {name: device["steps"] for name, device in devices(server).items()}


def expectations(server, requests):
    expected = []
    for text, usage, error, _ in together(lambda request: answered(server, request), requests):
        assert error is None and text, error
        expected.append((text, usage))
    return expected


def spread(server, requests, name):
    """All at once; each device takes a good part."""
    before = steps(server)
    expected = expectations(server, requests)
    done = {device: count - before[device] for device, count in steps(server).items()}
    share = min(done.values()) / max(1, sum(done.values()))
    assert share > 0.2, done
    figure(f"4.{name}_least_share_of_steps", round(share, 3), devices=len(done), requests=len(requests))
    return expected


def killed(server, requests, expected, turns, name, victims=1):
    """All requests stream while a device, or both, are killed; each text is whole and told once."""
    chance, times = random.Random(9), []
    for turn in range(turns):
        begun, results = threading.Semaphore(0), [None] * len(requests)

        def one(index):
            first = [begun.release]

            def heard():
                if first:
                    first.pop()()

            results[index] = streamed(server, requests[index], heard)

        threads = [threading.Thread(target=one, args=(index,), daemon=True) for index in range(len(requests))]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert begun.acquire(timeout=120)
        running = devices(server)
        for victim in chance.sample(sorted(running), victims):
            os.kill(running[victim]["pid"], signal.SIGKILL)
        began = time.monotonic()
        text, _, error, _ = answered(server, body(requests[0]["model"], f"the next good answer {turn}", 2))
        assert error is None and text, error
        times.append(round(1000 * (time.monotonic() - began)))
        for thread in threads:
            thread.join()
        for got, (text, usage) in zip(results, expected, strict=True):
            assert got[2] is None and got[3] == 1, got
            assert got[0] == text and counts(got[1]) == counts(usage), (got[0], text)
        for device in ("cpu:0", "cpu:1"):
            wait_for(server, device, "ready")
    metrics, kills = server.metrics(), victims * turns
    assert metrics["weir_executor_restarts_total"] == kills, metrics["weir_executor_restarts_total"]
    assert metrics["weir_requests_quarantined_total"] == 0 and metrics["weir_requests_resumed_total"] > 0
    assert metrics['weir_requests_total{outcome="failed"}'] == 0
    figure(f"4.{name}_of_two_devices_recovery_p99_ms", percentile(times, 99), p50=percentile(times, 50), max=max(times),
           kills=kills, streams=len(requests), resumed=int(metrics["weir_requests_resumed_total"]), failed=0, differing=0)


def test_streams_spread_and_go_on_when_one_of_two_is_killed(world):
    server = Server(world.weir, {FAKE: LOAD}, TWO)
    try:
        requests = [body(FAKE, f"device {index} " + "y" * (13 * index % 90), 60 + 7 * index % 80,
                         **({} if index % 2 else {"temperature": 0.9, "seed": index})) for index in range(32)]
        expected = spread(server, requests, "fake")
        killed(server, requests, expected, world.size(3, 40), "fake")
    finally:
        server.close()


def test_a_real_model_goes_on_when_one_of_two_is_killed(world):
    if not world.full:
        return
    server = Server(world.weir, {CHAT: world.models / CHAT}, TWO + '\nkv_memory = "128MiB"')
    try:
        requests = [body(CHAT, f"Tale {index}: once upon a time there was", 12 + index,
                         **({} if index % 2 else {"temperature": 0.8, "seed": index})) for index in range(12)]
        expected = spread(server, requests, "smollm2")
        killed(server, requests, expected, 5, "smollm2")
    finally:
        server.close()


def test_streams_go_on_when_both_are_killed_at_once(world):
    server = Server(world.weir, {FAKE: LOAD}, TWO)
    try:
        requests = [body(FAKE, f"both {index}", 60 + 3 * index) for index in range(16)]
        killed(server, requests, expectations(server, requests), world.size(2, 10), "fake_both", victims=2)
    finally:
        server.close()


def test_a_device_is_drained_under_load_and_comes_back(world):
    server = Server(world.weir, {FAKE: LOAD}, TWO)
    try:
        requests = [body(FAKE, f"drain {index}", 20 + 5 * index % 60) for index in range(24)]
        load = Load(server, requests, expectations(server, requests), 16)
        try:
            for turn in range(world.size(2, 12)):
                name = f"cpu:{turn % 2}"
                reply = operator(server, "POST", f"{DEVICES}/{name}/drain", {"deadline_s": 0} if turn % 3 == 2 else None)
                assert reply.status == 200, reply.text
                wait_for(server, name, "drained")
                assert devices(server)[name]["pid"] is None
                assert server.request("GET", "/ready", key=None).status == 200
                other = operator(server, "POST", f"{DEVICES}/cpu:{1 - turn % 2}/drain")
                assert (other.status, other.json["error"]["code"]) == (409, "last_device"), other.text
                before = steps(server)[name]
                assert operator(server, "POST", f"{DEVICES}/{name}/resume").status == 200
                wait_for(server, name, "ready")
                wait_until(f"{name} takes work again", lambda: steps(server)[name] > before + 3)
                assert not load.stopped.is_set()
        finally:
            seen = load.end()
        metrics = server.metrics()
        assert metrics['weir_requests_total{outcome="failed"}'] == metrics['weir_requests_total{outcome="rejected"}'] == 0
        assert metrics["weir_executor_restarts_total"] == 0, "a drained executor was not lost"
        figure("4.drain_failed_requests", 0, drains=world.size(2, 12), answered=sum(seen.values()))
    finally:
        server.close()


def test_the_last_device_is_drained_only_by_force(world):
    server = Server(world.weir, {FAKE: LOAD})
    try:
        assert operator(server, "POST", f"{DEVICES}/cpu:0/drain").status == 409
        assert operator(server, "POST", f"{DEVICES}/cpu:0/drain", {"force": True}).status == 200
        wait_for(server, "cpu:0", "drained")
        assert server.request("GET", "/ready", key=None).status == 503
        assert server.post("/v1/completions", body(FAKE, "nobody is there", 2)).status == 503
        assert operator(server, "POST", f"{DEVICES}/cpu:0/resume").status == 200
        assert not answered(server, body(FAKE, "and back", 2))[2]
    finally:
        server.close()


def test_a_poison_ends_two_of_two_executors_and_no_bystander(world):
    server = Server(world.weir, {FAKE: LOAD + ",crash_on=7"}, TWO + "\nrows_max = 256")
    try:
        requests = [body(FAKE, f"bystander {index}", 60 + index % 40) for index in range(world.size(24, 48))]
        expected = expectations(server, requests)
        begun, results = threading.Semaphore(0), [None] * len(requests)

        def bystander(index):
            first = [begun.release]
            results[index] = streamed(server, requests[index], lambda: first.pop()() if first else None)

        threads = [threading.Thread(target=bystander, args=(index,), daemon=True) for index in range(len(requests))]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert begun.acquire(timeout=60)
        _, _, error, _ = answered(server, body(FAKE, "please " + POISON, 5))
        for thread in threads:
            thread.join()
        assert error["code"] == "request_quarantined", error
        for got, (text, usage) in zip(results, expected, strict=True):
            assert got[2] is None and got[3] == 1 and got[0] == text and counts(got[1]) == counts(usage), got
        for device in ("cpu:0", "cpu:1"):
            wait_for(server, device, "ready")
        metrics = server.metrics()
        assert metrics["weir_executor_restarts_total"] <= 2, metrics["weir_executor_restarts_total"]
        assert metrics["weir_requests_quarantined_total"] == 1
        figure("4.poison_deaths_of_two_devices", int(metrics["weir_executor_restarts_total"]), bystanders=len(requests),
               finished_once=len(requests))
    finally:
        server.close()


def test_a_model_is_added_while_one_device_is_down(world):
    root = world.models
    server = Server(world.weir, {FAKE: LOAD}, TWO + '\nkv_memory = "64MiB"', f'models_root = "{root}"')
    try:
        kill(server, "cpu:1")
        reply = operator(server, "POST", "/admin/v1/models", {"name": "added", "source": CHAT})
        assert reply.status == 201, reply.text
        for device in ("cpu:0", "cpu:1"):
            wait_until(f"the model on {device}", lambda: "added" in devices(server)[device]["models"])
        one = answered(server, body("added", "Once upon a time", 4))
        assert not one[2], one
        # Each of the two has it, and gives the same text.
        for name in ("cpu:0", "cpu:1"):
            assert operator(server, "POST", f"{DEVICES}/{name}/drain").status == 200
            wait_for(server, name, "drained")
            assert answered(server, body("added", "Once upon a time", 4))[0] == one[0]
            assert operator(server, "POST", f"{DEVICES}/{name}/resume").status == 200
            wait_until(f"the model on {name} again", lambda: "added" in devices(server)[name]["models"])
    finally:
        server.close()


def test_a_second_turn_goes_where_the_first_one_is(world):
    server = Server(world.weir, {FAKE: LOAD}, TWO)
    try:
        talks = [f"conversation {turn}: " + "so much was said before " * 12 for turn in range(8)]
        before = steps(server)
        firsts = together(lambda talk: answered(server, body(FAKE, talk, 40)), talks)
        assert all(count > before[name] + 20 for name, count in steps(server).items()), "they are on both devices"
        # A device's cache is its own, so what is found was looked for in the right one.
        found = []
        for talk, first in zip(talks, firsts, strict=True):
            _, usage, error, _ = answered(server, body(FAKE, talk + first[0] + " and on", 4))
            assert error is None
            found.append(usage["prompt_tokens_details"]["cached_tokens"])
        assert all(tokens >= 288 for tokens in found), found
        figure("4.second_turns_with_their_prefix", len(found), cached_tokens_min=min(found))
    finally:
        server.close()
