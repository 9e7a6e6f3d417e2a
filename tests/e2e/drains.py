"""SIGTERM: what runs is finished or told so, what comes is sent elsewhere, and the process ends in time."""

import http.client
import json
import os
import random
import signal
import time

from crowd import Client, Crowd, connect, ending, payload, request
from server import CHAT, TENANTS, Server, figure, wait_until

KEY = TENANTS["demo"][0]
# Of the servers that have to go before their streams are done.
DRAIN_SECONDS = 1.0


def body(tokens, **more):
    return {"model": "fake", "prompt": "x", "max_tokens": tokens, "ignore_eos": True, **more}


def wait_for_end(server, patience=60):
    """The exit code, once the process is gone."""
    return server.process.wait(timeout=patience)


def finish(server):
    """Looks after a server whose end was part of the case."""
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait()
    log = server.output()
    server.log.close()
    assert "panicked" not in log, log


def test_every_request_has_its_end_when_the_server_is_told_to_go(world):
    """32 streams, some longer than the drain, others done in time, with short requests coming all the while; the signal
    comes at a random moment."""
    rng, times, endings, late = random.Random(6), world.size(3, 50), {}, []
    for _ in range(times):
        server = Server(world.weir, {"fake": "fake:step=2ms,token=0us,kv=4M"}, "",
                        f'drain_time = "{DRAIN_SECONDS}s"\ndrain_accept_time = "{DRAIN_SECONDS}s"')
        try:
            late.append(_one_drain(server, rng, endings))
        finally:
            finish(server)
    figure("6.drains", times, **{str(how): count for how, count in sorted(endings.items(), key=str)},
           broken_off=endings.get(None, 0))
    figure("6.seconds_after_deadline", round(max(late), 2), median=round(sorted(late)[len(late) // 2], 2))
    assert endings.get("error", 0) and endings.get("finished", 0) and endings.get("whole", 0), endings
    assert None not in endings, endings


def _one_drain(server, rng, endings):
    """How long after its deadline the process was gone; `endings` counts how requests ended."""
    crowd, clients, told = Crowd(), [], []

    def ask(path, tokens, **more):
        if told and time.monotonic() > told[0] + DRAIN_SECONDS / 2:
            # The listener closes at the deadline; what it had not accepted by then is reset by the system.
            return
        sock = connect(server.port)
        sock.sendall(request(path, body(tokens, **more), KEY, "connection: close\r\n"))
        clients.append(Client(sock))
        crowd.read(clients[-1])

    def tell():
        server.process.send_signal(signal.SIGTERM)
        told.append(time.monotonic())

    begun = time.monotonic()
    for index in range(32):
        # Up to 400 tokens take less than the second there is, 5,000 do not.
        ask("/v1/completions", 5000 if index % 4 == 0 else rng.randrange(1, 400), stream=index % 3 > 0)
    moment = begun + rng.random() * 0.6
    for index in range(30):
        # Short ones all the while, also while it drains: those are refused, in full.
        crowd.at(begun + index * 0.03, lambda: ask("/v1/completions", 2))
    crowd.at(moment, tell)
    crowd.run()
    code = wait_for_end(server)
    gone = time.monotonic()
    assert code == 0, f"ended with {code}:\n{server.output()}"
    for client in clients:
        how = ending(client.received)
        head, answer = payload(client.received)
        if how == "whole":
            how = {b"200": "whole", b"503": "refused"}[head.split()[1]]
            if how == "refused":
                assert b"connection: close" in head and b"retry-after: " in head, head
                assert json.loads(answer)["error"]["code"] == "overloaded", answer
        endings[how] = endings.get(how, 0) + 1
    return gone - told[0] - DRAIN_SECONDS


def probe(connection, path="/ready"):
    connection.request("GET", path)
    response = connection.getresponse()
    return response, response.read()


def test_probes_say_so_at_once_and_clients_are_sent_away(world):
    server = Server(world.weir, {"fake": "fake:step=2ms,token=0us"}, "",
                    'drain_time = "60s"\ndrain_accept_time = "1s"')
    try:
        existing = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        working = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        assert probe(existing)[0].status == 200 and probe(working, "/health")[0].status == 200
        _, running = server.open_stream("/v1/completions", body(900), KEY)
        server.process.send_signal(signal.SIGTERM)
        wait_until("the signal to arrive", lambda: server.metrics()["weir_draining"] == 1)
        response, answer = probe(existing)
        assert response.status == 503 and response.headers["connection"] == "close", (response.status, response.headers)
        assert response.headers["retry-after"] and b"draining" in answer
        # New connections are still accepted, for probes and for work, which is refused before its body is read.
        assert server.request("GET", "/ready", key=None).status == 503
        assert server.request("GET", "/health", key=None).status == 200
        refused = server.post("/v1/completions", body(1))
        assert (refused.status, refused.headers["retry-after"], refused.headers["connection"]) == (503, "1", "close")
        assert refused.json["error"]["code"] == "overloaded"
        unsent = connect(server.port)
        unsent.sendall(request("/v1/completions", body(1), KEY)[:-5])
        assert unsent.recv(1 << 16).startswith(b"HTTP/1.1 503 "), "the body was waited for"
        unsent.close()
        # A key that is not known is told so, drain or not.
        assert server.post("/v1/completions", body(1), key="nobody").status == 401
        # Also work on a connection that was there before.
        working.request("POST", "/v1/completions", json.dumps(body(1)), {"Authorization": f"Bearer {KEY}"})
        response = working.getresponse()
        assert response.status == 503 and response.headers["connection"] == "close"
        response.read()

        def closed():
            try:
                connect(server.port).close()
            except ConnectionRefusedError:
                return True
            return False

        wait_until("the listener to close", closed)
        # What ran is still running, and the metrics are still there.
        assert server.metrics()["weir_draining"] == 1
        text = running.read().decode()
        assert text.rstrip().endswith("data: [DONE]") and '"error"' not in text, text[-500:]
        assert wait_for_end(server) == 0, server.output()
    finally:
        finish(server)


def test_what_the_deadline_ends_is_counted_and_told(world):
    """A client that reads nothing keeps its connection, and so the metrics, for a moment longer than its request."""
    server = Server(world.weir, {"fake": "fake:step=10ms,token=0us,kv=1M", "wide": "fake:step=5ms,token=0us,text=1KiB"}, "",
                    'drain_time = "1s"')
    try:
        blocked = connect(server.port, receive_buffer=4096)
        blocked.sendall(request("/v1/completions", body(400, stream=True) | {"model": "wide"}, KEY))
        wait_until("the reader to be cut", lambda: server.metrics()['weir_requests_total{outcome="failed"}'] == 1)
        crowd, clients = Crowd(), []
        for index in range(12):
            sock = connect(server.port)
            sent = (request("/v1/completions", body(20_000, stream=index % 2 > 0), KEY, "connection: close\r\n") if index % 3
                    else request("/v1/embeddings", {"model": "fake", "input": ["x" * 500] * 500}, KEY, "connection: close\r\n"))
            sock.sendall(sent)
            clients.append(Client(sock))
            crowd.read(clients[-1])
        wait_until("all to be there", lambda: server.metrics()["weir_requests_live"] >= 12)
        server.process.send_signal(signal.SIGTERM)
        crowd.run()
        metrics = server.metrics()
        assert wait_for_end(server) == 0, server.output()
        blocked.close()
        for client in clients:
            head, answer = payload(client.received)
            assert ending(client.received) in ("error", "whole"), client.received[-300:]
            assert head.split()[1] in (b"200", b"503"), head
            assert b'"code":"overloaded"' in answer, answer[-300:]
        assert metrics['weir_requests_total{outcome="failed"}'] == 1 + len(clients), metrics
        left = {name: value for name, value in metrics.items() if value and name.partition("{")[0] in (
            "weir_requests_live", "weir_requests_running", "weir_requests_waiting", "weir_kv_blocks_used", "weir_inbox_requests")}
        assert not left, left
    finally:
        finish(server)


def test_a_second_signal_ends_it_at_once(world):
    server = Server(world.weir, {"fake": "fake:step=2ms,token=0us,kv=1M"}, "", 'drain_time = "3600s"')
    try:
        connection, _ = server.open_stream("/v1/completions", body(30_000), KEY)
        server.process.send_signal(signal.SIGTERM)
        wait_until("the drain", lambda: server.metrics()["weir_draining"] == 1)
        assert server.process.poll() is None, "it did not wait for its stream"
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code = wait_for_end(server)
        assert code == 1, f"ended with {code}"
        assert "second signal" in server.output()
        figure("6.second_signal_seconds", round(time.monotonic() - begun, 2), exit_code=code)
        connection.close()
    finally:
        finish(server)


def test_ctrl_c_waits_for_nobody_but_those_who_are_served(world):
    """With no stream there is nothing to wait for, however long the times are."""
    server = Server(world.weir, {"fake": "fake:step=2ms,token=0us"}, "", 'drain_time = "3600s"\ndrain_accept_time = "3600s"')
    try:
        connection, running = server.open_stream("/v1/completions", body(200), KEY)
        server.process.send_signal(signal.SIGINT)
        text = running.read().decode()
        assert text.rstrip().endswith("data: [DONE]") and '"error"' not in text, text[-500:]
        assert wait_for_end(server) == 0, server.output()
        connection.close()
    finally:
        finish(server)


def test_a_signal_while_loading_ends_it(world):
    server = Server(world.weir, {CHAT: world.models / CHAT}, ready=False)
    try:
        wait_until("the port", lambda: _answers(server))
        refused = server.post("/v1/chat/completions", {"model": CHAT, "messages": [{"role": "user", "content": "x"}]})
        server.process.send_signal(signal.SIGTERM)
        assert wait_for_end(server) == 0, server.output()
        assert refused.status == 503 and refused.headers["retry-after"], refused.text
        assert "Weir serves" not in server.output(), "it had loaded before the signal came"
    finally:
        finish(server)


def _answers(server):
    try:
        return server.request("GET", "/health", key=None).status == 200
    except OSError:
        return False


def test_a_signal_while_the_executor_is_down_ends_it(world):
    server = Server(world.weir, {"fake": "fake:step=2ms,token=0us"}, "", 'drain_time = "20s"')
    try:
        # Down for good: whoever starts it again finds the next one stopped, too.
        (pid, _), = [child for child in server.children() if "executor" in child[1]]
        crowd, clients = Crowd(), []
        for _ in range(8):
            sock = connect(server.port)
            sock.sendall(request("/v1/completions", body(5000, stream=True), KEY, "connection: close\r\n"))
            clients.append(Client(sock))
            crowd.read(clients[-1])
        wait_until("the streams to run", lambda: server.metrics()['weir_requests_running{model="fake"}'] == 8)
        os.kill(pid, signal.SIGKILL)
        server.process.send_signal(signal.SIGTERM)
        crowd.run()
        assert wait_for_end(server) == 0, server.output()
        assert {ending(client.received) for client in clients} <= {"error", "finished"}, clients
    finally:
        finish(server)
