"""Crowds that behave badly: clients that hang up at any moment, that do not read, that do not write. What they leave
behind is read from the server's own gauges, and what others notice of them is measured beside them."""

import json
import multiprocessing
import random
import statistics
import threading
import time

from crowd import (Client, Crowd, connect, cut, descriptors, ending, memory, payload, request, reset_peak,
                   socket_memory)
from server import TENANTS, Server, figure, wait_until

KEY, OTHER, THIRD = (TENANTS[name][0] for name in ("demo", "other", "third"))
# What a server takes once when a crowd comes, however large it is: room of the allocator for each of its threads.
ONCE_KIB = 1024
# Everything that a request holds while it lives.
HELD = ("weir_connections", "weir_requests_live", "weir_inbox_requests", "weir_encoders_busy", "weir_outboxes",
        "weir_outbox_bytes")
OF_MODEL = ("weir_kv_blocks_used", "weir_requests_waiting", "weir_requests_running")


def held(server):
    """The gauges that must be zero when nobody asks for anything, and the tasks and descriptors there are."""
    metrics = server.metrics()
    found = {name: value for name, value in metrics.items()
             if name in HELD or name.partition("{")[0] in OF_MODEL}
    assert len(found) >= len(HELD) + len(OF_MODEL), found
    return found, metrics["weir_tasks"], descriptors(server.process.pid)


def at_rest(server, tasks, files):
    """Waits until nothing is held and there are no more tasks and descriptors than before, and returns what is left. A
    canary may pass by."""
    seen = []

    def nothing():
        seen[:] = held(server)
        return not any(seen[0].values()) and seen[1] <= tasks and seen[2] <= files

    try:
        wait_until("nothing to be held", nothing, patience=30)
    except AssertionError:
        left = {name: value for name, value in seen[0].items() if value}
        raise AssertionError(f"left behind: {left}, tasks {seen[1]} of {tasks}, files {seen[2]} of {files}") from None
    return seen[0] | {"tasks": seen[1] - tasks, "descriptors": seen[2] - files}


def baseline(server):
    """Tasks and descriptors of a server at rest. A request first: some things are made once and stay."""
    assert server.post("/v1/chat/completions", hello(4)).status == 200
    assert server.post("/v1/embeddings", {"model": "fake", "input": "x"}).status == 200
    wait_until("rest", lambda: not any(held(server)[0].values()))
    _, tasks, files = held(server)
    return tasks, files


def hello(tokens, **more):
    return {"model": "fake", "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens,
            "ignore_eos": True, **more}


def device_seconds(server):
    """The sum of all accounts, and the times between which it was read."""
    before = time.monotonic()
    metrics = server.metrics()
    accounts = [value for name, value in metrics.items() if name.startswith("weir_device_seconds_total")]
    assert len(accounts) == 4, metrics
    return sum(accounts), before, time.monotonic()


# A phase in which a client may hang up: what it sends, of that how much, and then after how many bytes or seconds.
def phases(rng):
    whole = request("/v1/chat/completions", hello(rng.randrange(1, 200), stream=rng.random() < 0.5))
    stream = request("/v1/chat/completions", hello(200, stream=True, n=rng.choice([1, 1, 4])))
    several = request("/v1/completions", {"model": "fake", "prompt": ["a", "b", "c"], "max_tokens": 100, "n": 2,
                                          "ignore_eos": True, "stream": rng.random() < 0.7})
    silent = request("/v1/chat/completions", hello(200))
    vectors = request("/v1/embeddings", {"model": "fake", "input": ["some text to embed"] * rng.randrange(1, 64)})
    head = whole.index(b"\r\n\r\n") + 4
    soon, later = rng.random() * 0.005, rng.random() * 0.4
    return {
        "in the head": (whole[:rng.randrange(0, head)], None, soon),
        "in the body": (whole[:rng.randrange(head, len(whole))], None, soon),
        "before admission": (whole, None, 0.0),
        "queued": (stream, None, later),
        "at the first byte": (stream, 1, None),
        "in the stream": (stream, rng.randrange(300, 20_000), None),
        "while generating": (silent, None, later),
        "embedding": (vectors, None, soon),
        "several prompts": (several, None, later),
        "with another request behind": (stream + silent, None, later),
        "not reading": (stream, None, later),
    }


