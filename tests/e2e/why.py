"""Why a request waited: asked for by its id while it waits and after, by its tenant and by nobody else."""

import http.client
import json
import os
import subprocess
import tempfile
import urllib.parse

from server import FAKE, FAKE_SLOW, PATIENCE, TENANTS, clean_environment, together, wait_until

KEY, OTHER, SMALL = (TENANTS[name][0] for name in ("demo", "other", "small"))
CAUSES = ["queue", "share", "quota", "memory", "placement", "preemption"]


def asked(world, name, key=KEY):
    reply = world.fake.request("GET", "/v1/requests/" + urllib.parse.quote(name, safe=""), key=key)
    return reply.json if reply.status == 200 else None


def adds_up(told):
    assert list(told["wait_us"]) == CAUSES, told
    assert told["steps_us"] + sum(told["wait_us"].values()) == told["total_us"], told
    return told


def send(world, name, body, key=KEY):
    """The connection of a request that is sent and not answered yet."""
    connection = http.client.HTTPConnection("127.0.0.1", world.fake.port, timeout=PATIENCE)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "x-request-id": name}
    connection.request("POST", "/v1/completions", json.dumps(body).encode(), headers)
    return connection


def weir_why(world, *arguments, key=KEY):
    environment = clean_environment() | {"WEIR_URL": f"http://127.0.0.1:{world.fake.port}", "WEIR_API_KEY": key}
    return subprocess.run([world.weir, "why", *arguments], capture_output=True, text=True, timeout=60, check=False,
                          cwd=tempfile.gettempdir(), env=environment, stdin=subprocess.DEVNULL)


def test_a_waiting_request_says_what_for_and_when_it_will_start(world):
    """A tenant that may run one request: the second is the first in line until its client leaves."""
    running = world.fake.open_stream("/v1/completions", {"model": FAKE_SLOW, "prompt": "x", "max_tokens": 2000,
                                                         "ignore_eos": True}, SMALL)
    waiting = None
    try:
        running[1].readline()
        waiting = send(world, "why/waits 1%".replace(" ", "_"), {"model": FAKE_SLOW, "prompt": "y", "max_tokens": 1}, SMALL)
        name = "why/waits_1%"
        told = wait_until("the request to be there", lambda: asked(world, name, SMALL))
        assert (told["id"], told["object"], told["model"]) == (name, "request", FAKE_SLOW), told
        assert (told["state"], told["cause"], told["position"]) == ("waiting", "queue", 1), told
        assert told["expected_start_ms"] >= 0 and told["created"] > 0 and told["steps_us"] == 0, told
        later = wait_until("time to pass", lambda: (again := asked(world, name, SMALL))["total_us"] > told["total_us"]
                           and again)
        assert later["wait_us"]["queue"] > told["wait_us"]["queue"], (told, later)
        adds_up(told), adds_up(later)
        shown = weir_why(world, name, key=SMALL)
        assert shown.returncode == 0, shown
        assert shown.stdout.startswith(f"{name}: waiting (queue), number 1 in line, expected to start in "), shown.stdout
    finally:
        running[0].close()
        if waiting:
            assert waiting.getresponse().status == 200
            waiting.close()
    ended = wait_until("its end", lambda: (told := asked(world, name, SMALL))["state"] == "finished" and told)
    assert adds_up(ended)["wait_us"]["queue"] >= later["wait_us"]["queue"] and ended["steps_us"] > 0, ended
    assert (ended["cause"], ended["position"], ended["expected_start_ms"]) == (None, None, None), ended


def test_a_running_request_is_known_by_the_id_of_its_answer(world):
    connection, response = world.fake.open_stream(
        "/v1/chat/completions",
        {"model": FAKE_SLOW, "messages": [{"role": "user", "content": "x"}], "max_tokens": 500, "ignore_eos": True})
    try:
        name = json.loads(response.readline().removeprefix(b"data: "))["id"]
        told = adds_up(asked(world, name))
        assert (told["state"], told["position"]) == ("running", None), told
    finally:
        connection.close()
    ended = wait_until("its end", lambda: (told := asked(world, name))["state"] != "running" and told)
    assert adds_up(ended)["state"] == "cancelled" and ended["device_time_us"] > 0, ended


