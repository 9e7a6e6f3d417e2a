"""The executor dies alone: its requests end with an error, it is started again, and the server lives."""

import json
import os
import signal

from server import FAKE, FAKE_SLOW, Server, wait_until


def test_a_killed_executor_ends_its_requests_and_is_replaced(world):
    server = Server(world.weir, {FAKE: "fake:step=4ms,token=20us", FAKE_SLOW: "fake:step=50ms,token=20us"})
    try:
        (pid, _), = [child for child in server.children() if "executor" in child[1]]
        body = {"model": FAKE_SLOW, "prompt": "cut short", "max_tokens": 5000, "ignore_eos": True}
        connection, response = server.open_stream("/v1/completions", body)
        assert response.readline().startswith(b"data: ")
        os.kill(pid, signal.SIGKILL)
        events = [line[len("data: "):] for line in response.read().decode().splitlines() if line.startswith("data: ")]
        connection.close()
        assert events[-1] == "[DONE]", events[-2:]
        error = json.loads(events[-2])["error"]
        assert error["type"] == "server_error" and set(error) == {"message", "type", "param", "code"}, error

        wait_until("another executor", lambda: server.request("GET", "/ready", key=None).status == 200)
        (replaced, _), = [child for child in server.children() if "executor" in child[1]]
        assert replaced != pid
        reply = server.post("/v1/completions", {"model": FAKE, "prompt": "again", "max_tokens": 3, "ignore_eos": True})
        assert reply.status == 200 and reply.json["usage"]["completion_tokens"] == 3, reply.text
        assert server.metrics()["weir_executor_restarts_total"] == 1
    finally:
        server.close()
