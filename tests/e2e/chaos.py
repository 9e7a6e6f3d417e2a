"""The whole server dies, again and again, at any moment: its ledger loses nothing that a client was told, and adds up.

Figure 2 of tenants and the ledger. What clients were told is kept here, outside the process that is killed. The sums
are added up here, too, from the rows as they lie in the file, and not by the code that wrote them; the hashes are the
server's business, which verifies them at each start and refuses to start where one is wrong.
"""

import collections
import contextlib
import http.client
import json
import random
import signal
import sqlite3
import threading
import time

from executors import body
from server import CHAT, FAKE, TENANTS, Server, figure, wait_until

PAYERS = ["demo", "other", "third"]


class Told:
    """What clients asked for and were told, over all lives of the server."""

    def __init__(self):
        self.lock = threading.Lock()
        self.asked, self.answers = collections.Counter(), []
        # By tenant: moments at which one of its requests began to be sent and was over, as seen from here.
        self.spans = []

    def ask(self, tenant):
        with self.lock:
            self.asked[tenant] += 1
            self.spans.append([tenant, time.time(), None])
            return self.spans[-1]

    def answer(self, tenant, name, usage):
        with self.lock:
            self.answers.append((tenant, name, usage))

    def taken(self):
        """The answers since the last call."""
        with self.lock:
            answers, self.answers = self.answers, []
            return answers


class Clients:
    """Ask until they are stopped; a server that is not there, or dies, is asked again."""

    def __init__(self, server, model, tokens, count, seed):
        self.server, self.model, self.tokens, self.told, self.stopped = server, model, tokens, Told(), threading.Event()
        self.failures, self.cut = [], 0
        self.threads = [threading.Thread(target=self._client, args=(random.Random(seed * 1000 + number),), daemon=True)
                        for number in range(count)]
        for thread in self.threads:
            thread.start()

    def _client(self, chance):
        while not self.stopped.is_set() and not self.failures:
            tenant = chance.choice(PAYERS)
            asked = body(self.model, f"chaos {chance.random()}", chance.randint(*self.tokens),
                         n=chance.choice([1, 1, 2]))
            span = self.told.ask(tenant)
            try:
                one = self._streamed if chance.random() < 0.6 else self._whole
                one(tenant, asked, chance)
            except (OSError, http.client.HTTPException):
                self.cut += 1
                time.sleep(0.01)
            except Exception as failure:  # noqa: BLE001 - told by whoever started the clients
                self.failures.append(failure)
            finally:
                span[2] = time.time()

    def _whole(self, tenant, asked, _):
        reply = self.server.post("/v1/completions", asked, key=TENANTS[tenant][0])
        if reply.status == 200:
            self.told.answer(tenant, reply.json["id"], reply.json["usage"])
        else:
            assert reply.status in (429, 503), (reply.status, reply.text)

    def _streamed(self, tenant, asked, chance):
        connection = self.server.send_stream(
            "/v1/completions", asked | {"stream_options": {"include_usage": True}}, TENANTS[tenant][0])
        with contextlib.closing(connection):
            response = connection.getresponse()
            if response.status != 200:
                assert response.status in (429, 503), (response.status, response.read())
                return
            name = usage = None
            # Some hang up in the midst.
            leaves = chance.randint(1, 9) if chance.random() < 0.15 else None
            for count, line in enumerate(response, 1):
                if not line.startswith(b"data: "):
                    continue
                data = line[len(b"data: "):].strip()
                if data == b"[DONE]":
                    self.told.answer(tenant, name, usage)
                    return
                event = json.loads(data)
                if "error" in event:
                    assert event["error"]["code"] in ("overloaded", "ledger_unavailable"), event
                    return
                name, usage = event["id"], event.get("usage") or usage
                if leaves is not None and count >= leaves:
                    return

    def end(self):
        self.stopped.set()
        for thread in self.threads:
            thread.join()
        if self.failures:
            raise self.failures[0]


