"""A PostgreSQL of our own: a folder and a port of its own, an unprivileged user, gone when the case is over.

scripts/postgres.py says where its programs are, and fetches them where there are none: a case that needs one fails without,
and is never left out.
"""

import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile

from server import clean_environment, free_port, wait_until

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent / "scripts"))

import postgres  # noqa: E402 - after the path it is found by


class Postgres:
    """Started on construction; `close` stops it and removes its folder."""

    def __init__(self):
        programs = pathlib.Path(postgres.available())
        self.folder, self.port = pathlib.Path(tempfile.mkdtemp(prefix="weir-e2e-postgres-")), free_port()
        # PostgreSQL refuses to run as root.
        user = unprivileged()
        self.options = {"cwd": self.folder, "env": clean_environment() | {"LC_ALL": "C"}, "stdin": subprocess.DEVNULL}
        if user is not None:
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self.options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        data = self.folder / "data"
        made = subprocess.run([programs / "initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C",
                               "--no-sync", "-D", data], capture_output=True, text=True, check=False, **self.options)
        assert made.returncode == 0, made.stderr
        self.log = open(self.folder / "log", "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [programs / "postgres", "-D", data, "-p", str(self.port), "-c", "listen_addresses=127.0.0.1",
             "-c", f"unix_socket_directories={self.folder}", "-c", "shared_buffers=32MB"],
            stdout=self.log, stderr=subprocess.STDOUT, **self.options)
        wait_until("PostgreSQL", self._up)

    def _up(self):
        said = self.said()
        assert self.process.poll() is None, f"PostgreSQL ended with {self.process.returncode}:\n{said}"
        return "ready to accept connections" in said

    def said(self):
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    @property
    def url(self):
        return f"postgres://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable"

    def close(self):
        # Fast: whoever is still connected is sent away.
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=60)
        finally:
            self.process.kill()
            self.process.wait()
            self.log.close()
            shutil.rmtree(self.folder, ignore_errors=True)


def unprivileged():
    """Whom it runs as where we are root; its programs ask for the name of their user, so a number alone will not do."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AssertionError("/etc/passwd has neither a user `postgres` nor `nobody`")