def test_an_ended_request_is_known_by_both_ids_and_was_charged_what_its_usage_said(world):
    reply = world.fake.request("POST", "/v1/completions", {"model": FAKE, "prompt": ["abc", "defg"], "n": 2,
                                                           "max_tokens": 5, "ignore_eos": True})
    names = [reply.json["id"], reply.headers["x-request-id"]]
    first, second = (adds_up(asked(world, name)) for name in names)
    assert (first | {"id": ""}) == (second | {"id": ""}) and first["state"] == "finished", (first, second)
    assert first["parts"] == 4, first
    charged = reply.json["usage"]["weir"]["device_seconds"]
    assert abs(first["device_time_us"] / 1e6 - charged) < 2e-6, (first, reply.json["usage"])
    vectors = world.fake.request("POST", "/v1/completions", {"model": FAKE, "prompt": "z", "max_tokens": 1},
                                 headers={"x-request-id": "why-mine"})
    assert vectors.status == 200 and adds_up(asked(world, "why-mine"))["state"] == "finished"


def test_another_tenants_request_looks_like_one_that_never_was(world):
    reply = world.fake.request("POST", "/v1/completions", {"model": FAKE, "prompt": "abc", "max_tokens": 2},
                               headers={"x-request-id": "why-theirs"})
    assert reply.status == 200
    for name in ("why-theirs", reply.json["id"]):
        assert asked(world, name), name
        invented = name[:-3] + "zzz"
        foreign, made_up = (world.fake.request("GET", f"/v1/requests/{one}", key=OTHER) for one in (name, invented))
        for answer in (foreign, made_up):
            assert answer.status == 404 and answer.json["error"]["code"] == "request_not_found", answer.text
        assert foreign.text.replace(name, invented) == made_up.text, (foreign.text, made_up.text)
    # What a request was refused for it was told at once.
    refused = world.fake.request("POST", "/v1/completions", {"model": "nothing", "prompt": "abc"},
                                 headers={"x-request-id": "why-refused"})
    assert refused.status == 404 and asked(world, "why-refused") is None
    assert world.fake.request("GET", "/v1/requests/why-theirs", key=None).status == 401


def test_an_operator_sees_whose_it_is(world):
    assert world.fake.request("POST", "/v1/completions", {"model": FAKE, "prompt": "abc", "max_tokens": 2}, key=OTHER,
                              headers={"x-request-id": "why-operator"}).status == 200
    key = (world.fake.folder / ".weir/admin.key").read_text().strip()
    path = "/admin/v1/requests/why-operator"
    told = world.fake.request("GET", path, key=key, port=world.fake.admin_port)
    assert told.status == 200 and told.json["tenant"] == "other", told.text
    assert adds_up(told.json)["tenants_ahead"] is None
    missing = world.fake.request("GET", path + "-not", key=key, port=world.fake.admin_port)
    assert missing.status == 404 and missing.json["error"]["code"] == "request_not_found", missing.text


def test_a_crowd_is_explained_to_the_microsecond_and_so_are_the_metrics(world):
    """More requests than rows, of two tenants: the time without a step is the queue's and the share's."""
    name = 'weir_request_wait_seconds_total{{cause="{}"}}'.format
    before = world.fake.metrics()

    def one(n):
        reply = world.fake.request("POST", "/v1/completions",
                                   {"model": FAKE, "prompt": "abc", "max_tokens": 20, "ignore_eos": True},
                                   key=(KEY, OTHER)[n % 2], headers={"x-request-id": f"why-crowd-{n}"})
        assert reply.status == 200, reply.text

    together(one, range(160))
    told = [adds_up(asked(world, f"why-crowd-{n}", (KEY, OTHER)[n % 2])) for n in range(160)]
    assert any(one["wait_us"]["queue"] > 0 for one in told) and any(one["wait_us"]["share"] > 0 for one in told)
    after = world.fake.metrics()
    for cause in ("queue", "share"):
        grown = after[name(cause)] - before.get(name(cause), 0)
        assert grown >= sum(one["wait_us"][cause] for one in told) / 1e6 * 0.999, (cause, grown)


def test_the_command_shows_a_table_or_the_answer_as_it_is(world):
    assert world.fake.request("POST", "/v1/completions", {"model": FAKE, "prompt": "abc", "max_tokens": 3},
                              headers={"x-request-id": "why-shown"}).status == 200
    shown = weir_why(world, "why-shown")
    assert shown.returncode == 0 and shown.stdout.startswith("why-shown: finished\nfake; "), shown
    lines = {line.split()[0]: line.split()[1:] for line in shown.stdout.splitlines()[3:]}
    assert list(lines) == ["steps", *CAUSES, "total"], shown.stdout
    assert sum(int(lines[name][0]) for name in ["steps", *CAUSES]) == int(lines["total"][0]), shown.stdout
    answer = weir_why(world, "why-shown", "--json")
    assert answer.returncode == 0 and json.loads(answer.stdout) == asked(world, "why-shown"), answer
    missing = weir_why(world, "why-nothing")
    assert missing.returncode == 1 and "There is no request `why-nothing`" in missing.stderr, missing
    assert os.linesep not in missing.stderr.strip(), missing.stderr
