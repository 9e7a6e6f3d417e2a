"""Limits per minute and their headers, requests that are repeated, use and bills, and webhooks, on a real server."""

import contextlib
import hashlib
import hmac
import http.client
import http.server
import json
import queue
import subprocess
import threading
import time

from server import FAKE, FAKE_SLOW, PATIENCE, TENANTS, Server, clean_environment, together, wait_until

COMPLETIONS = "/v1/completions"


@contextlib.contextmanager
def serving(world):
    server = Server(world.weir, {FAKE: "fake:step=4ms,token=20us", FAKE_SLOW: "fake:step=50ms,token=20us"},
                    "rows_max = 64")
    try:
        yield server
    finally:
        server.close()


def operator(server):
    return (server.folder / ".weir/admin.key").read_text().strip()


def operate(server, method, path, body=None):
    return server.request(method, path, body, key=operator(server), port=server.admin_port)


def configure(server, tenant, **settings):
    """Changes a tenant's settings in the store, and waits until requests are judged by them."""
    path = f"/admin/v1/tenants/{tenant}"
    before = operate(server, "GET", path)
    assert before.status == 200, before.text
    changed = operate(server, "PATCH", path, settings | {"version": before.json["version"]})
    assert changed.status == 200, changed.text


def text(tokens=4, **more):
    return {"model": FAKE, "prompt": "Water ", "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}


def keyed(server, key, body, path=COMPLETIONS, tenant="demo"):
    return server.post(path, body, key=TENANTS[tenant][0], headers={"Idempotency-Key": key})


def test_limits_are_told_as_the_openai_package_reads_them(world):
    import openai

    with serving(world) as server:
        configure(server, "demo", overrides={"requests_per_minute": 3, "tokens_per_minute": 5000})
        client = server.client()
        for left in (2, 1, 0):
            raw = client.completions.with_raw_response.create(model=FAKE, prompt="Water", max_tokens=4)
            headers = raw.headers
            assert int(headers["x-ratelimit-limit-requests"]) == 3, headers
            assert int(headers["x-ratelimit-remaining-requests"]) == left, headers
            assert int(headers["x-ratelimit-limit-tokens"]) == 5000, headers
            # Reserved, and put right by the end: what remains is the whole but for what was taken.
            assert int(headers["x-ratelimit-remaining-tokens"]) >= 5000 - 3 * 16, headers
            assert headers["x-ratelimit-reset-requests"].endswith("s"), headers
        try:
            client.completions.create(model=FAKE, prompt="Water", max_tokens=4)
            raise AssertionError("a fourth request within the minute")
        except openai.RateLimitError as refused:
            assert refused.code == "rate_limit_exceeded", refused
            wait = int(refused.response.headers["retry-after"])
            assert 1 <= wait <= 20, wait
        # The others' minute is theirs, and the package waits as it is told.
        assert server.post(COMPLETIONS, text(), key=TENANTS["other"][0]).status == 200
        patient = server.client(max_retries=3).completions.create(model=FAKE, prompt="Water", max_tokens=4)
        assert patient.usage.completion_tokens <= 4


def test_exactly_as_many_pass_at_once_as_the_bucket_holds(world):
    with serving(world) as server:
        configure(server, "demo", overrides={"requests_per_minute": 10})
        begun = time.monotonic()
        answers = together(lambda _: server.post(COMPLETIONS, text()), range(40))
        passed = sum(answer.status == 200 for answer in answers)
        # One more for each six seconds that it took.
        assert 10 <= passed <= 10 + (time.monotonic() - begun) / 6 + 1, passed
        assert all(answer.status in (200, 429) for answer in answers)


def test_a_repeat_gets_the_first_answer_and_costs_nothing(world):
    with serving(world) as server:
        body = text(20, model=FAKE_SLOW)
        answers = together(lambda _: keyed(server, "order-1", body), range(8))
        assert all(answer.status == 200 for answer in answers), [answer.text for answer in answers]
        assert len({answer.json["id"] for answer in answers}) == 1
        assert sum(answer.headers.get("idempotent-replayed") == "true" for answer in answers) == 7
        usage = answers[0].json["usage"]
        assert server.metrics()['weir_requests_total{outcome="completed"}'] == 1, server.metrics()

        later = keyed(server, "order-1", body)
        assert later.status == 409 and later.json["error"]["code"] == "idempotency_key_used", later.text
        assert later.json["idempotency"] == {"status": 200, "usage": usage}, later.text
        assert later.headers["x-should-retry"] == "false"
        changed = keyed(server, "order-1", text(21, model=FAKE_SLOW))
        assert changed.status == 400 and changed.json["error"]["code"] == "idempotency_key_reused", changed.text
        assert keyed(server, "order-1", body, tenant="other").status == 200
        # A server's end makes nobody forget.
        server.restart()
        assert keyed(server, "order-1", body).json["idempotency"]["usage"] == usage


def test_what_a_kill_ended_is_not_done_again(world):
    with serving(world) as server:
        body = text(2000, model=FAKE_SLOW)
        lost = threading.Thread(target=lambda: quietly(lambda: keyed(server, "order-2", body)), daemon=True)
        lost.start()
        wait_until("the request to run", lambda: server.metrics().get(f'weir_requests_running{{model="{FAKE_SLOW}"}}'))
        server.restart(kill=True)
        lost.join(PATIENCE)
        again = keyed(server, "order-2", body)
        assert again.status == 409 and again.json["error"]["code"] == "idempotency_key_used", again.text
        told = again.json["idempotency"]
        assert told["status"] is None, told
        assert keyed(server, "order-2", body).json["idempotency"] == told


def quietly(work):
    with contextlib.suppress(OSError, http.client.HTTPException):
        work()


class Receiver:
    """Answers each delivery with the next status that was set for it, 200 where none was."""

    def __init__(self, statuses):
        self.heard, statuses = queue.Queue(), list(statuses)
        heard = self.heard

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                status = statuses.pop(0) if statuses else 200
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()
                heard.put((dict(self.headers.items()), body, status))

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def genuine(secret, headers, body):
    parts = dict(part.split("=", 1) for part in headers["weir-signature"].split(","))
    expected = hmac.new(secret.encode(), parts["t"].encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, parts["v1"]) and abs(time.time() - int(parts["t"])) < 300


def lower(headers):
    return {name.lower(): value for name, value in headers.items()}


def test_an_event_is_signed_sent_again_after_a_failure_and_kept_when_it_is_dead(world):
    with serving(world) as server:
        receiver = Receiver([500, 200, 410])
        try:
            made = operate(server, "POST", "/admin/v1/webhooks",
                           {"url": receiver.url, "events": ["webhook.test", "quota.hard_limit"]})
            assert made.status == 201, made.text
            webhook = made.json
            test = f"/admin/v1/webhooks/{webhook['id']}/test"
            assert operate(server, "POST", test).status == 202
            seen = [receiver.heard.get(timeout=PATIENCE) for _ in range(2)]
            assert [status for _, _, status in seen] == [500, 200]
            assert seen[0][1] == seen[1][1], "the same event, to the letter"
            for headers, body, _ in seen:
                assert genuine(webhook["secret"], lower(headers), body), headers
                assert not genuine("whsec_other", lower(headers), body)
                assert json.loads(body)["type"] == "webhook.test"
            dead = f"/admin/v1/deliveries?webhook={webhook['id']}"
            wait_until("its arrival", lambda: len(operate(server, "GET", dead + "&state=delivered").json["data"]) == 1)
            assert operate(server, "GET", dead).json["data"] == []

            assert operate(server, "POST", test).status == 202
            assert receiver.heard.get(timeout=PATIENCE)[2] == 410
            wait_until("its death", lambda: operate(server, "GET", dead).json["data"])
            letter = operate(server, "GET", dead).json["data"][0]
            assert (letter["status"], letter["attempts"], letter["state"]) == (410, 1, "dead"), letter
            assert server.metrics()['weir_webhook_deliveries_total{outcome="dead"}'] == 1
            # Once it can be delivered it is.
            assert operate(server, "POST", f"/admin/v1/deliveries/{letter['id']}/retry").status == 202
            headers, body, status = receiver.heard.get(timeout=PATIENCE)
            assert status == 200 and lower(headers)["weir-delivery"] == str(letter["id"])
            # Its secret is nowhere in the store.
            stored = b"".join(path.read_bytes() for path in (server.folder / ".weir").glob("weir.db*"))
            assert webhook["secret"].encode() not in stored
        finally:
            receiver.close()


def weir(world, server, *words):
    done = subprocess.run([world.weir, *words, "--url", f"http://127.0.0.1:{server.admin_port}"], cwd=server.folder,
                          capture_output=True, text=True, env=clean_environment(), timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_use_is_counted_priced_and_billed(world):
    with serving(world) as server:
        # From now on, which is for all of today.
        price = operate(server, "POST", "/admin/v1/prices", {"micros_per_device_hour": 3_600_000_000})
        assert price.status == 200, price.text
        usages = [server.post(COMPLETIONS, text(tokens)).json["usage"] for tokens in (4, 8, 12)]
        seconds = sum(usage["weir"]["device_seconds"] for usage in usages)
        report = server.request("GET", "/v1/usage").json
        total = report["total"]
        assert total["requests"] == 3, report
        assert total["completion_tokens"] == 24 and total["prompt_tokens"] == sum(u["prompt_tokens"] for u in usages)
        assert abs(total["device_seconds"] - seconds) < 3e-6, (total, seconds)
        # A thousandth of the currency for each microsecond: the cost is the time.
        assert total["cost_micros"] == total["device_ns"] // 1000, total
        assert report["data"][0]["model"] == FAKE and report["data"][0]["day"] == report["to"]
        assert server.request("GET", "/v1/usage", key=TENANTS["other"][0]).json["total"]["requests"] == 0

        month = report["to"][:7]
        bill = operate(server, "GET", f"/admin/v1/invoices/demo/{month}").json
        assert bill["device_ns"] == total["device_ns"] and not bill["closed"], bill
        assert sum(line["amount_micros"] for line in bill["lines"]) == bill["amount_micros"]
        assert weir(world, server, "usage", "demo").splitlines()[-1].split()[1] == "3"
        assert weir(world, server, "invoice", "demo", month, "--csv").splitlines()[-1].startswith("total,demo,")
        rows = [json.loads(line) for line in operate(server, "GET", "/admin/v1/ledger").text.splitlines()]
        assert rows[-1] == {"object": "end", "rows": len(rows) - 1}
        settled = [row for row in rows[:-1] if row["kind"] == "settle" and row["tenant"] == "demo"]
        assert sum(row["device_ns"] for row in settled) == total["device_ns"]


def test_a_quota_that_is_spent_is_told_to_a_webhook(world):
    server = Server(world.weir, {FAKE: "fake:step=4ms,token=20us"}, plans={"third": "device_seconds_per_month = 0.5"})
    receiver = Receiver([])
    try:
        made = operate(server, "POST", "/admin/v1/webhooks",
                       {"url": receiver.url, "events": ["quota.hard_limit"], "tenant": "third"})
        assert made.status == 201, made.text
        answer = server.post(COMPLETIONS, text(4000), key=TENANTS["third"][0])
        assert answer.json["usage"]["weir"]["stop"] == "quota", answer.text
        refused = server.post(COMPLETIONS, text(), key=TENANTS["third"][0])
        assert refused.status == 429, refused.text
        headers, body, _ = receiver.heard.get(timeout=PATIENCE)
        event = json.loads(body)
        assert genuine(made.json["secret"], lower(headers), body)
        assert (event["type"], event["tenant"]) == ("quota.hard_limit", "third"), event
        assert (event["data"]["period"], event["data"]["refuses"]) == ("month", True), event
    finally:
        receiver.close()
        server.close()