def one_round(server, rng, count):
    """Connects, sends and hangs up `count` times; how many in which phase."""
    crowd, counts = Crowd(), {}
    for _ in range(count):
        name, (sent, after_bytes, after_seconds) = rng.choice(list(phases(rng).items()))
        counts[name] = counts.get(name, 0) + 1
        reset = rng.random() < 0.5
        sock = connect(server.port)
        sock.sendall(sent)
        client = Client(sock, reset_it=reset)

        def leave(client=client):
            crowd.forget(client)
            cut(client.sock, client.reset_it)

        if after_bytes is None:
            crowd.at(time.monotonic() + after_seconds, leave)
            continue

        def heard(client, after_bytes=after_bytes, leave=leave):
            if len(client.received) >= after_bytes:
                leave()

        crowd.read(client, heard)
    crowd.run()
    return counts


def test_disconnects_leave_nothing(world):
    rounds, each = world.size((3, 150), (20, 1000))
    server = Server(world.weir, {"fake": "fake:step=2ms,token=5us,kv=256K"}, "rows_max = 64\nqueue_len_max = 4096",
                    "connections_max = 4096", {"demo": "queue_len_max = 4096"})
    try:
        tasks, files = baseline(server)
        begun = device_seconds(server)
        rng, total, sizes = random.Random(3), {}, []
        for _ in range(rounds):
            for name, count in one_round(server, rng, each).items():
                total[name] = total.get(name, 0) + count
            left = at_rest(server, tasks, files)
            sizes.append(memory(server.process.pid))
        ended = device_seconds(server)
        # All of the device's time is somebody's: no more than passed between the two readings, and no less.
        took = ended[0] - begun[0]
        assert ended[1] - begun[2] - 1e-3 <= took <= ended[2] - begun[1] + 1e-3, (took, begun, ended)
        metrics = server.metrics()
        assert metrics['weir_requests_total{outcome="cancelled"}'] > 0
        assert metrics['weir_requests_total{outcome="failed"}'] == 0, metrics
        assert len(total) == len(phases(rng)), total
        # And it serves as before.
        reply = server.post("/v1/chat/completions", hello(50))
        assert reply.status == 200 and reply.json["usage"]["completion_tokens"] == 50
        figure("3.disconnects", rounds * each, rounds=rounds, phases=len(total),
               **{f"left_{name.partition('{')[0].removeprefix('weir_')}": int(value) for name, value in left.items()})
        figure("3.disconnects_rss_kib", sizes[-1] - sizes[0], first_round=sizes[0], half_way=sizes[rounds // 2],
               last_round=sizes[-1])
    finally:
        server.close()


def stream_gaps(port, tokens, into):
    """A well-behaved client, in a process of its own so that it measures the server and not its neighbours here: the times
    between the pieces of one stream, in ms."""
    try:
        sock = connect(port)
        sock.sendall(request("/v1/completions", {"model": "fake", "prompt": "x", "max_tokens": tokens,
                                                 "ignore_eos": True, "stream": True}, THIRD))
        received, gaps, last = bytearray(), [], None
        while not received.endswith(b"0\r\n\r\n"):
            data = sock.recv(1 << 16)
            assert data, "the stream broke off"
            now = time.perf_counter()
            received += data
            if last is not None:
                gaps.append((now - last) * 1e3)
            last = now
        sock.close()
        assert ending(received) == "finished"
        # The last pieces are the reason and the end, without a step between them.
        into.send(gaps[:-2])
    except Exception as error:  # noqa: BLE001 - raised again where it is waited for
        into.send(error)


def listen(server, tokens, meanwhile=lambda: None):
    """Inter-token latencies in ms, sorted, of four clients that listen while something goes on."""
    fork, pipes, found = multiprocessing.get_context("fork"), [], []
    for _ in range(4):
        ours, theirs = fork.Pipe(duplex=False)
        fork.Process(target=stream_gaps, args=(server.port, tokens, theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    meanwhile()
    for pipe in pipes:
        gaps = pipe.recv()
        if isinstance(gaps, Exception):
            raise gaps
        found += gaps
    return sorted(found)


def median_and_p99(sorted_values):
    return statistics.median(sorted_values), sorted_values[len(sorted_values) * 99 // 100]


def slow_readers(server, count, key, together=True):
    """Connections that asked for a megabyte each and read nothing of it; together, all are made before the first asks."""
    sent = request("/v1/completions", {"model": "fake", "prompt": "x", "max_tokens": 1024, "ignore_eos": True,
                                       "stream": True}, key)
    sockets = []
    for _ in range(count):
        sockets.append(connect(server.port, receive_buffer=4096))
        if not together:
            sockets[-1].sendall(sent)
    if together:
        for sock in sockets:
            sock.sendall(sent)
    return [Client(sock) for sock in sockets]


def ended_requests(server):
    """Requests of tenants that ended after they were accepted."""
    metrics = server.metrics()
    return sum(metrics[f'weir_requests_total{{outcome="{outcome}"}}'] for outcome in ("completed", "cancelled", "failed"))


def slow_server(world, step):
    """A token is 1 KiB of text, so a megabyte is 1,024 steps; the cache has room for all at once."""
    return Server(world.weir, {"fake": f"fake:step={step},token=0us,text=1KiB,kv=8M"},
                  'rows_max = 8192\nstep_tokens_max = 16384\nqueue_len_max = 8192\nstep_latency_max = "60s"',
                  "connections_max = 12000",
                  {"demo": "running_max = 8192\nqueue_len_max = 8192", "other": "running_max = 60\nqueue_len_max = 8192"})


def test_slow_readers_hold_little_and_no_kv(world):
    """All at once, and in steps so long that all outboxes are at their fullest together."""
    count = world.size(100, 5000)
    server = slow_server(world, world.size("5ms", "200ms"))
    try:
        tasks, files = baseline(server)
        _memory_of_slow_readers(server, count)
        at_rest(server, tasks, files)
    finally:
        server.close()


def test_slow_readers_leave_their_neighbours_alone(world):
    server = slow_server(world, "4ms")
    try:
        tasks, files = baseline(server)
        _neighbours_of_slow_readers(world, server, world.size(100, 5000))
        at_rest(server, tasks, files)
    finally:
        server.close()


def _memory_of_slow_readers(server, count):
    pid, already = server.process.pid, ended_requests(server)
    before, kernel = memory(pid), socket_memory()
    reset_peak(pid)
    clients, fullest = slow_readers(server, count, KEY), [0]

    def all_ended():
        fullest[0] = max(fullest[0], server.metrics()["weir_outbox_bytes"])
        return ended_requests(server) >= already + count

    wait_until("every sequence to end", all_ended)
    # The step that a reader is cut in is its last.
    wait_until("the KV blocks to be free", lambda: server.metrics()['weir_kv_blocks_used{model="fake"}'] == 0, patience=10)
    metrics = server.metrics()
    assert metrics["weir_connections"] == count, metrics["weir_connections"]
    peak, after = memory(pid, "VmHWM"), memory(pid)
    kernel = socket_memory() - kernel
    each = (peak - before) / count
    figure("3.slow_readers_kib_each", round(each, 1), readers=count, before_kib=before, peak_kib=peak,
           when_ended_kib=after, fullest_outbox_kib_each=round(fullest[0] / count / 1024, 1),
           kernel_kib_each=round(kernel / count, 1))
    # They wake up: each finds an end in what was kept for it.
    crowd, endings, texts = Crowd(), {}, []
    for client in clients:
        crowd.read(client, lambda client: cut_when_over(crowd, client))
    crowd.run()
    for client in clients:
        how = ending(client.received)
        endings[how] = endings.get(how, 0) + 1
        texts.append(len(payload(client.received)[1]))
    figure("3.slow_readers_endings", count, **{str(how): number for how, number in sorted(endings.items(), key=str)},
           median_kib_kept=round(statistics.median(texts) / 1024))
    assert set(endings) <= {"finished", "error"}, endings
    assert endings.get("error", 0) > 0, "nobody was cut: the outputs fit into the sockets, and nothing was tested"
    assert each < 64 + ONCE_KIB / count, f"{each:.1f} KiB for each slow reader"


def cut_when_over(crowd, client):
    if client.received.endswith(b"0\r\n\r\n"):
        crowd.forget(client)
        client.sock.close()


def _neighbours_of_slow_readers(world, server, count):
    """Four streams alone, then beside slow readers that run 60 at a time, then beside those that have all ended."""
    tokens = world.size(250, 2000)
    alone = median_and_p99(listen(server, tokens))
    clients, already = [], ended_requests(server)
    beside = median_and_p99(listen(server, tokens, lambda: clients.extend(slow_readers(server, count, OTHER, together=False))))
    slow_ended = ended_requests(server) - already
    if world.full:
        # The rest would only prolong it.
        for client in clients[len(clients) // 2:]:
            cut(client.sock, reset=True)
        clients = clients[:len(clients) // 2]
    wait_until("the slow readers' sequences to end", lambda: not server.metrics()['weir_requests_running{model="fake"}']
               and not server.metrics()['weir_requests_waiting{model="fake"}'])
    stalled = median_and_p99(listen(server, tokens))
    again = median_and_p99(listen(server, tokens))
    for client in clients:
        cut(client.sock, reset=True)
    for name, (median, p99) in {"beside": beside, "stalled": stalled, "alone_again": again}.items():
        figure(f"3.slow_readers_itl_ratio_{name}", round(median / alone[0], 3), p99_ratio=round(p99 / alone[1], 3),
               median_ms=round(median, 2), p99_ms=round(p99, 2), alone_median_ms=round(alone[0], 2),
               alone_p99_ms=round(alone[1], 2), slow_ended_meanwhile=int(slow_ended))


def test_those_who_never_read_are_cut_off(world):
    """The server's patience is 30 s. That is too long for every change, so in the small size they leave by themselves."""
    server = Server(world.weir, {"fake": "fake:step=1ms,token=0us,text=1KiB"}, "", "connections_max = 4096")
    try:
        tasks, files = baseline(server)
        begun = time.monotonic()
        clients = slow_readers(server, 60, KEY)
        # A whole answer of a megabyte, not a stream.
        whole = connect(server.port, receive_buffer=4096)
        whole.sendall(request("/v1/completions", {"model": "fake", "prompt": "x", "max_tokens": 1024, "ignore_eos": True}))
        if world.full:
            wait_until("the connections to be cut", lambda: server.metrics()["weir_connections"] == 0)
            figure("3.never_reading_cut_seconds", round(time.monotonic() - begun, 1), readers=len(clients) + 1)
        else:
            wait_until("the sequences to end", lambda: ended_requests(server) >= len(clients) + 1)
            assert server.metrics()["weir_connections"] == len(clients) + 1
        for client in clients:
            client.sock.close()
        whole.close()
        at_rest(server, tasks, files)
    finally:
        server.close()


def drip(crowd, client, rest):
    """A byte every five seconds, for as long as anybody takes it."""
    def send(at=0):
        if client.ended is None:
            try:
                client.sock.send(rest[at:at + 1])
            except OSError:
                return
            crowd.at(time.monotonic() + 5, lambda: send((at + 1) % len(rest)))

    crowd.at(time.monotonic() + 5, send)


def test_slow_senders_are_closed(world):
    count = world.size(60, 2000)
    server = Server(world.weir, {"fake": "fake:step=4ms,token=20us"}, "", "connections_max = 4096")
    try:
        tasks, files = baseline(server)
        whole = request("/v1/chat/completions", hello(4))
        head, body = whole[:whole.index(b"\r\n\r\n") + 4], whole[whole.index(b"\r\n\r\n") + 4:]
        chunked = head.replace(b"content-length: %d" % len(body), b"transfer-encoding: chunked")
        kinds = {
            "idle after connecting": (b"", b""),
            "one byte": (b"P", b""),
            "dripping head": (b"P", head[1:]),
            "dripping body": (head, body),
            "silent body": (head + body[:-1], b""),
            "dripping chunk": (chunked + b"40\r\n{", b" "),
            "endless chunks": (chunked + b"1\r\n{\r\n", b"1"),
            "idle after a request": (whole, b""),
        }
        crowd, clients, ended = Crowd(), [], threading.Event()
        served = []

        def neighbour():
            while not ended.is_set():
                served.append(server.post("/v1/chat/completions", hello(8), key=THIRD).status)

        friend = threading.Thread(target=neighbour, daemon=True)
        friend.start()
        for index in range(count):
            kind = list(kinds)[index % len(kinds)]
            first, rest = kinds[kind]
            sock = connect(server.port)
            sock.sendall(first)
            client = Client(sock, kind=kind)
            clients.append(client)
            crowd.read(client)
            if rest:
                drip(crowd, client, rest)
        crowd.run(until=lambda: all(client.ended for client in clients), patience=60)
        ended.set()
        friend.join()
        at_rest(server, tasks, files)
        worst = {}
        for client in clients:
            worst[client.kind] = max(worst.get(client.kind, 0), client.ended - client.begun)
            answer = bytes(client.received)
            expected = {"idle after connecting": b"", "idle after a request": b"HTTP/1.1 200 "}
            assert answer.startswith(expected.get(client.kind, b"HTTP/1.1 408 ")), (client.kind, answer[:200])
            if b" 408 " in answer[:20]:
                assert json.loads(payload(answer)[1])["error"]["code"] == "request_timeout", answer
        assert served and set(served) == {200}, served
        figure("3.slow_senders_worst_seconds", round(max(worst.values()), 2), senders=count, neighbour_answers=len(served),
               **{kind.replace(" ", "_"): round(seconds, 2) for kind, seconds in worst.items()})
    finally:
        server.close()
