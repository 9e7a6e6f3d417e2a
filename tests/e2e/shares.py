"""Shares of a device in charged time, live: tenants that saturate it get it by their weights, and one inside its share keeps its latency.

Charged time is what the replies say (`usage.weir.device_seconds`), of all requests that end in the window; each is a small part of
its tenant's share, so that those cut by the window's edges matter little. In full size the window is a minute.
"""

import contextlib
import hashlib
import http.client
import itertools
import json
import threading
import time

from server import CHAT, FAKE, Server, figure

# What steps of a CPU are cut to by default, the fake's too.
STEP_CAP_MS = 200
# How much later than alone, in step caps and in the median, a tenant inside its share has its first token beside two that saturate the
# device.
TTFT_CAPS_MAX = 2
# Of 64 tenants in a minute, how far one may be from its share. The least share, of weight 1 of 128, is 0.45 s, and the longest
# requests are charged 16 ms, 3.6 % of that. A request counts where it ends, and a tenant's oldest goes first, so at either edge of the
# window about one is counted that was served outside, or the other way round. The rest is what the order leaves open at any
# moment: a row's turn. (The bound on the gap, 2.5 s and more at weight 1, says nothing of one minute of so many.)
TENANT_OFF_MAX = 0.05
# How far the mean of all tenants of a weight may be from their share: there the edges even out.
CLASS_OFF_MAX = 0.02
KEY = "weir-e2e-shares-{}"
NUMBERS = itertools.count()


class Market(Server):
    """A server whose tenants are those of the case: name -> weight."""

    def __init__(self, weir, models, engine, weights):
        self.weights = weights
        super().__init__(weir, models, engine)

    def _config(self, models, engine, front, plans):
        lines = [super()._config(models, engine, front, plans)]
        for name, weight in self.weights.items():
            key = hashlib.sha256(KEY.format(name).encode()).hexdigest()
            lines += ["[[tenants]]", f'name = "{name}"', f"weight = {weight}", "[[tenants.keys]]", 'name = "e2e"',
                      f'sha256 = "{key}"']
        return "\n".join(lines) + "\n"


class Client:
    """One connection of a tenant, asking again and again until the market closes."""

    def __init__(self, server, tenant, model, prompt_words, tokens):
        self.server, self.tenant, self.model, self.words, self.tokens = server, tenant, model, prompt_words, tokens
        self.connection, self.seen = None, []

    def ask(self, stream=False):
        # No two prompts begin alike, so that nothing comes from the cache.
        prompt = f"{next(NUMBERS)} " + "river weir water " * (self.words // 3)
        body = {"model": self.model, "prompt": prompt, "max_tokens": self.tokens, "temperature": 0, "ignore_eos": True,
                **({"stream": True} if stream else {})}
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)
        self.connection.request("POST", "/v1/completions", json.dumps(body), {
            "Authorization": f"Bearer {KEY.format(self.tenant)}", "Content-Type": "application/json"})
        return self.connection.getresponse()

    def one(self):
        """Asks once; when it ended and the seconds charged are kept."""
        response = self.ask()
        reply = response.read()
        assert response.status == 200, reply
        self.seen.append((time.monotonic(), json.loads(reply)["usage"]["weir"]["device_seconds"]))

    def first_token_ms(self):
        """Time to the first text of a streamed answer, which is read to its end."""
        sent, first = time.monotonic(), None
        response = self.ask(stream=True)
        assert response.status == 200, response.read()
        while line := response.readline():
            if first is None and line.startswith(b"data: {"):
                first = 1000 * (time.monotonic() - sent)
        # A connection that idles until the next second may be closed by then.
        self.connection.close()
        self.connection = None
        return first


def charged(clients, begin, end):
    """Seconds charged to requests that ended inside the window, by tenant."""
    total = {}
    for client in clients:
        inside = (seconds for ended, seconds in client.seen if begin < ended <= end)
        total[client.tenant] = total.get(client.tenant, 0.0) + sum(inside)
    return total


