"""Clients by the thousand, in one thread: raw sockets, so that each byte and each end is ours to choose."""

import contextlib
import heapq
import json
import pathlib
import re
import selectors
import socket
import struct
import time

HOST = "127.0.0.1"


def request(path, body, key="weir-e2e-demo-key", more=""):
    """A whole HTTP request."""
    content = json.dumps(body).encode()
    head = (f"POST {path} HTTP/1.1\r\nhost: weir\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n{more}\r\n")
    return head.encode() + content


def connect(port, receive_buffer=None):
    """A connected socket; a receive buffer has to be chosen before, since it sets the window."""
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(60)
    sock.connect((HOST, port))
    return sock


def cut(sock, reset):
    """Hangs up, with a FIN or with an RST."""
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Client:
    """One connection: when it was made, what came, and when it ended."""

    def __init__(self, sock, **notes):
        sock.setblocking(False)
        self.sock, self.begun, self.ended, self.reset = sock, time.monotonic(), None, False
        self.received = bytearray()
        self.__dict__.update(notes)


class Crowd:
    """Runs clients: reads what comes, calls at set times, until nobody is left."""

    def __init__(self):
        self.selector, self.calls, self.order, self.reading = selectors.DefaultSelector(), [], 0, 0

    def at(self, when, call):
        """Calls at a time of the monotonic clock."""
        self.order += 1
        heapq.heappush(self.calls, (when, self.order, call))

    def read(self, client, heard=None):
        """Reads until the end; `heard(client)` is told of each piece, and may cut."""
        client.heard = heard
        self.selector.register(client.sock, selectors.EVENT_READ, client)
        self.reading += 1

    def forget(self, client):
        """Stops reading."""
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(client.sock)
            self.reading -= 1

    def run(self, until=None, patience=120.0):
        """Until everything that was asked for has happened, or `until()` says so."""
        deadline = time.monotonic() + patience
        while (self.reading or self.calls) and not (until and until()):
            now = time.monotonic()
            assert now < deadline, f"{self.reading} clients still read after {patience:.0f} s"
            while self.calls and self.calls[0][0] <= now:
                heapq.heappop(self.calls)[2]()
            wait = min(self.calls[0][0] - now if self.calls else 0.1, 0.1)
            for key, _ in self.selector.select(max(wait, 0)):
                self._hear(key.data)

    def _hear(self, client):
        try:
            data = client.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            client.reset, data = True, b""
        client.received += data
        if not data:
            client.ended = time.monotonic()
            self.forget(client)
            client.sock.close()
        elif client.heard:
            client.heard(client)


def payload(received):
    """Head and body of a response; chunks are joined."""
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return head, body
    joined = bytearray()
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        if not length:
            break
        joined += rest[:length]
        body = rest[length + 2:]
    return head, bytes(joined)


def ending(received):
    """How a response ended: `finished`, `error`, `whole` (not a stream), or None where it was broken off."""
    head, body = payload(received)
    if not head.startswith(b"HTTP/1.1 "):
        return None
    if b"text/event-stream" in head:
        events = [line[6:] for line in body.decode(errors="replace").splitlines() if line.startswith("data: ")]
        if len(events) < 2 or events.pop() != "[DONE]" or not bytes(received).endswith(b"0\r\n\r\n"):
            return None
        last = [json.loads(event) for event in events[-2:]]
        if "error" in last[-1]:
            return "error"
        return "finished" if any(choice["finish_reason"] for chunk in last for choice in chunk["choices"]) else None
    length = re.search(rb"content-length: (\d+)", head)
    return "whole" if length and len(body) == int(length[1]) and json.loads(body) is not None else None


def memory(pid, field="VmRSS"):
    """A process's memory in KiB: VmRSS now, VmHWM at most since `reset_peak`."""
    return int(re.search(rf"{field}:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())[1])


def reset_peak(pid):
    """Lets VmHWM begin again from here."""
    pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")


def descriptors(pid):
    return sum(1 for _ in pathlib.Path(f"/proc/{pid}/fd").iterdir())


def socket_memory():
    """What the kernel keeps for all TCP sockets of this machine, in KiB."""
    pages = re.search(r"^TCP: .* mem (\d+)", pathlib.Path("/proc/net/sockstat").read_text(), re.M)
    return int(pages[1]) * 4 if pages else 0