class Chain:
    """The accounts of one epoch, added up from its rows."""

    def __init__(self):
        self.seq, self.closed, self.running = 0, False, {}
        self.wall, self.idle, self.operator = (collections.Counter() for _ in range(3))
        self.settled = collections.Counter()

    def row(self, seq, at_us, kind, request, device_ns, row):
        assert not self.closed and seq == self.seq + 1, f"row {seq} after {self.seq}, which was the last: {self.closed}"
        self.seq = seq
        if kind == "open":
            self.began_us = at_us
        if kind in ("settle", "recovered"):
            assert device_ns == sum(ns for _, _, ns in row["split"]), row
            for device, _, ns in row["split"]:
                self.settled[device] += ns
                before = self.running.get(device, {}).pop(request, 0)
                assert ns == before if kind == "recovered" else ns >= before, f"{request}: {ns} ns, and before {before}"
            assert not any(request in of for of in self.running.values()), f"{request} is not billed in full"
        elif kind == "checkpoint":
            device = row["device"]
            assert row["wall"] >= self.wall[device] and row["idle"] >= self.idle[device], row
            self.wall[device], self.idle[device] = row["wall"], row["idle"]
            self.operator[device] = sum(ns for _, ns in row["operator"])
            now = {request: ns for _, request, _, _, _, ns in row["running"]}
            for request, ns in self.running.get(device, {}).items():
                assert now.get(request, -1) >= ns, f"{request} was charged {ns} before"
            self.running[device] = now
            self.adds_up(device, sum(now.values()))
        elif kind == "lost":
            device = row["device"]
            # What was billed after the last checkpoint was worked then, too.
            self.operator[device] += row["lost"] + row["down"]
            self.wall[device] = self.idle[device] + self.operator[device] + self.settled[device]
        elif kind == "close":
            self.closed = True
            assert not any(self.running.values()), self.running
            for device in self.wall:
                self.adds_up(device, 0)
                # By the machine's clock, and not by that of the accounts; a device comes after its epoch's beginning.
                lived = (at_us - self.began_us) * 1000
                assert self.wall[device] <= lived + 200_000_000, f"{device} has {self.wall[device]} ns in {lived} ns"

    def adds_up(self, device, running):
        sum_ = self.idle[device] + self.operator[device] + self.settled[device] + running
        assert self.wall[device] == sum_, f"{device}: wall {self.wall[device]}, accounts {sum_}"


class Books:
    """The ledger as it lies in the file; each row is read once, and once more to see that it has not changed."""

    def __init__(self, path):
        self.path, self.chains, self.bills, self.charged = path, {}, {}, collections.Counter()
        self.hashes, self.rows, self.kinds = {}, 0, collections.Counter()

    def read(self):
        with contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=60)) as database:
            for epoch, chain in self.chains.items():
                if chain.closed:
                    seq, last = database.execute(
                        "SELECT seq, hash FROM ledger WHERE epoch = ? ORDER BY seq DESC LIMIT 1", (epoch,)).fetchone()
                    assert (seq, last) == self.hashes[epoch], f"epoch {epoch} was closed, and has changed"
            open_ = min((epoch for epoch, chain in self.chains.items() if not chain.closed), default=0)
            for row in database.execute(
                    "SELECT epoch, seq, at_us, kind, tenant, request, device_ns, prompt_tokens, completion_tokens, "
                    "body, hash FROM ledger WHERE epoch >= ? ORDER BY epoch, seq", (open_,)):
                self._row(*row)
            ended = dict(database.execute("SELECT epoch, ended_us IS NOT NULL FROM epochs"))
        for epoch, chain in self.chains.items():
            assert chain.closed == ended[epoch], f"epoch {epoch}: closed {chain.closed}, ended {ended[epoch]}"

    def _row(self, epoch, seq, at_us, kind, tenant, request, device_ns, prompt, completion, text, row_hash):
        chain = self.chains.setdefault(epoch, Chain())
        if seq <= chain.seq:
            return
        row = json.loads(text)
        chain.row(seq, at_us, kind, request, device_ns, row)
        self.hashes[epoch] = (seq, row_hash)
        self.rows += 1
        self.kinds[kind] += 1
        if kind in ("settle", "recovered"):
            assert (tenant, request) not in self.charged, f"{request} of {tenant} was charged twice"
            self.charged[tenant, request] = device_ns
            if kind == "settle":
                # One answer of a list of prompts has a bill for each; these have one prompt.
                assert row["name"] not in self.bills, f"{row['name']} was charged twice"
                self.bills[row["name"]] = (tenant, device_ns, prompt, completion)


class Mortal(Server):
    """A server that is killed, and started anew in the same place."""

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def again(self):
        self._start(ready=False)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        assert code == 0, f"weir ended with {code} on SIGTERM:\n{self.output()[-20_000:]}"