@contextlib.contextmanager
def trading(clients):
    """All of them ask again and again; on leaving they end what they began."""
    closing, failures = threading.Event(), []

    def run(client):
        try:
            while not closing.is_set():
                client.one()
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            failures.append(error)

    threads = [threading.Thread(target=run, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        closing.set()
        for thread in threads:
            thread.join(timeout=120)
    if failures:
        raise failures[0]


def every_second(client, times):
    """Times to the first token of so many requests, one a second."""
    found, began = [], time.monotonic()
    for turn in range(times):
        time.sleep(max(0.0, began + turn - time.monotonic()))
        found.append(client.first_token_ms())
    return sorted(found)


def middle(values):
    return values[len(values) // 2]


def three_to_one(world, name, model, source, engine, lengths, clients, warm, window):
    """Two tenants of weights 3 and 1 with texts of different lengths, and a third that asks once a second."""
    server = Market(world.weir, {model: source}, engine, {"heavy": 3, "light": 1, "guest": 1})
    try:
        third = Client(server, "guest", model, 12, 4)
        solo = every_second(third, world.size(3, 20))
        crowd = [Client(server, tenant, model, *length) for tenant, length in lengths.items() for _ in range(clients)]
        with trading(crowd):
            time.sleep(warm)
            begin = time.monotonic()
            beside = every_second(third, window)
            end = max(time.monotonic(), begin + window)
        seconds = charged(crowd, begin, end)
    finally:
        server.close()
    ratio = seconds["heavy"] / seconds["light"]
    figure(f"6.ratio_{name}", round(ratio, 3), window_s=window, heavy_s=round(seconds["heavy"], 2),
           light_s=round(seconds["light"], 2), off_percent=round(100 * abs(ratio / 3 - 1), 2))
    later = (middle(beside) - middle(solo)) / STEP_CAP_MS
    figure(f"6.third_ttft_ms_{name}", round(middle(beside), 1), p90=round(beside[len(beside) * 9 // 10], 1),
           solo_ms=round(middle(solo), 1), step_cap_ms=STEP_CAP_MS, in_step_caps=round(later, 2))
    assert abs(ratio / 3 - 1) < world.size(0.2, 0.02), ratio
    # Times are looked at in the proofs only: they are of a machine that does nothing else.
    assert not world.full or later <= TTFT_CAPS_MAX, (middle(beside), middle(solo))


def test_two_tenants_of_a_fake_model_share_it_three_to_one(world):
    # Twice as many clients as rows on each side, so that both always want more.
    three_to_one(world, "fake", FAKE, "fake:step=10ms,token=400us", "rows_max = 8", {
        "heavy": (3, 16), "light": (12, 3)}, 16, world.size(2, 10), world.size(8, 60))


def test_two_tenants_of_a_real_model_share_it_three_to_one(world):
    if not world.full:
        return
    three_to_one(world, "smollm2", CHAT, world.models / CHAT, "rows_max = 8", {
        "heavy": (12, 24), "light": (24, 8)}, 16, 15, 60)


def test_64_tenants_of_a_fake_model_get_their_shares(world):
    count, window = world.size(16, 64), world.size(8, 60)
    weights = {f"tenant{n}": 3 if n % 2 else 1 for n in range(count)}
    server = Market(world.weir, {FAKE: "fake:step=10ms,token=100us"}, f"rows_max = {count // 4}", weights)
    try:
        crowd = [Client(server, name, FAKE, 3 + 3 * (n % 4), 2 + n % 5)
                 for n, name in enumerate(weights) for _ in range(6 if weights[name] == 3 else 3)]
        with trading(crowd):
            time.sleep(world.size(2, 10))
            begin = time.monotonic()
            time.sleep(window)
            end = time.monotonic()
        seconds = charged(crowd, begin, end)
    finally:
        server.close()
    each = {name: seconds[name] / weight for name, weight in weights.items()}
    mean = sum(seconds.values()) / sum(weights.values())
    off = {name: abs(one / mean - 1) for name, one in each.items()}
    worst = max(off, key=off.get)
    of_weight = {weight: [each[name] for name in weights if weights[name] == weight] for weight in (1, 3)}
    class_off = max(abs(sum(some) / len(some) / mean - 1) for some in of_weight.values())
    ratio = 3 * sum(of_weight[3]) / sum(of_weight[1])
    longest = max(charge for client in crowd for ended, charge in client.seen if begin < ended <= end)
    figure(f"6.ratio_{count}_tenants", round(ratio, 3), window_s=window, worst_tenant_off_percent=round(100 * off[worst], 2),
           class_off_percent=round(100 * class_off, 2), least_share_s=round(mean, 3), longest_request_s=round(longest, 4),
           charged_s=round(sum(seconds.values()), 2))
    assert abs(ratio / 3 - 1) < world.size(0.2, 0.02), each
    assert class_off < world.size(0.2, CLASS_OFF_MAX), of_weight
    assert not world.full or off[worst] < TENANT_OFF_MAX, (worst, each[worst], mean)
