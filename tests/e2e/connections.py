"""HTTP as strangers speak it, and the limits of a process: whatever comes, it is answered in order or refused in words."""

import json
import resource
import socket

from crowd import connect, ending, payload, request
from server import FAKE, TENANTS, Server, figure, wait_until

KEY = TENANTS["demo"][0]
AUTHORIZED = f"authorization: Bearer {KEY}\r\n"
BODY = {"model": FAKE, "prompt": "x", "max_tokens": 3, "ignore_eos": True}


def exchange(server, sent, half_close=False):
    """All that comes back for some bytes, until the server closes."""
    with connect(server.port) as sock:
        sock.sendall(sent)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        received = bytearray()
        while data := sock.recv(1 << 16):
            received += data
    return bytes(received)


def chunks(*parts, trailers=""):
    """A chunked body."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailers.encode() + b"\r\n"


def chunked_head(more=""):
    return (f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{AUTHORIZED}transfer-encoding: chunked\r\n"
            f"{more}\r\n").encode()


def error_of(received):
    """Status and code of a refusal that has the API's shape."""
    head, body = payload(received)
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    return int(head.split()[1]), error["code"]


def test_chunks_of_any_size_and_trailers_are_one_body(world):
    content = json.dumps(BODY).encode()
    for body in (chunks(content), chunks(*(content[i:i + 1] for i in range(len(content)))),
                 chunks(content, trailers="x-sum: 1\r\nx-more: 2\r\n")):
        received = exchange(world.fake, chunked_head() + body)
        assert received.startswith(b"HTTP/1.1 200 ") and ending(received) == "whole", received
    # 100,000 chunks of one byte, and trailers without end, are bounded like everything else.
    padded = b" " * 100_000 + content
    received = exchange(world.fake, chunked_head() + chunks(*(padded[i:i + 1] for i in range(len(padded)))))
    assert received.startswith(b"HTTP/1.1 200 "), received
    flood = chunked_head() + chunks(content, trailers="x: y\r\n" * 100_000)
    with connect(world.fake.port) as sock:
        try:
            sock.sendall(flood)
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 400 ")
        except OSError:
            pass  # It stopped listening, which is an answer, too.


def test_a_body_that_is_not_what_was_announced_is_refused(world):
    cases = [
        chunked_head() + b"zz\r\n",
        chunked_head() + b"ffffffffffffffffff\r\n",
        chunked_head("content-length: 5\r\n") + chunks(b"{}"),
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n" + AUTHORIZED.encode() + b"content-length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n" + AUTHORIZED.encode() + b"transfer-encoding: gzip\r\n\r\n",
    ]
    for sent in cases:
        assert error_of(exchange(world.fake, sent))[0] == 400, sent
    # A content-length that is not reached: the client leaves, and there is nobody to tell.
    short = request("/v1/completions", BODY, KEY)[:-3]
    exchange(world.fake, short, half_close=True)
    assert world.fake.post("/v1/completions", BODY).status == 200


def test_expect_continue_asks_for_the_body_only_if_it_is_wanted(world):
    content = json.dumps(BODY).encode()

    def head(authorized):
        return (f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{authorized}expect: 100-continue\r\n"
                f"content-length: {len(content)}\r\n\r\n").encode()

    with connect(world.fake.port) as sock:
        sock.sendall(head(AUTHORIZED))
        assert sock.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(content)
        assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    received = exchange(world.fake, head(""))
    assert error_of(received) == (401, "invalid_api_key"), received


