"""docs/tenants.md as written, and what operators' commands do to a running server."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

from server import CHAT, FAKE, FAKE_SLOW, Server, clean_environment, wait_until


class Shell:
    """Commands as a user types them in the folder of a server, `weir` among them."""

    def __init__(self, world, server):
        import openai

        self.server = server
        # The python that a user would have installed the package into.
        packages = str(pathlib.Path(openai.__file__).resolve().parent.parent)
        self.environment = clean_environment() | {
            "PATH": f"{pathlib.Path(world.weir).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": packages,
            "WEIR_ADMIN_URL": f"http://127.0.0.1:{server.admin_port}"}

    def run(self, command, fails=False):
        command = command.replace("127.0.0.1:8000", f"127.0.0.1:{self.server.port}")
        command = re.sub(r"^python3", shlex.quote(sys.executable), command, flags=re.MULTILINE)
        done = subprocess.run(["bash", "-ec", command], cwd=self.server.folder, env=self.environment, capture_output=True,
                              text=True, timeout=120, check=False, stdin=subprocess.DEVNULL)
        assert (done.returncode != 0) == fails and "panicked" not in done.stderr, (command, done)
        return done.stderr if fails else done.stdout

    def json(self, command):
        return json.loads(self.run(f"{command} --json"))


def page_blocks(world):
    text = (world.root / "docs/tenants.md").read_text(encoding="utf-8")
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_page_works_as_written(world):
    server = Server(world.weir, {CHAT: "fake:step=1ms,token=20us"})
    try:
        shell = Shell(world, server)
        create, use, usage, suspend, bill = page_blocks(world)
        assert "acme" in shell.run(create)
        assert shell.run(use).strip()
        key = (server.folder / "acme.key").read_text().strip()
        assert re.fullmatch(r"weir_[a-z2-7]{16}_[a-z2-7]{52}", key), "the key is in the file"
        assert (server.folder / "acme.key").stat().st_mode & 0o777 == 0o600
        shown = shell.run(usage)
        assert CHAT in shown, shown
        refused = json.loads(last_json(shell.run(suspend)))
        assert refused["error"]["code"] == "forbidden" and "suspended" in refused["error"]["message"], refused
        shown = shell.run(bill)
        assert "valid" in shown and CHAT in shown and "starter" in shown, shown
        assert server.request("GET", "/v1/models", key=key).status == 200, "it is active again"
        assert shell.json("weir audit verify")["valid"]
    finally:
        server.close()


def last_json(text):
    """The JSON object that ends a text."""
    return text[text.rindex('{"error"'):]


def test_a_tenant_outlives_its_server_and_its_keys_can_be_taken_back(world):
    server = Server(world.weir, {FAKE: "fake:step=1ms,token=20us", FAKE_SLOW: "fake:step=50ms,token=20us"})
    try:
        shell = Shell(world, server)
        made = shell.json("weir tenant create acme weight=3 'models=[\"fake\"]' --role tenant_admin")
        key = made["key"]["key"]
        assert server.request("GET", "/v1/models", key=key).json["data"][0]["id"] == FAKE
        # What it may not know of reads as if it were not there.
        body = {"model": FAKE_SLOW, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        assert server.post("/v1/chat/completions", body, key=key).status == 404
        changed = shell.json("weir tenant set acme models= weight= running_max=4")
        assert changed["models"] is None and changed["overrides"] == {"running_max": 4}, changed
        assert server.post("/v1/chat/completions", body, key=key).status == 200
        assert "no such" not in shell.run("weir tenant show acme")
        assert "there is no tenant" in shell.run("weir tenant show nobody", fails=True).lower()
        assert "overrides.wieght" in shell.run("weir tenant set acme wieght=3", fails=True)
        # A key of its own making works until it is rotated without an overlap.
        second = server.request("POST", "/v1/keys", {"name": "second", "role": "member"}, key=key).json
        rotated = shell.json(f"weir key rotate acme {second['id']} --overlap 0s")
        assert server.request("GET", "/v1/models", key=second["key"]).status == 401
        assert server.request("GET", "/v1/models", key=rotated["key"]).status == 200
        # A stream by a key that is revoked is cut.
        long = body | {"max_tokens": 20000, "ignore_eos": True}
        connection, response = server.open_stream("/v1/chat/completions", long, key=rotated["key"])
        shell.run(f"weir key revoke acme {rotated['id']} --reason lost")
        assert b"Incorrect API key provided." in response.read()
        connection.close()
        wait_until("the last use to be noted", lambda: next(
            row for row in shell.json("weir key list acme") if row["id"] == made["key"]["id"])["last_used_us"])
        server.restart()
        assert server.request("GET", "/v1/models", key=key).status == 200
        assert server.request("GET", "/v1/models", key=rotated["key"]).status == 401
        kept = shell.json("weir tenant show acme")
        assert kept["overrides"] == {"running_max": 4} and kept["number"] == made["number"], kept
    finally:
        server.close()


def test_one_server_has_the_store_at_a_time(world):
    server = Server(world.weir, {FAKE: "fake"})
    try:
        done = subprocess.run([world.weir, "serve", "fake", "--port", "0", "--metrics", "off", "--admin", "off"],
                              cwd=server.folder, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False,
                              stdin=subprocess.DEVNULL)
        assert done.returncode == 1 and f"process {server.process.pid}" in done.stderr, done.stderr
        assert (server.folder / ".weir").stat().st_mode & 0o777 == 0o700
        assert (server.folder / ".weir/weir.db").stat().st_mode & 0o777 == 0o600
    finally:
        server.close()


def test_a_month_that_goes_on_is_not_closed(world):
    server = Server(world.weir, {FAKE: "fake"})
    try:
        shell = Shell(world, server)
        assert (server.folder / ".weir/ledger.key").stat().st_mode & 0o777 == 0o600
        assert shell.json("weir ledger months") == []
        assert "after its end" in shell.run("weir ledger close $(date -u +%Y-%m)", fails=True)
        assert "no closed month" in shell.run("weir ledger archive $(date -u +%Y-%m) --into rows.ndjson", fails=True)
        assert not (server.folder / "rows.ndjson").exists()
        assert shell.json("weir ledger verify")["months"] == 0
    finally:
        server.close()
