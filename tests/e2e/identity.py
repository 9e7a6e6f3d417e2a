"""Who is calling: tokens, addresses behind a proxy, files with keys that change, TLS, and public addresses."""

import base64
import hashlib
import http.client
import json
import os
import shutil
import ssl
import subprocess
import tempfile
import time

from server import FAKE, Server, clean_environment, free_port, wait_until

MODELS = {FAKE: "fake:step=1ms,token=1us"}
CHAT = {"model": FAKE, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}

# Ed25519 as RFC 8032 writes it down, slow and short: the tests bring no cryptography of their own.
P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P


def recovered(y):
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    return x if x % 2 == 0 else P - x


BASE_Y = 4 * pow(5, -1, P) % P
BASE = (recovered(BASE_Y), BASE_Y)


def plus(a, b):
    both = D * a[0] * b[0] * a[1] * b[1] % P
    x, y = a[0] * b[1] + a[1] * b[0], a[1] * b[1] + a[0] * b[0]
    return (x * pow(1 + both, -1, P) % P, y * pow(1 - both, -1, P) % P)


def times(count, point):
    result = (0, 1)
    while count:
        result = plus(result, point) if count & 1 else result
        point, count = plus(point, point), count >> 1
    return result


def packed(point):
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


class Issuer:
    name = "https://id.example"

    def __init__(self, seed):
        digest = hashlib.sha512(seed).digest()
        self.scalar = int.from_bytes(digest[:32], "little") & (2**254 - 8) | 2**254
        self.prefix, self.public = digest[32:], packed(times(self.scalar, BASE))

    def keys(self):
        return {"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": text(self.public)}]}

    def token(self, **claims):
        now = int(time.time())
        all_claims = {"iss": self.name, "aud": "weir", "sub": "u", "tenant": "demo", "nbf": now - 5, "exp": now + 600}
        parts = [text(json.dumps(part).encode()) for part in ({"alg": "EdDSA", "kid": "k"}, all_claims | claims)]
        signed = ".".join(parts)
        return f"{signed}.{text(self.sign(signed.encode()))}"

    def sign(self, message):
        def hashed(*pieces):
            return int.from_bytes(hashlib.sha512(b"".join(pieces)).digest(), "little") % ORDER

        nonce = hashed(self.prefix, message)
        point = packed(times(nonce, BASE))
        answer = (nonce + hashed(point, self.public, message) * self.scalar) % ORDER
        return point + answer.to_bytes(32, "little")