def test_old_and_odd_requests_are_answered(world):
    server = world.fake
    content = json.dumps(BODY | {"stream": True}).encode()
    # HTTP/1.0 knows no chunks: the stream ends where the connection does.
    old = exchange(server, f"POST /v1/completions HTTP/1.0\r\n{AUTHORIZED}content-length: {len(content)}\r\n\r\n".encode()
                   + content)
    assert b"transfer-encoding" not in old and old.endswith(b"data: [DONE]\n\n"), old
    close = "host: x\r\nconnection: close\r\n\r\n"
    answers = {
        "GET http://elsewhere.example/health HTTP/1.1": 200,
        "HEAD /health HTTP/1.1": 200,
        "OPTIONS /v1/completions HTTP/1.1": 401,
        "OPTIONS * HTTP/1.1": 401,
        "CONNECT elsewhere.example:443 HTTP/1.1": 401,
        "TRACE /health HTTP/1.1": 405,
        "GET /health?x=%00%ff#y HTTP/1.1": 200,
        "GET /%2e%2e/health HTTP/1.1": 401,
    }
    for line, status in answers.items():
        received = exchange(server, f"{line}\r\n{close}".encode())
        assert received.startswith(b"HTTP/1.1 %d " % status), (line, received)
    received = exchange(server, f"HEAD /health HTTP/1.1\r\n{close}".encode())
    head, body = payload(received)
    assert body == b"" and b"content-length: " in head, received
    for line, expected in {"OPTIONS /v1/completions HTTP/1.1": (405, "method_not_allowed"),
                           "GET /v1/completions HTTP/1.1": (405, "method_not_allowed"),
                           "OPTIONS * HTTP/1.1": (404, "unknown_url"),
                           "CONNECT elsewhere.example:443 HTTP/1.1": (404, "unknown_url")}.items():
        received = exchange(server, f"{line}\r\n{AUTHORIZED}{close}".encode())
        assert error_of(received) == expected, (line, received)
    # A promise to speak something else is not taken up.
    received = exchange(server, f"GET /health HTTP/1.1\r\nupgrade: h2c\r\nconnection: upgrade, close\r\nhost: x\r\n\r\n"
                        .encode())
    assert received.startswith(b"HTTP/1.1 200 "), received


def test_heads_that_cannot_be_read_are_refused_in_the_apis_words(world):
    cases = [
        (b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"x" * (1 << 20) + b"\r\n\r\n", (431, "request_header_too_large")),
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n", (431, "request_header_too_large")),
        (b"GET /" + b"x" * (1 << 20) + b" HTTP/1.1\r\nhost: x\r\n\r\n", (431, "request_header_too_large")),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100, (400, "invalid_http")),
        (b"not http\r\n\r\n", (400, "invalid_http")),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, "invalid_http")),
    ]
    for sent, expected in cases:
        assert error_of(exchange(world.fake, sent)) == expected, sent[:60]


def test_pipelined_requests_are_answered_in_order(world):
    one = request("/v1/completions", BODY | {"max_tokens": 1}, KEY)
    last = request("/v1/completions", BODY | {"max_tokens": 2}, KEY, "connection: close\r\n")
    received = exchange(world.fake, one + one + last)
    assert received.count(b"HTTP/1.1 200 ") == 3, received
    counts = [json.loads(part[part.index(b"{"):part.rindex(b"}") + 1])["usage"]["completion_tokens"]
              for part in received.split(b"HTTP/1.1 200 ")[1:]]
    assert counts == [1, 1, 2], counts


def test_the_limit_of_open_files_is_raised_and_running_out_of_it_is_survived(world):
    """A hard limit of 200 with a soft one of 50, and 1,024 connections allowed."""
    def before():
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 200))

    server = Server(world.weir, {FAKE: "fake:step=2ms"}, before=before)
    idle = []
    try:
        with open(f"/proc/{server.process.pid}/limits", encoding="utf-8") as limits:
            line, = [line for line in limits if line.startswith("Max open files")]
        assert line.split()[3:5] == ["200", "200"], line
        assert "fewer open files are allowed than connections_max needs" in server.output(), server.output()
        # The kernel completes connections that the server cannot accept: they wait in its backlog.
        idle = [connect(server.port) for _ in range(300)]
        wait_until("the descriptors to run out", lambda: "cannot accept connections" in server.output())
        for sock in idle:
            sock.close()
        wait_until("an answer", lambda: server.request("GET", "/health", key=None).status == 200)
        assert server.post("/v1/completions", BODY).status == 200
        assert "accepting connections again" in server.output()
        assert server.output().count("cannot accept connections") <= 20, "the log is flooded"
        figure("3.descriptors_ran_out", server.output().count("cannot accept connections"), hard_limit=200)
    finally:
        server.close()
