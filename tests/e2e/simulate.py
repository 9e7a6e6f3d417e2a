"""Traces of a running server, and `weir simulate` on them: what is recorded is what was asked, what is fitted is what steps cost, and
a question has one answer."""

import json
import pathlib
import random
import re
import stat
import subprocess
import tempfile

from server import FAKE, TENANTS, Server, clean_environment, together, wait_until

# What steps of the recorded server cost.
STEP_MS, TOKEN_US = 2, 50
SECRET = "zanzibar"
WORDS = {"kind", "format", "weir", "devices", "tenants", "queue_len_max", "name", "step_latency_max", "weight", "running_max",
         "kv_blocks_floor", "kv_blocks_ceiling", "at", "device", "model", "blocks", "rows_max", "tokens_max", "context_len_max",
         "tenant", "prompt_len", "new_tokens_max", "drawn", "lens", "cached_tokens", "end", "ttft", "took", "device_time", "decode",
         "prefill", "embed", "wall", "lines", "bytes_max", "locality_quantum", "priority_ceiling", "cache_blocks_floor",
         "cache_blocks_ceiling", "ttft_target", "itl_target", "pool", "pool_only", "device_time_per_hour", "device_time_per_day",
         "device_time_per_month"}


def weir(world, *words, folder, fails=False):
    done = subprocess.run([world.weir, "simulate", *map(str, words)], cwd=folder, env=clean_environment(), capture_output=True,
                          text=True, timeout=300, check=False)
    assert (done.returncode != 0) == fails, (words, done.returncode, done.stdout, done.stderr)
    return done.stderr if fails else done.stdout


def ask(server, n):
    """One of the load's requests: texts of two tenants, some of which share a beginning, of one choice or two, and a list."""
    rng = random.Random(n)
    key = TENANTS[("demo", "other")[n % 2]][0]
    if n % 7 == 6:
        inputs = [f"{SECRET} {n} " + "e" * rng.randrange(200) for _ in range(rng.randrange(1, 5))]
        reply = server.post("/v1/embeddings", {"model": FAKE, "input": inputs}, key=key)
    else:
        prompt = f"{SECRET} is what all begin with, and then comes one of {n % 3}. " * 3 + f"{n} " + "x" * rng.randrange(400)
        body = {"model": FAKE, "prompt": prompt, "max_tokens": rng.randrange(1, 24), "ignore_eos": True, "n": 1 + (n % 5 == 0)}
        reply = server.post("/v1/completions", body, key=key)
    assert reply.status == 200, (reply.status, reply.body)
    return reply.json


def recorded(world):
    """The trace of a server that was asked 120 requests, and their answers; made once."""
    if not hasattr(world, "trace"):
        front = 'record = "trace.ndjson"'
        server = Server(world.weir, {FAKE: f"fake:step={STEP_MS}ms,token={TOKEN_US}us"}, "rows_max = 16", front)
        path = server.folder / "trace.ndjson"
        answers = together(lambda worker: [ask(server, n) for n in range(worker, 120, 6)], list(range(6)))
        # A stream whose client goes away, and a request that is refused.
        connection, response = server.open_stream("/v1/completions", {"model": FAKE, "prompt": SECRET, "max_tokens": 20000,
                                                                      "ignore_eos": True})
        response.read1(10)
        response.close()
        connection.close()
        written = wait_until("the cancelled request", lambda: [
            line for line in path.read_text().splitlines() if '"cancelled"' in line] and path.read_text())
        metrics = server.metrics()
        mode = stat.S_IMODE(path.stat().st_mode)
        server.close()
        world.trace = (written, [answer for worker in answers for answer in worker], metrics, mode)
        folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-simulate-"))
        world.trace_folder = folder
        (folder / "trace.ndjson").write_text(written)
    return world.trace


def lines(world, kind):
    return [line for line in map(json.loads, recorded(world)[0].splitlines()) if line["kind"] == kind]