def text(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def status(server, key, path="/v1/models", headers=None, port=None):
    return server.request("GET", path, key=key, headers=headers, port=port).status


def test_tokens_of_an_issuer_open_what_they_claim(world):
    issuer, stranger = Issuer(b"issuer"), Issuer(b"stranger")
    folder = tempfile.mkdtemp(prefix="weir-e2e-jwt-")
    keys = os.path.join(folder, "keys.json")
    with open(keys, "w", encoding="utf-8") as file:
        json.dump(issuer.keys(), file)
    auth = "\n".join(["[[auth.jwt]]", f'issuer = "{issuer.name}"', 'audiences = ["weir"]', f'jwks_file = "{keys}"',
                      'role_claim = "role"', 'roles = { ops = "operator", ear = "auditor" }', 'scopes_claim = "scope"'])
    server = Server(world.weir, MODELS, engine=f"\n{auth}")
    try:
        good = {"scope": "openid inference models:read"}
        assert server.post("/v1/chat/completions", CHAT, key=issuer.token(**good)).status == 200
        assert status(server, issuer.token(**good)) == 200
        assert status(server, issuer.token(scope="inference")) == 403
        refused = {server.request("GET", "/v1/models", key=key).text for key in (
            stranger.token(**good), issuer.token(**good, tenant="nobody"),
            issuer.token(**good, exp=int(time.time()) - 60), issuer.token(**good, aud="other"),
            issuer.token(**good, role="ops", tenant="operator"), "weir-unknown",
            issuer.token(**good)[:-4] + "AAAA")}
        assert len(refused) == 1 and "invalid_api_key" in next(iter(refused)), refused
        devices = "/admin/v1/devices"
        scope = "devices:read devices:write"
        ops, ear = (issuer.token(role=role, tenant="operator", scope=scope) for role in ("ops", "ear"))
        for token, read, write in ((ops, 200, 404), (ear, 200, 403), (issuer.token(**good), 401, 401)):
            assert status(server, token, devices, port=server.admin_port) == read
            drained = server.request("POST", f"{devices}/none/drain", {}, key=token, port=server.admin_port)
            assert drained.status == write, drained.text
        # The issuer takes its key back.
        with open(f"{keys}.new", "w", encoding="utf-8") as file:
            json.dump(stranger.keys(), file)
        os.rename(f"{keys}.new", keys)
        wait_until("the new keys", lambda: status(server, stranger.token(**good)) == 200)
        assert status(server, issuer.token(**good)) == 401
    finally:
        server.close()
        shutil.rmtree(folder)


def test_a_tenants_addresses_are_those_behind_the_proxy(world):
    listed = 'ip_allow = ["192.0.2.0/24"]\ndomain = "demo.example"'
    server = Server(world.weir, MODELS, front='trusted_proxies = ["127.0.0.0/8"]', plans={"demo": listed})
    bare = Server(world.weir, MODELS, plans={"demo": listed})
    try:
        demo, other = "weir-e2e-demo-key", "weir-e2e-other-key"
        near, far = {"X-Forwarded-For": "192.0.2.7"}, {"X-Forwarded-For": "192.0.2.7, 198.51.100.1"}
        assert (status(server, demo, headers=near), status(server, demo, headers=far)) == (200, 403)
        assert status(server, demo) == 403
        assert status(bare, demo, headers=near) == 403, "anyone can send a header"
        assert status(server, other, headers=far | {"X-Weir-Tenant": "other"}) == 200
        for named in ({"X-Weir-Tenant": "demo"}, {"X-Weir-Tenant": "nobody"}, {"X-Forwarded-Host": "demo.example"}):
            assert status(server, other, headers=near | named) == 403, named
            assert status(bare, other, headers=near | named) == 200, named
    finally:
        server.close()
        bare.close()


def test_a_file_with_another_key_is_read_while_requests_go_on(world):
    server = Server(world.weir, MODELS)
    try:
        path = server.folder / ".weir/admin.key"
        old, new = path.read_text().strip(), "weir-another-operators-key"
        beside = path.with_name("new.key")
        beside.write_text(new)
        beside.chmod(0o600)
        beside.rename(path)
        devices = "/admin/v1/devices"
        wait_until("the new key", lambda: status(server, new, devices, port=server.admin_port) == 200)
        assert status(server, old, devices, port=server.admin_port) == 401
        assert status(server, "weir-e2e-demo-key") == 200
        # What cannot be used is nobody's key, others go on, and it is tried again.
        path.chmod(0o644)
        path.write_text("weir-exposed")
        wait_until("a warning", lambda: "trying again" in server.output())
        for key in (new, "weir-exposed"):
            assert status(server, key, devices, port=server.admin_port) == 401, key
        assert status(server, "weir-e2e-demo-key") == 200
        path.chmod(0o600)
        wait_until("the key", lambda: status(server, "weir-exposed", devices, port=server.admin_port) == 200)
        assert (server.folder / ".weir/pepper").stat().st_mode & 0o777 == 0o600
    finally:
        server.close()


def secure(server, certificate, path="/health"):
    """A request over TLS whose server must show this certificate; it may not be anyone's name."""
    context = ssl.create_default_context(cafile=certificate)
    connection = http.client.HTTPSConnection("localhost", server.port, context=context, timeout=60)
    connection.request("GET", path, headers={"Authorization": "Bearer weir-e2e-demo-key"})
    return connection, connection.getresponse()


def test_tls_shows_the_certificate_that_the_files_hold(world):
    folder = tempfile.mkdtemp(prefix="weir-e2e-tls-")
    fixtures = world.root / "fixtures" / "tls"
    pairs = {name: [fixtures / f"{name}.pem", fixtures / f"{name}.key"] for name in ("one", "two")}

    def show(name):
        for source, target in zip(pairs[name], ("cert.pem", "key.pem"), strict=True):
            shutil.copy(source, os.path.join(folder, "new"))
            os.rename(os.path.join(folder, "new"), os.path.join(folder, target))

    show("one")
    tls = f'tls.certificate = "{folder}/cert.pem"\ntls.key = "{folder}/key.pem"'
    server = Server(world.weir, MODELS, front=tls, ready=False)
    try:
        def shown(name, path):
            try:
                return secure(server, pairs[name][0], path)[1].status == 200
            except (OSError, http.client.HTTPException):
                return False

        wait_until("an answer over TLS", lambda: shown("one", "/ready"))
        kept, answer = secure(server, pairs["one"][0], "/v1/models")
        assert answer.status == 200 and json.loads(answer.read())["data"][0]["id"] == FAKE
        assert not shown("two", "/health")
        show("two")
        wait_until("the other certificate", lambda: shown("two", "/health"))
        assert not shown("one", "/health")
        kept.request("GET", "/health")
        assert kept.getresponse().status == 200, "a connection that was open goes on"
        kept.close()
        # The operators' listener is on this machine: no certificate is needed to reach it.
        key = (server.folder / ".weir/admin.key").read_text().strip()
        assert status(server, key, "/admin/v1/devices", port=server.admin_port) == 200
    finally:
        server.close()
        shutil.rmtree(folder)


def test_nobody_listens_to_a_network_in_the_clear_by_accident(world):
    with tempfile.TemporaryDirectory() as folder:
        command = [world.weir, "serve", "fake", "--port", str(free_port()), "--metrics", "off"]
        for flags in (["--host", "0.0.0.0", "--admin", "off"], ["--host", "::", "--admin", "off"],
                      ["--admin", f"0.0.0.0:{free_port()}"]):
            done = subprocess.run([*command, *flags], cwd=folder, capture_output=True, text=True, timeout=60,
                                  env=clean_environment())
            assert done.returncode == 1 and "--insecure-public" in done.stderr, (flags, done)
        for cover in (["--insecure-public"], ["--trusted-proxies", "10.0.0.0/8"]):
            port = free_port()
            flags = ["--host", "0.0.0.0", "--port", str(port), "--metrics", "off", "--admin", "off", *cover]
            running = subprocess.Popen([world.weir, "serve", "fake", *flags], cwd=folder, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL, env=clean_environment())
            try:
                wait_until("an answer", lambda at=port: answers(at))
            finally:
                running.terminate()
                running.wait(60)


def answers(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
