"""Hostile model files meet a server that is serving others: each is refused by name, and nobody else notices."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading

import hostile
from operations import weir
from server import CHAT, FAKE, Server, figure, wait_until

MODELS = "/admin/v1/models"
# What the two streams ask for, again and again: answers of one and a half seconds or so.
STREAMS = {
    FAKE: {"model": FAKE, "prompt": "on and on", "max_tokens": 300, "ignore_eos": True, "temperature": 0},
    CHAT: {"model": CHAT, "prompt": "Once upon a time", "max_tokens": 48, "ignore_eos": True, "temperature": 0},
}


def resident_kib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError(f"process {pid} has no memory")


class Streams:
    """Both streams in threads of their own until they are stopped; every text must be the undisturbed one."""

    def __init__(self, server):
        self.server, self.stop, self.done, self.failures = server, threading.Event(), dict.fromkeys(STREAMS, 0), []
        self.undisturbed = {name: self.text(body) for name, body in STREAMS.items()}
        self.threads = [threading.Thread(target=self.run, args=pair, daemon=True) for pair in STREAMS.items()]
        for thread in self.threads:
            thread.start()

    def text(self, body):
        connection, response = self.server.open_stream("/v1/completions", body)
        try:
            lines = response.read().decode().splitlines()
        finally:
            connection.close()
        events = [line[len("data: "):] for line in lines if line.startswith("data: ")]
        assert events and events[-1] == "[DONE]", events[-2:]
        return "".join(choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"])

    def run(self, name, body):
        try:
            while not self.stop.is_set():
                text = self.text(body)
                assert text == self.undisturbed[name], (name, text)
                self.done[name] += 1
        except BaseException as error:  # noqa: BLE001 - told when the streams are stopped
            self.failures.append(error)

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        if self.failures:
            raise self.failures[0]


def post(server, key, name, source):
    return server.post(MODELS, {"name": name, "source": source}, key=key, port=server.admin_port)


def names(reply):
    assert reply.status == 200, reply.text
    return [model["id"] for model in reply.json["data"]]


def test_hostile_files_are_refused_while_streams_go_on(world):
    root = pathlib.Path(tempfile.mkdtemp(prefix="weir-hostile-"))
    cases = hostile.make_all(root, slow=world.full)
    server = Server(world.weir, {FAKE: "fake:step=4ms,token=20us", CHAT: world.models / CHAT}, 'kv_memory = "64MiB"',
                    front=f'models_root = "{root}"')
    try:
        key = (server.folder / ".weir/admin.key").read_text().strip()
        (executor, _), = [child for child in server.children() if "executor" in child[1]]
        pids = [server.process.pid, executor]
        streams = Streams(server)
        served = names(server.request("GET", "/v1/models"))
        before = [resident_kib(pid) for pid in pids]
        refused, seen = 0, {}
        for source, (_, code, words) in cases.items():
            reply = post(server, key, "hostile", source)
            assert reply.status == 400, (source, reply.status, reply.text)
            error = reply.json["error"]
            assert error["code"] == code and words in error["message"], (source, code, words, error)
            assert set(error) == {"message", "type", "param", "code"} and error["param"] == "source", error
            assert str(root) not in reply.text, error
            seen[code] = seen.get(code, 0) + 1
            refused += 1
        grown = [resident_kib(pid) - kib for pid, kib in zip(pids, before, strict=True)]
        assert names(server.request("GET", "/v1/models")) == served
        assert names(server.request("GET", MODELS, key=key, port=server.admin_port)) == served
        # The name that every one of them wanted is free, and good files are served under it and beside it.
        for name, source in (("hostile", "good"), ("gguf", "good.gguf")):
            reply = post(server, key, name, source)
            assert reply.status == 201 and reply.json["id"] == name, reply.text
            body = {"model": name, "prompt": "abc", "max_tokens": 5, "ignore_eos": True}
            reply = server.post("/v1/completions", body)
            assert reply.status == 200 and reply.json["usage"]["completion_tokens"] == 5, reply.text
        streams.end()
        assert server.process.poll() is None and server.children()[0][0] == executor, server.children()
        assert names(server.request("GET", "/v1/models")) == [*served, "hostile", "gguf"]
        assert post(server, key, "hostile", "good").json["error"]["code"] == "model_exists"
        assert all(streams.done.values()), streams.done
    finally:
        server.close()
        shutil.rmtree(root, ignore_errors=True)
    assert refused >= 60, refused
    figure("5.hostile_files", refused, typed=refused, **seen)
    figure("5.streams_beside_hostile_files", sum(streams.done.values()), equal=sum(streams.done.values()))
    figure("5.server_rss_growth_kib", grown[0], executor=grown[1])


def test_an_added_model_is_loaded_again_with_its_executor(world):
    root = pathlib.Path(tempfile.mkdtemp(prefix="weir-models-"))
    hostile.good_folder(root / "good")
    hostile.good_folder(root / "vanishing")
    server = Server(world.weir, {FAKE: "fake:step=1ms,token=1us"}, 'kv_memory = "64MiB"',
                    front=f'models_root = "{root}"')
    try:
        key = (server.folder / ".weir/admin.key").read_text().strip()
        for name in ("good", "vanishing"):
            assert post(server, key, name, name).status == 201
        body = {"prompt": "abc", "max_tokens": 5, "ignore_eos": True, "temperature": 0}
        before = server.post("/v1/completions", {"model": "good", **body}).json["choices"][0]["text"]
        shutil.rmtree(root / "vanishing")
        (executor, _), = [child for child in server.children() if "executor" in child[1]]
        os.kill(executor, signal.SIGKILL)
        wait_until("another executor", lambda: server.metrics()["weir_executor_restarts_total"] == 1
                   and server.request("GET", "/ready", key=None).status == 200)
        again = server.post("/v1/completions", {"model": "good", **body})
        assert again.status == 200 and again.json["choices"][0]["text"] == before, again.text
        # One whose files are gone takes nothing else with it.
        assert server.post("/v1/completions", {"model": "vanishing", **body}).status == 503
        assert server.post("/v1/completions", {"model": FAKE, **body}).status == 200
    finally:
        server.close()
        shutil.rmtree(root, ignore_errors=True)


def test_the_admin_listener_is_for_operators_only(world):
    server = world.fake
    key = (server.folder / ".weir/admin.key").read_text().strip()
    assert (server.folder / ".weir/admin.key").stat().st_mode & 0o777 == 0o600
    for other in (None, "weir-e2e-demo-key", key[:-1]):
        assert server.request("GET", MODELS, key=other, port=server.admin_port).status == 401
    assert server.request("GET", "/v1/models", key=key).status == 401
    assert server.request("GET", MODELS).status == 404, "nor is it on the API's port"
    reply = post(server, key, "x", "y")
    assert reply.status == 403 and "models_root" in reply.json["error"]["message"], reply.text


def test_inspect_says_what_a_model_is_or_what_is_wrong(world):
    root = pathlib.Path(tempfile.mkdtemp(prefix="weir-inspect-"))
    try:
        hostile.make_all(root)
        refused = 0
        for source, (_, code, words) in hostile.CASES.items():
            if code in (hostile.SOURCE, hostile.LARGE):
                continue
            done = weir(world, "inspect", str(root / source))
            assert done.returncode != 0 and done.stdout == "", (source, done)
            if "its memory" in words:
                assert "memory allocation" in done.stderr, (source, done)
            else:
                assert done.stderr.startswith("weir: ") and words in done.stderr and done.stderr.count("\n") == 1, (source, done)
            refused += 1
        for source in ("good", "good.gguf"):
            done = weir(world, "inspect", str(root / source))
            assert done.returncode == 0 and "llama" in done.stdout and "vocabulary    8" in done.stdout, done
        with open(root / "summary", "w+", encoding="utf-8") as summary:
            subprocess.run([world.weir, "inspect", root / "good"], stdout=summary, timeout=120, check=True)
            summary.seek(0)
            assert "llama" in summary.read(), "it may be sent into a file"
        # Limits that are there already are kept where they are narrower.
        limited = subprocess.run(["bash", "-c", 'ulimit -v 900000; exec "$0" inspect "$1"', world.weir, root / "good"],
                                 capture_output=True, text=True, timeout=120, check=False)
        assert limited.returncode == 0 and "llama" in limited.stdout, limited
        done = weir(world, "inspect", str(world.models / CHAT))
        assert done.returncode == 0 and "Q4_1" in done.stdout, done
    finally:
        shutil.rmtree(root, ignore_errors=True)
    figure("5.inspected_hostile_files", refused)
