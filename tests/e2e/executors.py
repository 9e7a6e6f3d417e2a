"""Executors die alone: what one interrupts goes on where it was, poison is given up, and a hung one is noticed.

Figure 4: kills under load, a poison request among bystanders, a stopped executor, overload without false alarms.
"""

import collections
import json
import os
import random
import signal
import threading
import time

from server import CHAT, FAKE, Server, figure, together, wait_until

LOAD = "fake:step=4ms,token=20us"
POISON = "\u0007"


def executor(server):
    """The process id of the executor, once there is one."""
    found = []

    def one():
        found[:] = [pid for pid, command in server.children() if "executor" in command]
        return len(found) == 1

    wait_until("one executor", one)
    return found[0]


def body(model, prompt, tokens, **more):
    return {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True} | more


def streamed(server, request, first=lambda: None):
    """(text, usage, error, terminal events) of a streamed completion; `first` is called at its first text."""
    connection, response = server.open_stream("/v1/completions", request | {"stream_options": {"include_usage": True}})
    text, usage, error, ends = "", None, None, 0
    while line := response.readline():
        if not line.startswith(b"data: "):
            continue
        data = line[len(b"data: "):].strip()
        assert not ends, f"an event after the last: {line}"
        if data == b"[DONE]":
            ends += 1
            continue
        event = json.loads(data)
        if "error" in event:
            assert error is None, "a second error"
            error = event["error"]
            continue
        for choice in event["choices"]:
            text += choice["text"]
            if choice["text"]:
                first()
        usage = event.get("usage") or usage
    connection.close()
    return text, usage, error, ends


def answered(server, request):
    """The same of one that is not streamed."""
    reply = server.post("/v1/completions", request)
    if reply.status != 200:
        return "", None, reply.json["error"], 1
    return reply.json["choices"][0]["text"], reply.json["usage"], None, 1


def counts(usage):
    return usage["prompt_tokens"], usage["completion_tokens"]


class Load:
    """Clients that ask again and again, half of them streaming, and compare each answer with the undisturbed one."""

    def __init__(self, server, requests, expected, clients):
        self.server, self.requests, self.expected = server, requests, expected
        self.stopped, self.failures, self.seen = threading.Event(), [], collections.Counter()
        self.threads = [threading.Thread(target=self._client, args=(n,), daemon=True) for n in range(clients)]
        for thread in self.threads:
            thread.start()

    def _client(self, client):
        turn = client
        while not self.stopped.is_set():
            index = turn % len(self.requests)
            turn += len(self.threads) + 1
            ask = streamed if client % 2 else answered
            try:
                text, usage, error, ends = ask(self.server, self.requests[index])
                assert error is None, error
                assert ends == 1, f"{ends} ends"
                expected_text, expected_usage = self.expected[index]
                assert text == expected_text, f"request {index}: {text!r} is not {expected_text!r}"
                assert counts(usage) == counts(expected_usage), (usage, expected_usage)
                self.seen["streams" if client % 2 else "answers"] += 1
            except Exception as failure:  # noqa: BLE001 - told by whoever started the load
                self.failures.append(failure)
                self.stopped.set()

    def end(self):
        self.stopped.set()
        for thread in self.threads:
            thread.join()
        if self.failures:
            raise self.failures[0]
        assert all(self.seen[kind] for kind in ("streams", "answers")), self.seen
        return self.seen