def check(books, told):
    """Everything that was told is in the ledger, as it was told; returns how many answers that was."""
    answers = told.taken()
    books.read()
    for tenant, name, usage in answers:
        assert name in books.bills, f"{name} was acknowledged, and has no bill"
        payer, device_ns, prompt, completion = books.bills[name]
        assert (payer, prompt, completion) == (tenant, usage["prompt_tokens"], usage["completion_tokens"]), name
        micros = round(usage["weir"]["device_seconds"] * 1e6)
        assert abs(device_ns / 1000 - micros) <= 0.5, f"{name}: {device_ns} ns were charged, {micros} us were told"
    assert sum(1 for chain in books.chains.values() if not chain.closed) <= 1, "a life was not recovered"
    for tenant in PAYERS:
        bills = sum(1 for payer, _ in books.charged if payer == tenant)
        assert bills <= told.asked[tenant], f"{tenant} has {bills} bills for {told.asked[tenant]} requests"
    return len(answers)


def true_work(told, tenant, devices):
    """No more work than this can have been done for a tenant: all devices, while it had a request under way."""
    spans = sorted((began, ended or time.time()) for payer, began, ended in list(told.spans) if payer == tenant)
    total, until = 0.0, 0.0
    for began, ended in spans:
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total * devices


def kills(world, model, source, count, tokens, clients, pause, name):
    server = Mortal(world.weir, {model: source})
    books = Books(server.folder / ".weir" / "weir.db")
    chance, acknowledged, early = random.Random(6), 0, 0
    load = Clients(server, model, tokens, clients, 6)
    began = time.time()
    try:
        for life in range(count):
            # Most die at work, some before they have begun: in the recovery of the life before, too.
            if life and chance.random() < 0.2:
                early += 1
                time.sleep(chance.uniform(0.0, 0.4))
            else:
                server.wait_ready()
                acknowledged += check(books, load.told)
                load.stopped.wait(chance.uniform(*pause))
            assert not load.failures, load.failures[0]
            server.kill()
            server.again()
        server.wait_ready()
        load.end()
        acknowledged += check(books, load.told)
        server.stop()
    except BaseException:
        load.stopped.set()
        print(server.output()[-20_000:])
        server.kill()
        raise
    # A clean end, seen with nobody at the file, and a start that has nothing to recover.
    books.read()
    assert all(chain.closed for chain in books.chains.values())
    before = (books.rows, dict(books.kinds))
    server.again()
    server.wait_ready()
    books.read()
    assert books.kinds["recovered"] == before[1].get("recovered", 0), "a second recovery charged somebody"
    for tenant in PAYERS:
        charged = sum(ns for (payer, _), ns in books.charged.items() if payer == tenant) / 1e9
        bound = true_work(load.told, tenant, 1)
        assert 0 < charged <= bound, f"{tenant} was charged {charged} s, and had requests under way for {bound} s"
    assert acknowledged > count and books.kinds["recovered"] > 0, (acknowledged, books.kinds)
    figure(f"2.{name}_kills", count, early=early, acknowledged=acknowledged, lost=0, twice=0, rows=books.rows,
           settled=books.kinds["settle"], recovered=books.kinds["recovered"], epochs=len(books.chains),
           cut=load.cut, seconds=round(time.time() - began))
    server.close()


def test_a_server_that_dies_at_any_moment_keeps_its_accounts(world):
    kills(world, FAKE, "fake:step=2ms,token=20us", world.size(50, 1000), (1, 250), 12, (0.02, 2.0), "fake")


def test_a_server_of_a_real_model_that_dies_keeps_its_accounts(world):
    if world.full:
        kills(world, CHAT, world.models / CHAT, 20, (2, 12), 6, (1.0, 6.0), "smollm2")


def test_a_changed_row_is_named_and_nothing_starts(world):
    server = Mortal(world.weir, {FAKE: "fake:step=1ms"})
    try:
        assert server.post("/v1/completions", body(FAKE, "hello", 3)).status == 200
        server.kill()
        path = server.folder / ".weir" / "weir.db"
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("DROP TRIGGER ledger_stays")
            change = "UPDATE ledger SET device_ns = device_ns + 1 WHERE kind = 'settle' RETURNING epoch, seq"
            epoch, seq = database.execute(change).fetchone()
            database.commit()
        server.again()
        wait_until("the end of a server", lambda: server.process.poll() is not None)
        assert server.process.returncode != 0
        assert f"row {seq} of epoch {epoch}" in server.output(), server.output()
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("UPDATE ledger SET device_ns = device_ns - 1 WHERE kind = 'settle'")
            database.commit()
        server.again()
        server.wait_ready()
    finally:
        server.close()
