#!/usr/bin/env python3
"""The end-to-end cases: a real server, real models, the official `openai` package. Ends with `N passed, N failed`.

Each function named `test_*` in a module below is a case and states a fact; it is given the world: `real` (both default
models), `fake` (fixed step costs, no weights), and the fixtures. Servers start when the first case asks for them.

Cases that prove something by numbers (thousands of connections, kills or requests) run small in `make test`, and in full with
`--full`, which is `make prove`; each prints its `figure=NAME value=V` lines either way.
"""

import argparse
import functools
import importlib
import json
import pathlib
import sys
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

import server as servers  # noqa: E402 - after the path it is found by

MODULES = ["chat", "completions", "embeddings", "refusals", "sharing", "operations", "executors", "devices", "first_start",
           "hub", "fetching", "toolkit", "mutations", "load", "connections", "identity", "storms", "drains", "files", "gpu",
           "gpu_bench", "why", "plans", "quotas", "limits", "tenants", "replicas", "shares", "simulate", "chaos"]


class World:
    def __init__(self, weir, models, full=False):
        self.weir, self.models, self.full, self.started, self.root = weir, models, full, [], ROOT

    def size(self, small, full):
        """How much of something a proof does: enough to fail when it is broken, or all that its figure speaks of."""
        return full if self.full else small

    def _start(self, models, engine=""):
        server = servers.Server(self.weir, models, engine)
        self.started.append(server)
        return server

    @functools.cached_property
    def real(self):
        return self._start({name: self.models / name for name in (servers.CHAT, servers.EMBED)})

    @functools.cached_property
    def fake(self):
        # The step outlasts what a client needs to send its next request, so that requests do meet in a batch.
        return self._start({servers.FAKE: "fake:step=4ms,token=20us", servers.FAKE_SLOW: "fake:step=50ms,token=20us"},
                           "rows_max = 64")

    @functools.cache
    def fixture(self, name):
        return json.loads((ROOT / "fixtures" / name).read_text(encoding="utf-8"))

    def close(self):
        for server in self.started:
            server.close()


def cases(wanted):
    for name in MODULES:
        module = importlib.import_module(name)
        for title, function in list(vars(module).items()):
            if (title.startswith("test_") and callable(function)
                    and (not wanted or any(word in f"{name}.{title}" for word in wanted))):
                yield f"{name}.{title.removeprefix('test_')}", function


def told(error):
    """The error and our own lines that led to it; what happened inside the client's packages says little."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(HERE))]
    return "".join(traceback.format_list(frames)) + "".join(traceback.format_exception_only(error))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weir", type=pathlib.Path, default=ROOT / "target/release/weir")
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / ".weir/models")
    parser.add_argument("--full", action="store_true", help="run the proofs at the size of their figures")
    parser.add_argument("only", nargs="*", help="run the cases whose name holds one of these")
    options = parser.parse_args()
    world = World(options.weir.resolve(), options.models.resolve(), options.full)
    passed, failed = 0, []
    try:
        for title, case in cases(options.only):
            started = time.monotonic()
            try:
                case(world)
                passed += 1
                verdict = "ok"
            except Exception as error:  # noqa: BLE001 - a case may fail in any way
                failed.append(title)
                verdict = "FAILED\n" + told(error)
            print(f"{title} ... {time.monotonic() - started:.2f} s {verdict}", flush=True)
    finally:
        try:
            world.close()
        except AssertionError as error:
            failed.append("a server's end")
            print(f"{error}\n{failed[-1]} FAILED")
    for title in failed:
        print(f"failed: {title}")
    print(f"{passed} passed, {len(failed)} failed")
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main()
