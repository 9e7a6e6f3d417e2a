"""Mutated requests by socket: bodies changed as trees and as bytes, and HTTP itself framed as no client frames it. Whatever is
sent, no answer is a 5xx, no process dies or panics, and who asks properly is answered.

What the bodies' mutants leave to the Rust proof (`server/tests/mutations`, a million of them) is what only a socket has:
lengths that lie, chunks, trailers, pipelines, floods of header lines, half requests, bytes that are no HTTP at all.
"""

import http.client
import json
import pathlib
import random
import socket
import threading
import time

import server as servers
from server import PATIENCE, figure, together

SEED = 3
THREADS = 8
KEY = servers.TENANTS["demo"][0]
MODEL = "m"

CHAT, COMPLETION, EMBEDDING = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
# Each asks for few tokens or is ended by the model soon: what is tested is reading requests, not carrying them out.
VALID = [
    (CHAT, {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}),
    (CHAT, {"model": MODEL, "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "name": "ann", "content": [
        {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "max_tokens": 2, "temperature": 0.5, "stop": ["x"]}),
    (CHAT, {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "stream": True,
            "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2}),
    (COMPLETION, {"model": MODEL, "prompt": ["one", "two"], "max_tokens": 1, "n": 2, "echo": True, "seed": 7}),
    (COMPLETION, {"model": MODEL, "prompt": [104, 105], "max_tokens": 2, "logit_bias": {"97": 5}, "user": "u"}),
    (EMBEDDING, {"model": MODEL, "input": ["one", "two"], "encoding_format": "base64"}),
    (EMBEDDING, {"model": MODEL, "input": [[1, 2], [3]], "truncate": True}),
]
NAMES = ["model", "messages", "prompt", "input", "role", "content", "name", "n", "max_tokens", "temperature", "top_p", "stop",
         "seed", "logit_bias", "stream", "stream_options", "echo", "best_of", "user", "tools", "truncate", "__proto__", "x" * 5000]


class Raw(str):
    """Written as it is."""


class Pairs(list):
    """A map whose keys may come twice."""


ODD = [Raw(text) for text in (
    "null", "true", "0", "-1", "2.5", "-0.0", "1e308", "1e400", "9" * 400, "NaN", "Infinity", "01", "[]", "{}", "", "nul",
    r'"\ud800"', r'"\u0000"', r'"\x"', '"\n"', "[" * 31 + "]" * 31, "[" * 200, '{"a":' * 40 + "0" + "}" * 40)] + [
    "", "x" * 300, "<|im_start|>system", "<|im_end|>", "\ue000\uf8ff", "\U0010ffff", "\ufeff", "NaN", 2 ** 63, -2 ** 63, 2 ** 64]


def tree_of(value):
    if isinstance(value, dict):
        return Pairs([key, tree_of(item)] for key, item in value.items())
    if isinstance(value, list):
        return [tree_of(item) for item in value]
    return value


def written(tree):
    if isinstance(tree, Raw):
        return tree
    if isinstance(tree, Pairs):
        return "{" + ",".join(f"{json.dumps(key)}:{written(item)}" for key, item in tree) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(map(written, tree)) + "]"
    return json.dumps(tree)


def places(tree):
    """Every (container, index) below the tree whose item can be replaced."""
    found = []
    if isinstance(tree, Pairs):
        for pair in tree:
            found += [(pair, 1), *places(pair[1])]
    elif isinstance(tree, list):
        for index, item in enumerate(tree):
            found += [(tree, index), *places(item)]
    return found


def change(tree, rng):
    """Changes one place of the tree."""
    at = places(tree)
    if not at:
        return
    container, index = rng.choice(at)
    kind = rng.randrange(9)
    if kind <= 2:
        container[index] = rng.choice(ODD)
    elif kind == 3:
        other, j = rng.choice(at)
        container[index] = Raw(written(other[j]))
    elif kind == 4:
        container[index] = rng.choice(([container[index]], Pairs([["a", container[index]]])))
    elif kind == 5:
        container[index] = rng.choice(("x", "\u00e9", "\n", "<|im_end|>")) * rng.choice((10, 1000, 20_000))
    elif kind == 6:
        container[index] = Raw("[" + ",".join([rng.choice(("0", '""', "[]", "{}"))] * rng.choice((9, 301, 3000))) + "]")
    elif kind == 7 and isinstance(tree, Pairs) and tree:
        tree.append(list(rng.choice(tree)) if rng.random() < 0.5 else [rng.choice(NAMES), rng.choice(ODD)])
    elif isinstance(tree, Pairs) and tree:
        pair = rng.choice(tree)
        # Without its bound a request would be carried out for long, which is not what is tested.
        if pair[0] != "max_tokens":
            pair[0] = rng.choice(NAMES)


def change_bytes(body, rng):
    at = rng.randrange(len(body) + 1)
    end = min(len(body), at + rng.randrange(40))
    return rng.choice((
        lambda: body[:at],
        lambda: body[:at] + bytes([rng.randrange(256)]) + body[at + 1:],
        lambda: body[:at] + body[end:],
        lambda: body[:at] + body[at:end] + body[at:],
        lambda: b"\xef\xbb\xbf" + body,
        lambda: body + rng.choice((b" ", b"x", b"{}", b"\0")),
        lambda: rng.randbytes(rng.randrange(100)),
    ))()


def mutated_body(rng):
    path, valid = rng.choice(VALID)
    tree = tree_of(valid)
    for _ in range(rng.randrange(4)):
        change(tree, rng)
    body = written(tree).encode("utf-8", "surrogatepass")
    if rng.random() < 0.15:
        body = change_bytes(body, rng)
    return path, body


def head(method, path, lines, version="HTTP/1.1"):
    return f"{method} {path} {version}\r\n".encode() + b"".join(
        line if isinstance(line, bytes) else line.encode() + b"\r\n" for line in lines) + b"\r\n"


def usual(*more):
    return ["Host: localhost", f"Authorization: Bearer {KEY}", "Content-Type: application/json", *more]


def plain(rng):
    """A request framed as it should be."""
    path, body = mutated_body(rng)
    more = [f"Content-Length: {len(body)}"]
    if rng.random() < 0.1:
        more.append(rng.choice(("Content-Encoding: gzip", "Content-Encoding: identity", "Expect: 100-continue", "Accept: x/y",
                                "X-Request-Id: a b", "Authorization: Bearer other", "Connection: keep-alive, x", "TE: trailers",
                                "Upgrade: h2c", "Cookie: " + "c" * 4000)))
    return head("POST", path, usual(*more)) + body


def chunks(body, size):
    return b"".join(b"%x\r\n%b\r\n" % (len(body[i:i + size]), body[i:i + size]) for i in range(0, len(body), size))


def framed_oddly(rng):
    """A request whose framing no client would send, and which may have no end. The name says what it is."""
    path, body = mutated_body(rng)
    length = len(body)
    chunked = head("POST", path, usual("Transfer-Encoding: chunked"))

    def with_length(*values):
        return head("POST", path, usual(*(f"Content-Length: {value}" for value in values))) + body

    makers = {
        "a length that is no number": lambda: with_length(rng.choice(("x", "-1", "+5", "0x10", "1e3", "", "9" * 30, "5 5", "5,5"))),
        "a length too small": lambda: with_length(rng.randrange(length + 1)),
        "a length too large": lambda: with_length(length + rng.choice((1, 100, 1 << 40))),
        "two lengths": lambda: with_length(length, rng.choice((length, length + 1, 0))),
        "a length and chunks": lambda: head("POST", path, usual(
            f"Content-Length: {length}", "Transfer-Encoding: chunked")) + chunks(body, 7) + b"0\r\n\r\n",
        "an odd coding": lambda: head("POST", path, usual("Transfer-Encoding: " + rng.choice(
            ("chunked, chunked", "xchunked", "gzip, chunked", "chunked, gzip", "identity", " chunked", "chunked;x=y", "CHUNKED",
             "chunked\x0b")))) + chunks(body, 9) + b"0\r\n\r\n",
        "chunks of one byte": lambda: chunked + chunks(body, 1) + b"0\r\n\r\n",
        "a chunk size that is none": lambda: chunked + rng.choice(
            (b"x", b"-1", b"", b"0x5", b"f" * 17, b"f" * 4000, b"5 5", b"1_0", b"+3", b"\0")) + b"\r\n" + body + b"\r\n0\r\n\r\n",
        "chunks without their ends": lambda: chunked + chunks(body, 50).replace(b"\r\n", rng.choice((b"\n", b"\r", b""))) + b"0\r\n\r\n",
        "chunk extensions": lambda: chunked + b"%x;%b\r\n%b\r\n0\r\n\r\n" % (
            length, b"a=b;" * rng.choice((1, 100, 20_000)), body),
        "many trailers": lambda: chunked + chunks(body, 100) + b"0\r\n" + b"a: b\r\n" * rng.choice((1, 101, 20_000)) + b"\r\n",
        "a giant trailer": lambda: chunked + chunks(body, 100) + b"0\r\na: " + b"x" * 200_000 + b"\r\n\r\n",
        "a flood of header lines": lambda: head("POST", path, usual(*["a: b"] * rng.choice((99, 200, 20_000)))) + body,
        "a long header line": lambda: head("POST", path, usual("a: " + "x" * rng.choice((20_000, 40_000, 1_000_000)))) + body,
        "odd header lines": lambda: head("POST", path, usual(rng.choice(
            (b"no colon\r\n", b": x\r\n", b" folded\r\n", b"a\0b: c\r\n", b"a: \0\r\n", b"a : b\r\n", b"a: \xff\xfe\r\n", b"a: b\n",
             b"\r\r\n", b"Host: other\r\n", b"Content-Length : 3\r\n", b"Transfer-Encoding : chunked\r\n")),
            f"Content-Length: {length}")) + body,
        "an odd request line": lambda: rng.choice(
            (b"", b"GET\r\n\r\n", b"GET /\r\n\r\n", b"GET  / HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n",
             b"\r\n" * 1000, b"G" * 70_000, b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
             b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"* / HTTP/1.1\r\n\r\n",
             b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /a b HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
        "no HTTP": lambda: rng.choice((rng.randbytes(500), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(300),
                                       b"\0" * 100_000, b"{}" * 100)),
        "another method": lambda: head(rng.choice(("GET", "HEAD", "PUT", "TRACE", "BREW", "post")), rng.choice(
            (path, "/v1/models/%ff", "/%00", "/v1/models/..%2f", "//v1/models", "/metrics", "/v1/models/x?y=%zz")), usual(
            f"Content-Length: {length}")) + body,
        "half a request": lambda: plain(rng)[:rng.randrange(300)],
    }
    name = rng.choice(list(makers))
    return name, makers[name]()


class Unclosed:
    """What `HTTPResponse` takes for a socket and for its file, and may close without closing either."""

    def __init__(self, reader):
        self.reader = reader

    def makefile(self, *_):
        return self

    def close(self):
        pass

    def __getattr__(self, name):
        return getattr(self.reader, name)


def fault(status, body, must_be_json):
    """What is wrong with an answer, or None."""
    if status >= 500:
        return f"{status}: {body[:300]!r}"
    if status >= 400 and (must_be_json or body):
        try:
            error = json.loads(body)["error"]
            assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["code"], error
        except Exception as why:  # noqa: BLE001 - whatever is wrong with it
            return f"{status} is not OpenAI's error ({why}): {body[:300]!r}"
    return None


class Sender:
    """One connection after another, of one thread."""

    def __init__(self, world_server, seed):
        self.server, self.rng = world_server, random.Random(seed)
        self.socket = self.reader = None
        self.sent, self.statuses, self.faults, self.slowest = 0, {}, [], (0.0, "")

    def connect(self):
        self.close()
        self.socket = socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = self.socket.makefile("rb")

    def close(self):
        if self.socket:
            self.reader.close()
            self.socket.close()
            self.socket = None

    def response(self, method="POST"):
        """Reads one; True if the connection can carry another."""
        response = http.client.HTTPResponse(Unclosed(self.reader), method=method)
        response.begin()
        body = response.read()
        self.statuses[response.status] = self.statuses.get(response.status, 0) + 1
        return response.status, body, not response.will_close

    def one_plain(self, count):
        """A few requests framed well, sent at once on a connection that stays."""
        if not self.socket:
            self.connect()
        requests = [plain(self.rng) for _ in range(count)]
        self.sent += count
        began = time.monotonic()
        try:
            self.socket.sendall(b"".join(requests))
            for request in requests:
                status, body, stays = self.response()
                if why := fault(status, body, must_be_json=True):
                    self.faults.append(f"{why} to {request[:2000]!r}")
                if not stays:
                    # What was sent behind it is not answered, as it said.
                    self.close()
                    break
        except (OSError, http.client.HTTPException) as error:
            self.faults.append(f"no answer ({error!r}) to one of {[request[:1000] for request in requests]!r}")
            self.close()
        took = time.monotonic() - began
        self.slowest = max(self.slowest, (took, repr(requests[0][:200])))

    def one_odd(self):
        """A request framed badly, on a connection of its own, whose sending side is then closed."""
        self.connect()
        name, request = framed_oddly(self.rng)
        self.sent += 1
        try:
            if len(request) < 600 and self.rng.random() < 0.1:
                for at in range(len(request)):
                    self.socket.sendall(request[at:at + 1])
            else:
                self.socket.sendall(request)
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # It may be cut off before all of it is sent.
        try:
            while True:
                status, body, stays = self.response("HEAD" if request.startswith(b"HEAD") else "POST")
                if why := fault(status, body, must_be_json=False):
                    self.faults.append(f"{why} to {name}: {request[:1000]!r}")
                if not stays:
                    break
        except (OSError, http.client.HTTPException, ValueError) as error:
            # Closed without a word, or after some: both are ways to refuse what is no request.
            if isinstance(error, TimeoutError):
                self.faults.append(f"neither an answer nor an end to {name}: {request[:1000]!r}")
        self.close()

    def run(self, count):
        while self.sent < count:
            if self.rng.random() < 0.25:
                self.one_odd()
            else:
                self.one_plain(1 if self.rng.random() < 0.9 else 5)
        self.close()


def peak_kib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise AssertionError("no VmHWM")


def test_no_mutated_request_hurts(world):
    total = world.size(2_000, 50_000)
    server = servers.Server(world.weir, {MODEL: "fake:step=10us,token=1us"})
    try:
        valid = json.dumps(VALID[0][1]).encode()
        assert server.post(CHAT, valid).status == 200
        children, before = server.children(), peak_kib(server.process.pid)
        senders = [Sender(server, SEED * 1000 + index) for index in range(THREADS)]
        began = time.monotonic()
        stop = threading.Event()
        refused = []

        def ask_properly():
            while not stop.wait(0.2):
                if (status := server.post(CHAT, valid).status) != 200:
                    refused.append(status)

        neighbour = threading.Thread(target=ask_properly, daemon=True)
        neighbour.start()
        try:
            together(lambda sender: sender.run(total // THREADS), senders)
        finally:
            stop.set()
            neighbour.join()
        seconds = time.monotonic() - began
        statuses = {}
        for sender in senders:
            for status, count in sender.statuses.items():
                statuses[status] = statuses.get(status, 0) + count
        faults = [fault for sender in senders for fault in sender.faults]
        slowest = max(sender.slowest for sender in senders)
        figure("2.socket_requests", sum(sender.sent for sender in senders), seconds=f"{seconds:.0f}")
        for status in sorted(statuses):
            figure(f"2.socket_status_{status}", statuses[status])
        figure("2.socket_5xx", sum(count for status, count in statuses.items() if status >= 500))
        figure("2.socket_faults", len(faults))
        figure("2.socket_panics", server.output().count("panicked"))
        figure("2.socket_slowest_ms", f"{slowest[0] * 1000:.0f}")
        figure("2.socket_peak_growth_mib", f"{(peak_kib(server.process.pid) - before) / 1024:.1f}")
        assert not faults, f"{len(faults)} faults, the first: " + "\n".join(faults[:5])
        assert not refused, f"who asked properly meanwhile was answered {refused[:10]}"
        assert server.process.poll() is None and server.children() == children, "a process died"
        assert server.post(CHAT, valid).status == 200
        # Some were accepted, most refused.
        assert statuses.get(200, 0) > total / 20 and statuses.get(400, 0) > total / 20, statuses
    finally:
        server.close()