def test_a_trace_holds_what_was_asked_and_no_text(world):
    written, answers, metrics, mode = recorded(world)
    assert mode == 0o600, oct(mode)
    texts = [answer for answer in answers if "choices" in answer]
    lists = [answer for answer in answers if "data" in answer]
    ended = [line for line in lines(world, "request") if line["end"] == "finished"]
    got = sorted(line["prompt_len"] for line in ended if "drawn" in line)
    assert got == sorted(answer["usage"]["prompt_tokens"] for answer in texts)
    drawn = sorted(sum(line["drawn"]) for line in ended if "drawn" in line)
    assert drawn == sorted(answer["usage"]["completion_tokens"] for answer in texts)
    assert sorted(sum(line["lens"]) for line in ended if "lens" in line) == sorted(a["usage"]["prompt_tokens"] for a in lists)
    charged = sum(line["device_time"] for line in lines(world, "request"))
    steps = sum(line["device_time"] for line in lines(world, "step"))
    assert 0 < charged <= steps, (charged, steps)
    assert metrics["weir_trace_lines_dropped_total"] == 0
    assert metrics["weir_trace_lines_total"] >= len(written.splitlines())
    # Texts that began alike have a first run of blocks in common.
    firsts = [line["blocks"][0][0] for line in ended if line.get("blocks")]
    assert 2 <= len(set(firsts)) < len(firsts), firsts
    # No prompt, no answer, no ids: every word is one of the format's, and every other value is a number.
    assert SECRET not in written
    for answer in texts:
        for choice in answer["choices"]:
            assert len(choice["text"]) < 4 or choice["text"] not in written
    names = {FAKE, "cpu:0", *TENANTS}
    for line in written.splitlines():
        for word in re.findall(r'"([^"]*)"(?=:)', line):
            assert word in WORDS, word
        for value in re.findall(r':"([^"]*)"', line):
            assert value in names | {"header", "model", "request", "step", "dropped", "end", "finished", "cancelled", "refused",
                                     "failed"} or re.fullmatch(r"\d+\.\d+\.\d+.*", value), value
        # The longest list is of blocks, choices or inputs, never of a text's length.
        for part in re.findall(r'"(?:drawn|lens)":\[([^]]*)\]', line):
            assert part.count(",") < 8, line


def test_a_fit_finds_what_steps_cost(world):
    recorded(world)
    out = weir(world, "fit", "trace.ndjson", "--out", "cost.json", folder=world.trace_folder)
    model = json.loads((world.trace_folder / "cost.json").read_text())["models"][0]
    assert abs(model["step_ns"] - STEP_MS * 1e6) < 0.03 * STEP_MS * 1e6, model
    assert abs(model["token_ns"] - TOKEN_US * 1e3) < 0.03 * TOKEN_US * 1e3, model
    error = float(re.search(r"figure=fit\.fake\.error_p50 value=([0-9.]+)", out)[1])
    assert error < 0.02, out
    # What was fitted is what the simulation takes.
    weir(world, "--trace", "trace.ndjson", "--cost", "cost.json", folder=world.trace_folder)


def simulated(world, *words):
    recorded(world)
    out = weir(world, "--trace", "trace.ndjson", "--json", "answer.json", *words, folder=world.trace_folder)
    return out, json.loads((world.trace_folder / "answer.json").read_text())


def test_a_recorded_load_is_played_again(world):
    out, document = simulated(world)
    answer = document["answer"]
    for tenant, measured in zip(answer["tenants"], answer["measured"]["tenants"], strict=True):
        for field in ("name", "asked", "refused", "finished", "prompt_tokens"):
            assert tenant[field] == measured[field], (field, tenant, measured)
        if not tenant["cancelled"]:
            assert tenant["drawn_tokens"] == measured["drawn_tokens"]
        assert tenant["cached_tokens"] > 0 and tenant["device_seconds"] > 0
    assert "as measured while it was recorded" in out
    again, document_again = simulated(world)
    assert (out, document) == (again, document_again), "the same question has the same answer"


