"""What an operator sees: probes, metrics, the process list, the commands beside `serve`, and plain words at failures."""

import os
import pathlib
import socket
import subprocess
import tempfile

from server import CHAT, EMBED, FAKE, clean_environment, free_port


def weir(world, *arguments, cwd=None, environment=None, stdin=None):
    return subprocess.run([world.weir, *arguments], capture_output=True, text=True, timeout=120, check=False,
                          cwd=cwd or tempfile.gettempdir(), env=clean_environment() | (environment or {}), input=stdin,
                          **({} if stdin is not None else {"stdin": subprocess.DEVNULL}))


def test_probes_need_no_key(world):
    for path in ("/health", "/ready"):
        assert world.real.request("GET", path, key=None).status == 200, path


def test_version_and_openapi(world):
    assert world.real.request("GET", "/version").json["version"]
    described = world.real.request("GET", "/openapi.json").json
    assert described["openapi"].startswith("3.")
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/health", "/ready"):
        assert path in described["paths"], path


def test_models_are_listed(world):
    models = world.real.client().models.list()
    assert sorted(model.id for model in models) == sorted((CHAT, EMBED))
    for model in models:
        assert model.object == "model" and model.created > 0 and model.owned_by
    assert world.real.client().models.retrieve(EMBED).id == EMBED


def test_metrics_are_on_a_port_of_their_own_and_name_tenants_only_in_what_is_metered_for_them(world):
    text = world.real.request("GET", "/metrics", key=None, port=world.real.metrics_port).text
    assert "# TYPE" in text and "# HELP" in text
    naming = [line for line in text.splitlines() if any(name in line for name in ("demo", "embedder", "tenant="))]
    others = [line for line in naming if not line.startswith("weir_tenant_")]
    assert naming and not others, others
    assert world.real.metrics(), "no samples"
    # Neither does the API's port serve them, nor does the metrics' port serve the API.
    assert world.real.request("GET", "/metrics").status == 404
    assert world.real.request("GET", "/v1/models", port=world.real.metrics_port).status == 404


def test_metrics_count_what_was_done(world):
    before = world.fake.metrics()
    world.fake.client().completions.create(model=FAKE, prompt="abc", max_tokens=5, extra_body={"ignore_eos": True})
    after = world.fake.metrics()
    grown = {name: after[name] - before.get(name, 0) for name in after if after[name] > before.get(name, 0)}
    assert any("tokens" in name and value >= 5 for name, value in grown.items()), grown
    assert any("request" in name for name in grown), grown


def test_the_executor_is_a_process_and_does_the_work(world):
    executors = [(pid, command) for pid, command in world.real.children() if "executor" in command]
    assert executors, world.real.children()

    def cpu_ticks():
        # Fields 14 and 15 of /proc/PID/stat, counted after the name, which may hold spaces.
        fields = [pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid, _ in executors]
        return sum(int(f[11]) + int(f[12]) for f in fields)

    def own_ticks():
        fields = pathlib.Path(f"/proc/{world.real.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before, own_before = cpu_ticks(), own_ticks()
    world.real.client().completions.create(model=CHAT, prompt="Once", max_tokens=64, extra_body={"ignore_eos": True})
    assert cpu_ticks() - before > own_ticks() - own_before, "the server computed more than its executor"


def test_doctor_and_help(world):
    doctor = weir(world, "doctor")
    assert doctor.returncode == 0, doctor
    assert "cpu" in doctor.stdout.lower() and "gpu" in doctor.stdout.lower(), doctor.stdout
    for words in (["--help"], ["serve", "--help"], ["chat", "--help"], ["doctor", "--help"]):
        shown = weir(world, *words)
        assert shown.returncode == 0 and "Usage" in shown.stdout, shown
    assert "executor" not in weir(world, "--help").stdout, "the executor is a hidden command"
    assert weir(world, "--version").stdout.startswith("weir ")


def test_config_print_masks_secrets_and_layers(world):
    with tempfile.TemporaryDirectory() as folder:
        digest = "ab" * 32
        pathlib.Path(folder, "weir.toml").write_text(
            f'[server]\nport = 7001\n[[tenants]]\nname = "demo"\n[[tenants.keys]]\nname = "k"\nsha256 = "{digest}"\n')

        def printed(*words, **environment):
            shown = weir(world, "config", "print", "--config", "weir.toml", *words, cwd=folder, environment=environment)
            assert shown.returncode == 0, shown
            assert digest not in shown.stdout
            return shown.stdout

        assert "7001" in printed()
        assert "7002" in printed(WEIR_PORT="7002") and "7001" not in printed(WEIR_PORT="7002")
        assert "7003" in printed(PORT="7003")
        pathlib.Path(folder, "bad.toml").write_text("[server]\nprot = 1\n")
        bad = weir(world, "config", "print", "--config", "bad.toml", cwd=folder)
        assert bad.returncode == 1 and "prot" in bad.stderr and "bad.toml" in bad.stderr, bad


def fails_plainly(done, *words):
    assert done.returncode == 1, done
    assert "panicked" not in done.stderr and "backtrace" not in done.stderr.lower(), done.stderr
    # The log may have said what went well before.
    lines = [line for line in done.stderr.splitlines() if line.strip() and " INFO " not in line]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], (word, lines[0])


def test_failures_at_the_start_are_one_line(world):
    with tempfile.TemporaryDirectory() as folder:
        ports = ["--port", str(free_port())]
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            fails_plainly(weir(world, "serve", "fake", "--port", port, cwd=folder), port)
        pathlib.Path(folder, "broken.gguf").write_bytes(b"GGUF" + os.urandom(2000))
        fails_plainly(weir(world, "serve", "broken.gguf", *ports, cwd=folder), "broken.gguf")
        pathlib.Path(folder, "text.gguf").write_text("not a model")
        fails_plainly(weir(world, "serve", "text.gguf", *ports, cwd=folder), "text.gguf")
        cut = pathlib.Path(folder, "cut.gguf")
        whole = next((world.models / CHAT).glob("*.gguf"))
        with whole.open("rb") as source:
            cut.write_bytes(source.read(20 << 20))
        fails_plainly(weir(world, "serve", "cut.gguf", *ports, cwd=folder), "cut.gguf")
        fails_plainly(weir(world, "serve", "no/such/place", *ports, cwd=folder), "no/such/place")
        fails_plainly(weir(world, "serve", "fake", "--config", "absent.toml", *ports, cwd=folder), "absent.toml")


def test_chat_talks_to_the_server(world):
    url = f"http://127.0.0.1:{world.real.port}"
    done = weir(world, "chat", "--url", url, "--temperature", "0", environment={"WEIR_API_KEY": "weir-e2e-demo-key"},
                stdin="What is the capital city of France? Answer in one sentence.\n")
    assert done.returncode == 0 and "Paris" in done.stdout, done
    refused = weir(world, "chat", "--url", url, "--model", CHAT, environment={"WEIR_API_KEY": "no"}, stdin="Hello\n")
    assert refused.returncode == 1 and "panicked" not in refused.stderr, refused


def test_key_new_prints_a_key_and_its_hash(world):
    import hashlib
    import re

    shown = weir(world, "key", "new").stdout
    key = re.search(r"weir-[A-Za-z0-9_-]{40,}", shown)[0]
    assert hashlib.sha256(key.encode()).hexdigest() in shown, shown
    assert key not in weir(world, "key", "new").stdout