def percentile(values, share):
    """The smallest of them that so large a share is not above."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]


def kills_under_load(server, model, requests, clients, kills, name, pause):
    """Kill the executor again and again; print the times from a kill to the next good answer."""
    expected = []
    for text, usage, error, _ in together(lambda request: answered(server, request), requests):
        assert error is None and text, error
        expected.append((text, usage))
    load = Load(server, requests, expected, clients)
    chance, times, loads = random.Random(4), [], []
    try:
        for _ in range(kills):
            # The load runs between kills, or nothing would be under way at the next.
            if load.stopped.wait(chance.uniform(*pause)):
                break
            pid = executor(server)
            os.kill(pid, signal.SIGKILL)
            began = time.monotonic()
            # Sent after the kill and admitted by the next executor: it waits until whatever the kill interrupted was looked at.
            text, _, error, _ = answered(server, body(model, "the next good answer", 2))
            assert error is None and text, error
            times.append(time.monotonic() - began)
    finally:
        seen = load.end()
    metrics = server.metrics()
    assert metrics["weir_executor_restarts_total"] == kills, metrics["weir_executor_restarts_total"]
    assert metrics["weir_requests_resumed_total"] > 0, "nothing was under way"
    assert metrics["weir_requests_quarantined_total"] == 0
    assert metrics["weir_executor_hangs_total"] == 0
    milliseconds = [round(1000 * value) for value in times]
    figure(f"4.{name}_recovery_p99_ms", percentile(milliseconds, 99), p50=percentile(milliseconds, 50),
           max=max(milliseconds), kills=kills, clients=clients, streams=seen["streams"], answers=seen["answers"],
           resumed=int(metrics["weir_requests_resumed_total"]), differing=0)


def test_kills_under_load_lose_and_repeat_nothing(world):
    server = Server(world.weir, {FAKE: LOAD})
    try:
        # Greedy and seeded ones, short and long.
        requests = [body(FAKE, f"load {index} " + "x" * (11 * index % 90), 20 + 7 * index % 80,
                         **({} if index % 2 else {"temperature": 0.9, "seed": index})) for index in range(48)]
        kills_under_load(server, FAKE, requests, 32, world.size(5, 100), "fake", (0.1, 0.5))
    finally:
        server.close()


def test_kills_of_a_real_model_lose_and_repeat_nothing(world):
    if not world.full:
        return
    server = Server(world.weir, {CHAT: world.models / CHAT})
    try:
        requests = [body(CHAT, f"Tale {index}: once upon a time there was", 12 + index,
                         **({} if index % 2 else {"temperature": 0.8, "seed": index})) for index in range(12)]
        kills_under_load(server, CHAT, requests, 8, 20, "smollm2", (1.0, 4.0))
        loads = [json.loads(line.split("millis=")[1].split()[0]) for line in server.output().splitlines()
                 if "millis=" in line]
        if loads:
            figure("4.smollm2_load_ms_max", max(loads), loads=len(loads))
    finally:
        server.close()


def test_a_poison_ends_two_executors_and_no_bystander(world):
    server = Server(world.weir, {FAKE: LOAD + ",crash_on=7"}, "rows_max = 256\nqueue_len_max = 1024")
    count = world.size(40, 200)
    try:
        requests = [body(FAKE, f"bystander {index}", 60 + index % 40) for index in range(count)]
        # A tenant's own bound on what waits is not the matter here.
        expected = [answer for at in range(0, count, 50)
                    for answer in together(lambda request: answered(server, request), requests[at:at + 50])]
        begun, results = threading.Semaphore(0), [None] * count

        def bystander(index):
            first = [begun.release]
            if index % 2:
                results[index] = streamed(server, requests[index], lambda: first.pop()() if first else None)
            else:
                results[index] = answered(server, requests[index])

        threads = [threading.Thread(target=bystander, args=(index,), daemon=True) for index in range(count)]
        for thread in threads:
            thread.start()
        # Some are delivering.
        for _ in range(count // 8):
            assert begun.acquire(timeout=60)
        poison = body(FAKE, "please " + POISON, 5)
        _, _, error, _ = answered(server, poison)
        for thread in threads:
            thread.join()
        assert error["code"] == "request_quarantined", error
        whole = 0
        for got, wanted in zip(results, expected, strict=True):
            assert got[2] is None and got[3] == 1 and got[0] == wanted[0] and counts(got[1]) == counts(wanted[1]), got
            whole += 1
        # An answer proves that the last death's restart has been counted.
        assert not answered(server, body(FAKE, "after all", 2))[2]
        metrics = server.metrics()
        deaths = metrics["weir_executor_restarts_total"]
        assert 1 <= deaths <= 2, deaths
        assert metrics["weir_requests_quarantined_total"] == 1
        assert metrics["weir_requests_resumed_total"] > 0

        # Tried again, by whatever seed, it is refused at the door.
        again = server.post("/v1/completions", poison | {"seed": 3})
        assert (again.status, again.json["error"]["code"]) == (400, "request_quarantined"), again.text
        stream = server.post("/v1/completions", poison | {"stream": True})
        assert (stream.status, stream.json["error"]["code"]) == (400, "request_quarantined"), stream.text
        assert server.metrics()["weir_executor_restarts_total"] == deaths
        figure("4.poison_executor_deaths", int(deaths), bystanders=count, finished_once=whole,
               resumed=int(metrics["weir_requests_resumed_total"]))
    finally:
        server.close()


def stopped_executor(world, server, streams, name):
    """Stop the executor under these streams (or idle) and see it replaced; then let the old one go on."""
    expected = [text for text, *_ in together(lambda request: answered(server, request), streams)]
    restarts = server.metrics()["weir_executor_restarts_total"]
    begun, results = threading.Semaphore(0), [None] * len(streams)

    def one(index):
        first = [begun.release]
        results[index] = streamed(server, streams[index], lambda: first.pop()() if first else None)

    threads = [threading.Thread(target=one, args=(index,), daemon=True) for index in range(len(streams))]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert begun.acquire(timeout=60)
    pid = executor(server)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    wait_until("the hang noticed", lambda: server.metrics()["weir_executor_restarts_total"] > restarts, patience=60)
    noticed = time.monotonic() - began
    for thread in threads:
        thread.join()
    assert [result[0] for result in results] == expected
    assert all(result[2] is None and result[3] == 1 for result in results), results
    # Whoever stopped it would let it go on after a minute: there is nobody left.
    assert not os.path.exists(f"/proc/{pid}"), "the stopped executor was killed and reaped"
    wait_until("/ready", lambda: server.request("GET", "/ready", key=None).status == 200)
    figure(f"4.stopped_{name}_noticed_s", round(noticed, 2), streams=len(streams))


def test_a_stopped_executor_is_noticed_and_its_streams_go_on(world):
    server = Server(world.weir, {FAKE: LOAD})
    try:
        stopped_executor(world, server, [body(FAKE, f"stop {index}", 300) for index in range(8)], "busy")
        if world.full:
            stopped_executor(world, server, [], "idle")
        assert server.metrics()["weir_executor_hangs_total"] == world.size(1, 2)
    finally:
        server.close()


def test_a_hung_step_is_a_death_of_its_poison(world):
    server = Server(world.weir, {FAKE: LOAD + ",hang_on=5"})
    try:
        _, _, error, _ = answered(server, body(FAKE, "hang \u0005", 5))
        assert error["code"] == "request_quarantined", error
        assert server.metrics()["weir_executor_hangs_total"] == 2
        assert not answered(server, body(FAKE, "and on", 3))[2]
    finally:
        server.close()


def test_a_row_that_is_not_a_number_ends_alone(world):
    server = Server(world.weir, {FAKE: LOAD + ",nan_on=6"})
    try:
        requests = [body(FAKE, f"beside {index}", 80) for index in range(6)]
        expected = [text for text, *_ in together(lambda request: answered(server, request), requests)]
        results = [None] * len(requests)
        threads = [threading.Thread(target=lambda i=i: results.__setitem__(i, streamed(server, requests[i])), daemon=True)
                   for i in range(len(requests))]
        for thread in threads:
            thread.start()
        _, _, error, _ = answered(server, body(FAKE, "not a number \u0006", 20))
        for thread in threads:
            thread.join()
        assert error["type"] == "server_error", error
        assert [result[0] for result in results] == expected
        metrics = server.metrics()
        assert metrics["weir_executor_restarts_total"] == 0
        figure("4.nan_row_neighbours_differing", 0, neighbours=len(requests))
    finally:
        server.close()


def test_overload_is_no_hang(world):
    """Twice what the model can do, for a while, and a single step that takes far longer than the limit for silence."""
    seconds = world.size(2, 60)
    server = Server(world.weir, {"long": "fake:step=5s,token=0us", FAKE: "fake:step=20ms,token=100us"}, "rows_max = 8")
    try:
        until, outcomes, lock = time.monotonic() + seconds, collections.Counter(), threading.Lock()

        def client(index):
            while time.monotonic() < until:
                reply = server.post("/v1/completions", body(FAKE, f"overload {index}", 12))
                with lock:
                    outcomes[reply.status] += 1

        threads = [threading.Thread(target=client, args=(index,), daemon=True) for index in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes[200] > 0 and set(outcomes) <= {200, 429, 503}, outcomes
        text, _, error, _ = answered(server, body("long", "one long step", 1))
        assert error is None and text, error
        metrics = server.metrics()
        assert metrics["weir_executor_hangs_total"] == 0 and metrics["weir_executor_restarts_total"] == 0
        figure("4.false_alarms", 0, seconds=seconds, answers=outcomes[200], refused=outcomes[429] + outcomes[503])
    finally:
        server.close()