def test_more_load_and_more_devices_are_asked_for_by_name(world):
    asked = {tenant["name"]: tenant["asked"] for tenant in simulated(world)[1]["answer"]["tenants"]}
    doubled = simulated(world, "--scale", "demo=2", "--devices", 2, "--weight", "other=3")[1]["answer"]
    assert {t["name"]: t["asked"] for t in doubled["tenants"]} == {"demo": 2 * asked["demo"], "other": asked["other"]}
    assert {t["name"]: t["weight"] for t in doubled["tenants"]} == {"demo": 1, "other": 3}
    assert len(doubled["device"]) == 2 and doubled["measured"] is None
    charts = world.trace_folder / "charts"
    simulated(world, "--plots", "charts")
    assert {chart.name for chart in charts.iterdir()} == {"service.svg", "lag.svg", "ttft.svg", "utilisation.svg"}
    assert all(chart.read_text().startswith("<svg ") for chart in charts.iterdir())


def test_the_least_number_of_devices_is_found(world):
    recorded(world)
    words = ("--workload", "steady", "--devices", 2, "--requests", 400, "--ttft-p99", "2s", "--itl-p99", "200ms", "--json", "f.json")
    out = weir(world, *words, "--find-devices", folder=world.trace_folder)
    document = json.loads((world.trace_folder / "f.json").read_text())
    tries = document["tries"]
    assert [attempt["meets"] for attempt in tries] == sorted(attempt["meets"] for attempt in tries), tries
    best = document["answer"]["devices"]
    assert best == next(attempt["devices"] for attempt in tries if attempt["meets"])
    assert out.startswith("devices") and f"on {best} device" in out
    # Targets that cannot be met are an error that says so.
    error = weir(world, "--workload", "steady", "--requests", 50, "--itl-p99", "1us", "--find-devices", folder=world.trace_folder,
                 fails=True)
    assert "64 devices" in error, error
    error = weir(world, "--workload", "steady", "--requests", 50, "--itl-p99", "1us", folder=world.trace_folder, fails=True)
    assert "missed" in error, error


def test_what_cannot_be_simulated_is_named(world):
    recorded(world)
    folder = world.trace_folder
    first = recorded(world)[0].splitlines(keepends=True)
    (folder / "broken.ndjson").write_text("".join(first[:5]) + "nonsense\n" + first[5])
    (folder / "empty.ndjson").write_text("")
    for words, parts in [
        (["--workload", "nothing"], ["`nothing`", "noisy-neighbour", "zipf-1000"]),
        (["--trace", "broken.ndjson"], ["broken.ndjson, line 6", "expected"]),
        (["--trace", "empty.ndjson"], ["empty.ndjson", "empty"]),
        (["--trace", "missing.ndjson"], ["missing.ndjson"]),
        (["--trace", "trace.ndjson", "--scale", "nobody=2"], ["`nobody`", "demo"]),
        (["--trace", "trace.ndjson", "--cost", "trace.ndjson"], ["trace.ndjson"]),
        (["--workload", "steady", "--cost", "h100"], ["h100", "h200-llama8b"]),
        (["fit", "broken.ndjson"], ["line 6"]),
    ]:
        error = weir(world, *words, folder=folder, fails=True)
        assert "panicked" not in error, error
        for part in parts:
            assert part in error, (part, error)


def test_a_trace_ends_at_its_size_and_serving_goes_on(world):
    server = Server(world.weir, {FAKE: "fake:step=1ms,token=0us"}, "", 'record = "t"\nrecord_bytes_max = "4KiB"')
    try:
        for n in range(20):
            ask(server, 7 * n)
        text = wait_until("the last line", lambda: (text := (server.folder / "t").read_text()).endswith('4096}\n') and text)
        assert len(text) <= 4096
        assert text.splitlines()[-1] == '{"kind":"end","bytes_max":4096}', text[-200:]
        # A second server does not write over the trace of the first.
        done = subprocess.run([world.weir, "serve", "fake", "--record", "t", "--port", "0", "--metrics", "off", "--admin", "off",
                               "--database", "sqlite:second.db"],
                              cwd=server.folder, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1 and "exists" in done.stderr, done.stderr
        assert (server.folder / "t").read_text() == text
    finally:
        server.close()
