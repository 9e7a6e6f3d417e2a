"""`weir serve org/name` against a stand-in of the Hugging Face hub: download, resume, revision, digest, token, offline."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import signal
import subprocess
import tempfile
import threading

from server import EMBED, clean_environment, free_port, wait_until

COMMITS = {"main": "a" * 40, "v2": "b" * 40, "a" * 40: "a" * 40, "b" * 40: "b" * 40}
REPO = "stand-in/mini"
LARGE = "model.safetensors"


class Hub:
    """One repository with two revisions. Large files are redirected and have a sha256, small ones a git blob id."""

    def __init__(self, folder, token=None):
        self.files = {str(path.relative_to(folder)): path.read_bytes()
                      for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}
        self.token, self.cut_after, self.flip, self.requests = token, None, False, []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.answer()

            def do_GET(self):
                self.answer()

            def answer(self):
                hub.requests.append((self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization")))
                hub.reply(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def reply(self, handler):
        path = handler.path.split("?")[0]
        if self.token and not path.startswith("/cdn/") and handler.headers.get("Authorization") != f"Bearer {self.token}":
            return self.send(handler, 401, b"{}")
        if match := re.fullmatch(rf"/api/models/{REPO}(?:/revision/([^/]+))?", path):
            commit = COMMITS.get(match[1] or "main")
            if commit is None:
                return self.send(handler, 404, b"{}")
            body = {"id": REPO, "sha": commit, "siblings": [{"rfilename": name} for name in sorted(self.files)]}
            return self.send(handler, 200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        if match := re.fullmatch(rf"/{REPO}/resolve/([^/]+)/(.+)", path):
            commit, content = COMMITS.get(match[1]), self.files.get(match[2])
            if commit is None or content is None:
                return self.send(handler, 404, b"{}")
            if match[2] == LARGE:
                digest = hashlib.sha256(content).hexdigest()
                return self.send(handler, 302, b"", {
                    "Location": f"{self.address}/cdn/{match[2]}", "X-Repo-Commit": commit, "ETag": '"redirect"',
                    "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))})
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return self.send_range(handler, content, {"X-Repo-Commit": commit, "ETag": f'"{blob}"'})
        if path == f"/cdn/{LARGE}":
            content = self.files[LARGE]
            if self.flip:
                content = content[:-1] + bytes([content[-1] ^ 1])
            return self.send_range(handler, content, {}, self.cut_after)
        return self.send(handler, 404, b"{}")

    def send_range(self, handler, content, headers, cut_after=None):
        headers = headers | {"Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range") or "")
        if not match:
            return self.send(handler, 200, content, headers, cut_after)
        first, last = int(match[1]), min(int(match[2] or len(content) - 1), len(content) - 1)
        if first > last:
            return self.send(handler, 416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.send(handler, 206, content[first:last + 1], headers, cut_after)

    def send(self, handler, status, body, headers=None, cut_after=None):
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        with contextlib.suppress(OSError):
            if cut_after is not None and len(body) > cut_after:
                handler.wfile.write(body[:cut_after])
                handler.close_connection = True
                handler.connection.shutdown(2)
            else:
                handler.wfile.write(body)

    def asked_for(self, part):
        return [request for request in self.requests if part in request[1]]


@contextlib.contextmanager
def standing_in(world, **options):
    hub = Hub(world.models / EMBED, **options)
    with tempfile.TemporaryDirectory() as home:
        try:
            yield hub, pathlib.Path(home)
        finally:
            hub.close()


def serve(world, hub, home, model=REPO, **more):
    """Start, wait until it is ready or has ended, end it; the exit code (0 for a good start) and stderr."""
    port = free_port()
    environment = clean_environment() | {
        "HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.address, "WEIR_METRICS": f"127.0.0.1:{free_port()}"} | more
    errors = home / "stderr"
    with errors.open("w") as stderr:
        process = subprocess.Popen([world.weir, "serve", f"m={model}", "--port", str(port)], cwd=home, env=environment,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True)
    out = []
    reader = threading.Thread(target=lambda: out.extend(process.stdout), daemon=True)
    reader.start()
    wait_until("a start or an end", lambda: process.poll() is not None or any("curl" in line for line in out))
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    code = process.wait(timeout=60)
    reader.join()
    return code, errors.read_text()


def test_download_then_offline(world):
    with standing_in(world) as (hub, home):
        code, errors = serve(world, hub, home)
        assert code == 0, errors
        assert hub.asked_for(LARGE)
        # The layout is the hub's own, so that other programs share it.
        snapshots = home / "hf" / "hub" / "models--stand-in--mini" / "snapshots" / COMMITS["main"]
        assert (snapshots / LARGE).read_bytes() == hub.files[LARGE]
        hub.requests.clear()
        code, errors = serve(world, hub, home)
        assert code == 0, errors
        assert not hub.asked_for("/cdn/"), "what is there was fetched again"
        hub.requests.clear()
        code, errors = serve(world, hub, home, HF_HUB_OFFLINE="1")
        assert code == 0 and not hub.requests, (errors, hub.requests)


def test_offline_without_the_files_fails_plainly(world):
    with standing_in(world) as (hub, home):
        code, errors = serve(world, hub, home, HF_HUB_OFFLINE="1")
        assert code == 1 and not hub.requests and REPO in errors and "panicked" not in errors, errors


def test_revisions_are_asked_for_and_kept_apart(world):
    with standing_in(world) as (hub, home):
        code, errors = serve(world, hub, home, model=f"{REPO}@v2")
        assert code == 0, errors
        assert (home / "hf" / "hub" / "models--stand-in--mini" / "snapshots" / COMMITS["v2"] / LARGE).exists()
        code, errors = serve(world, hub, home, model=f"{REPO}@nothing")
        assert code == 1 and "panicked" not in errors, errors


def test_a_cut_download_is_resumed(world):
    with standing_in(world) as (hub, home):
        hub.cut_after = 50 << 20
        code, errors = serve(world, hub, home)
        if code != 0:  # one line, and what came is kept for the next start
            assert "panicked" not in errors, errors
            hub.cut_after = None
            code, errors = serve(world, hub, home)
        assert code == 0, errors
        starts = [int(re.match(r"bytes=(\d+)", r[2])[1]) for r in hub.asked_for("/cdn/") if r[2]]
        assert any(start > 0 for start in starts), hub.asked_for("/cdn/")


def test_broken_bytes_are_refused(world):
    with standing_in(world) as (hub, home):
        hub.flip = True
        code, errors = serve(world, hub, home)
        assert code == 1 and "panicked" not in errors, errors
        hub.flip = False
        code, errors = serve(world, hub, home)
        assert code == 0, errors


def test_the_token_is_sent_to_the_hub_alone(world):
    with standing_in(world, token="hf_secret") as (hub, home):
        code, errors = serve(world, hub, home)
        assert code == 1 and "panicked" not in errors, errors
        hub.requests.clear()
        code, errors = serve(world, hub, home, HF_TOKEN="hf_secret")
        assert code == 0 and "hf_secret" not in errors, errors
        assert all(r[3] == "Bearer hf_secret" for r in hub.requests if not r[1].startswith("/cdn/"))
