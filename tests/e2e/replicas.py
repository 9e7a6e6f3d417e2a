"""Two servers on one PostgreSQL are one: what operators do at one holds at the other, and both write one ledger."""

import contextlib
import json
import subprocess

from database import Postgres
from server import FAKE, FAKE_SLOW, Server, clean_environment, together, wait_until

# A revocation holds everywhere within this. Each server asks once a second; this is a guard against one that never hears.
HOLDS_WITHIN = 30.0

MODELS = {FAKE: "fake:step=1ms,token=20us", FAKE_SLOW: "fake:step=50ms,token=20us"}


class Pair:
    """Two servers, `one` and `two`, on one database and with one pepper."""

    def __init__(self, world, database):
        self.weir = world.weir
        shared = f'database = "{database.url}"'
        self.one = Server(world.weir, MODELS, front=f'{shared}\nreplica = "one"')
        try:
            pepper = json.dumps(str(self.one.folder / ".weir/pepper"))
            self.two = Server(world.weir, MODELS, front=f'{shared}\nreplica = "two"\npepper_file = {pepper}')
        except BaseException:
            self.one.close()
            raise

    def close(self):
        with contextlib.ExitStack() as both:
            both.callback(self.one.close)
            both.callback(self.two.close)

    def operate(self, server, *words):
        """What an operator's command says of one of them, as JSON."""
        environment = clean_environment() | {"WEIR_ADMIN_URL": f"http://127.0.0.1:{server.admin_port}"}
        done = subprocess.run([self.weir, *words, "--json"], cwd=server.folder, env=environment, capture_output=True, text=True,
                              timeout=120, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, (words, done)
        return json.loads(done.stdout)


@contextlib.contextmanager
def pair(world):
    database = Postgres()
    try:
        servers = Pair(world, database)
        try:
            yield servers
        finally:
            servers.close()
    finally:
        database.close()


def chat(model=FAKE, tokens=5, **more):
    return {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": tokens, "ignore_eos": True, **more}


def ask(server, key, **options):
    return server.post("/v1/chat/completions", chat(**options), key=key)


def test_what_is_done_at_one_holds_at_the_other(world):
    with pair(world) as servers:
        one, two = servers.one, servers.two

        def holds(what, server, key, status):
            reply = wait_until(what, lambda: (reply := ask(server, key)).status == status and reply, HOLDS_WITHIN)
            return reply.json

        made = servers.operate(one, "tenant", "create", "acme", "requests_per_minute=1000000")
        first = made["key"]["key"]
        holds("a tenant of the one to be known to the other", two, first, 200)
        second = servers.operate(two, "key", "create", "acme")["key"]
        holds("a key of the other to be known to the one", one, second, 200)

        # A key that is revoked at one: its stream at the other is cut, and it is nobody's there.
        connection, response = two.open_stream("/v1/chat/completions", chat(FAKE_SLOW, 20_000), key=first)
        beside, still = two.open_stream("/v1/chat/completions", chat(FAKE_SLOW, 60), key=second)
        servers.operate(one, "key", "revoke", "acme", made["key"]["id"], "--reason", "lost")
        assert ask(one, first).status == 401, "here it holds at once"
        told = response.read()
        assert b"Incorrect API key provided." in told, told[-400:]
        holds("a revocation", two, first, 401)
        assert still.read().rstrip().endswith(b"data: [DONE]"), "the other key's stream goes on to its end"
        connection.close()
        beside.close()

        # A tenant that is suspended at one, with a reason.
        connection, response = two.open_stream("/v1/chat/completions", chat(FAKE_SLOW, 20_000), key=second)
        servers.operate(one, "tenant", "suspend", "acme", "--reason", "October is unpaid.")
        told = response.read()
        assert b"Your tenant is suspended: October is unpaid." in told, told[-400:]
        connection.close()
        refused = holds("a suspension", two, second, 403)["error"]
        assert refused["code"] == "forbidden" and "October is unpaid." in refused["message"], refused
        servers.operate(two, "tenant", "activate", "acme")
        holds("an activation", one, second, 200)
        assert servers.operate(one, "audit", "verify")["valid"]


def test_both_write_one_ledger_and_share_one_quota(world):
    with pair(world) as servers:
        one, two = servers.one, servers.two
        key = servers.operate(one, "tenant", "create", "acme", "requests_per_minute=1000000")["key"]["key"]
        counted = servers.operate(two, "tenant", "create", "counted", "plan=own", "requests_per_month=10")["key"]["key"]
        for server, one_key in [(two, key), (one, counted)]:
            wait_until("the tenants to be known", lambda: server.request("GET", "/v1/models", key=one_key).status == 200,
                       HOLDS_WITHIN)

        answers = together(lambda place: ask(servers.one if place % 2 else servers.two, key, tokens=place % 7 + 1), range(40))
        assert [reply.status for reply in answers] == [200] * 40
        told = [reply.json["usage"] for reply in answers]
        for server in (one, two):
            total = servers.operate(server, "usage", "acme")["total"]
            assert total["requests"] == 40, total
            for name in ("prompt_tokens", "completion_tokens"):
                assert total[name] == sum(usage[name] for usage in told), (name, total)
            seconds = sum(usage["weir"]["device_seconds"] for usage in told)
            # Each answer rounds to microseconds.
            assert abs(total["device_ns"] / 1e9 - seconds) < 40e-6, (total, seconds)
            assert server.request("GET", "/v1/usage", key=key).json["total"] == total

        # With room for ten, ten are let in by both together, and no more.
        let_in = []

        def crowd():
            replies = together(lambda place: ask(servers.one if place % 2 else servers.two, counted, tokens=1), range(30))
            codes = {reply.json["error"]["code"] for reply in replies if reply.status != 200}
            assert codes == {"insufficient_quota"}, codes
            let_in.extend(reply for reply in replies if reply.status == 200)
            return len(let_in) >= 10

        wait_until("all ten to be let in", crowd, HOLDS_WITHIN)
        crowd()
        assert len(let_in) == 10, len(let_in)

        for server in (one, two):
            proof = servers.operate(server, "ledger", "verify")
            assert proof["valid"] and proof["epochs"] == 2 and proof["requests"] >= 50, proof
