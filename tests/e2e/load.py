"""`weir bench serve` beside the server's own account: what the client counted is what the server did."""

import itertools
import json
import pathlib
import subprocess
import tempfile

from server import FAKE, FAKE_SLOW, TENANTS, clean_environment, figure


# A seed that this server has seen has its prompts in the prefix cache.
SEEDS = itertools.count(1000)


def bench(world, *words, tenants=("demo",), model=FAKE):
    """Run it on the fake model; its results, its output, and how much the server's metrics grew."""
    with tempfile.TemporaryDirectory(prefix="weir-load-") as folder:
        output = pathlib.Path(folder, "result.json")
        keys = []
        for tenant in tenants:
            key = pathlib.Path(folder, tenant.split(":")[0])
            key.touch(mode=0o600)
            key.write_text(TENANTS[key.name][0] + "\n")
            keys += ["--tenant", f"{tenant}={key}"]
        trace = pathlib.Path(folder, "trace.jsonl")
        trace.write_text("".join(json.dumps(line) + "\n" for line in TRACE))
        before = world.fake.metrics()
        # Other cases and other people may be at work on this machine: it is not this case's matter.
        done = subprocess.run(
            [world.weir, "bench", "serve", "--url", f"http://127.0.0.1:{world.fake.port}", "--model", model, "--vocab", "250",
             "--output", output, "--plot", output.with_suffix(".svg"), "--detailed", "--warmup", "0", "--allow-busy",
             *([] if "--seed" in words else ["--seed", str(next(SEEDS))]), *keys,
             *(str(word).replace("TRACE", str(trace)) for word in words)],
            cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        after = world.fake.metrics()
        levels = [json.loads(line) for line in output.read_text().splitlines()]
        chart = output.with_suffix(".svg").read_text()
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    return levels, chart, done.stdout, grown


TRACE = [{"at": 0.01 * i, "prompt_tokens": 8 + i, "output_tokens": 1 + i % 4, "tenant": ("demo", "other")[i % 2]}
         for i in range(40)]


def total(levels, field):
    return sum(level[field] for level in levels)


def assert_adds_up(levels, grown):
    """The client's totals are the server's, and its lists are its totals."""
    assert grown['weir_requests_total{outcome="completed"}'] == total(levels, "completed")
    assert grown['weir_tokens_total{kind="completion"}'] == total(levels, "total_output_tokens")
    assert grown['weir_tokens_total{kind="prompt"}'] == total(levels, "total_input_tokens")
    assert grown['weir_tokens_total{kind="cached"}'] == total(levels, "cached_tokens") == 0, "prompts repeat"
    for level in levels:
        assert level["num_prompts"] == level["completed"] + level["failed"] == len(level["errors"])
        assert sum(level["input_lens"]) == level["total_input_tokens"]
        assert sum(level["output_lens"]) == level["total_output_tokens"]
        # A gap for each token after those of the first delta.
        for gaps, length in zip(level["itls"], level["output_lens"]):
            assert len(gaps) < max(1, length), (gaps, length)
    # The client's clock starts before the server's and ends after it.
    seen = sum(sum(level["ttfts"]) for level in levels)
    assert seen >= grown["weir_time_to_first_token_seconds_sum"], (seen, grown["weir_time_to_first_token_seconds_sum"])


def test_a_closed_loop_counts_what_the_server_counts(world):
    levels, chart, out, grown = bench(world, "--concurrency", "1,4", "--requests", world.size(20, 400), "--prompt-tokens",
                                      "8:40", "--output-tokens", "4:12")
    assert [level["max_concurrency"] for level in levels] == [1, 4]
    assert total(levels, "failed") == 0
    assert_adds_up(levels, grown)
    assert chart.startswith("<svg ") and "TTFT p99" in chart
    for level in levels:
        place = f"c{level['max_concurrency']}"
        assert f"figure=requests_per_s_{place} value={level['request_throughput']:.3f}" in out, out
        for who in ("server", "executor", "client"):
            assert level[f"{who}_us_per_request"] is not None, who
            if world.full:  # fewer requests are over within a tick or two of the kernel's clock
                figure(f"7.e2e_{who}_us_per_request_{place}", round(level[f"{who}_us_per_request"]))


def test_an_open_loop_of_two_tenants_adds_up(world):
    requests = world.size(120, 2000)
    (level,), chart, _, grown = bench(world, "--request-rate", 150, "--requests", requests, "--prompt-tokens", 16,
                                      "--output-tokens", 8, "--goodput", "e2el:60000", tenants=("demo:3", "other"))
    assert (level["completed"], level["failed"], level["unsent"]) == (requests, 0, 0)
    assert_adds_up([level], grown)
    demo, other = level["tenants"]
    assert (demo["name"], other["name"]) == ("demo", "other")
    assert demo["completed"] + other["completed"] == requests and demo["completed"] > other["completed"]
    # All are within a minute, so goodput is throughput.
    assert abs(level["request_goodput"] - level["request_throughput"]) < 1e-6 * level["request_throughput"]
    assert "offered load, requests/s" in chart
    figure("7.e2e_late_ms_max", round(level["late_ms_max"], 2), void=not level["clean"])


def test_the_same_seed_sends_the_same_load(world):
    def load(seed):
        # The slow model takes longer than all arrivals: an open loop does not wait for it.
        (level,), _, _, _ = bench(world, "--request-rate", 2000, "--requests", 40, "--prompt-tokens", "8:40", "--seed", seed,
                                  "--output-tokens", "1:3", model=FAKE_SLOW)
        assert level["failed"] == 0 and level["max_concurrent_requests"] > 20, level
        return level["input_lens"], level["output_lens"], level["start_times"]

    assert load(7) == load(7)
    assert load(7) != load(8)


def test_a_trace_is_followed(world):
    (level,), _, _, grown = bench(world, "--trace", "TRACE", tenants=("demo", "other"))
    assert_adds_up([level], grown)
    assert level["input_lens"] == [line["prompt_tokens"] for line in TRACE]
    assert level["output_lens"] == [line["output_tokens"] for line in TRACE]
    assert [round(time, 6) for time in level["start_times"]] == [round(line["at"], 6) for line in TRACE]
    assert [tenant["completed"] for tenant in level["tenants"]] == [20, 20]


def test_chats_and_whole_answers_add_up(world):
    for words in (("--kind", "chat"), ("--no-stream",), ("--no-delta-counts",)):
        (level,), _, _, grown = bench(world, "--concurrency", 2, "--requests", 10, "--prompt-tokens", 8, "--output-tokens", 4,
                                      *words)
        assert (level["completed"], level["failed"], level["total_output_tokens"]) == (10, 0, 40), words
        assert grown['weir_tokens_total{kind="completion"}'] == 40, words
        assert grown['weir_tokens_total{kind="prompt"}'] == level["total_input_tokens"], words


def test_embeddings_add_up(world):
    (level,), chart, _, grown = bench(world, "--kind", "embeddings", "--inputs", 4, "--concurrency", 2, "--requests", 10,
                                      "--prompt-tokens", 16)
    assert (level["completed"], level["failed"], level["total_input_tokens"]) == (10, 0, 640)
    assert grown['weir_tokens_total{kind="prompt"}'] == 640
    assert "embeddings/s" in chart


def test_a_level_beside_other_load_fails_unless_it_is_allowed(world):
    with tempfile.TemporaryDirectory(prefix="weir-load-") as folder:
        key = pathlib.Path(folder, "demo")
        key.touch(mode=0o600)
        key.write_text(TENANTS["demo"][0])
        command = [world.weir, "bench", "serve", "--url", f"http://127.0.0.1:{world.fake.port}", "--model", FAKE, "--tenant",
                   f"demo={key}", "--concurrency", "1", "--requests", "60", "--output-tokens", "4", "--vocab", "250"]

        # The other load is a loop of ours, on one core, from before the level to after it.
        with subprocess.Popen(["sh", "-c", "while :; do :; done"]) as other:
            try:
                runs = [subprocess.run([*command, *words], cwd=folder, env=clean_environment(), capture_output=True,
                                       text=True, timeout=300, check=False) for words in ([], ["--allow-busy"])]
            finally:
                other.kill()
    refused, allowed = runs
    assert refused.returncode == 1 and "are void" in refused.stderr, refused
    assert allowed.returncode == 0, allowed
    for run in runs:
        assert "void: other load took" in run.stdout, run.stdout
        assert all(line.endswith("void=true") for line in run.stdout.splitlines()
                   if line.startswith("figure=") and "rss_mib" not in line), run.stdout
