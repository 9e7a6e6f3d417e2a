"""bench/gpu without a GPU: its floors are those derived by hand, its file is whole, every part leaves figures."""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from server import clean_environment


def module(world, name):
    """One of the scripts of bench/gpu, as a module."""
    folder = str(world.root / "bench/gpu")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def make_model(world, shape, folder, *words):
    subprocess.run([world.weir, "make-model", "--shape", shape, *words, folder], check=True, stdout=subprocess.DEVNULL,
                   env=clean_environment(), timeout=300)


def close(found, wanted):
    return abs(found - wanted) < 0.005 * wanted


def test_floors_are_those_that_were_derived_by_hand(world):
    """Of an H200 with 4.3 TB/s and 790 TFLOP/s, at 1k context: ms of a step at three batch sizes, prompt tokens/s."""
    floor = module(world, "floor")
    with tempfile.TemporaryDirectory(prefix="weir-gpu-") as folder:
        derived = {"llama-3.1-8b": ((3.52, 4.49, 11.48), 55.5e3), "qwen2.5-0.5b": ((0.233, 0.323, 0.979), 1.04e6)}
        for shape, (steps, prefill) in derived.items():
            made = pathlib.Path(folder, shape)
            made.mkdir()
            (made / "config.json").write_text(json.dumps(published(shape)))
            costs = floor.costs(made)
            found = [1e3 * costs.decode_seconds(batch, 1024, 4.3e12, 790e12) for batch in (1, 32, 256)]
            assert all(close(a, b) for a, b in zip(found, steps)), (shape, found)
            assert close(costs.prefill_tokens_per_s(1024, 790e12), prefill), (shape, costs)


def published(shape):
    """Sizes as the makers state them."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
             "vocab_size")
    sizes = {"llama-3.1-8b": (4096, 32, 32, 8, 14_336, 128_256), "qwen2.5-0.5b": (896, 24, 14, 2, 4864, 151_936)}[shape]
    return dict(zip(names, sizes))


def test_made_models_have_the_published_sizes(world):
    with tempfile.TemporaryDirectory(prefix="weir-gpu-") as folder:
        made = pathlib.Path(folder, "qwen")
        make_model(world, "qwen2.5-0.5b", made, "--layers", "1")
        config = json.loads((made / "config.json").read_text())
        wanted = published("qwen2.5-0.5b") | {"num_hidden_layers": 1}
        assert {name: config[name] for name in wanted} == wanted
        info = subprocess.run([world.weir, "inspect", "--json", made], check=True, capture_output=True,
                              env=clean_environment())
        assert json.loads(info.stdout)["sound"]["info"]["vocab_size"] == 151_936


def test_results_are_whole_after_every_record(world):
    records = module(world, "records")
    with tempfile.TemporaryDirectory(prefix="weir-gpu-") as folder:
        path = pathlib.Path(folder, "results.json")
        results = records.Results(path)
        for number in range(3):
            results.add({"figure": str(number), "status": "ok"})
            assert [record["figure"] for record in json.loads(path.read_text())] == [str(n) for n in range(number + 1)]
        assert records.Results(path).counts(1) == {"ok": 2}
        assert [file.name for file in pathlib.Path(folder).iterdir()] == ["results.json"]


def test_a_part_without_time_skips_and_says_so(world):
    with tempfile.TemporaryDirectory(prefix="weir-gpu-") as folder:
        found = rehearse(world, folder, "serve", "--seconds", "0.5")
        assert found and {record["status"] for record in found} <= {"skipped", "ok"}, found
        assert any(record["status"] == "skipped" and record["reason"].startswith("time") for record in found), found


def test_every_part_can_be_rehearsed(world):
    with tempfile.TemporaryDirectory(prefix="weir-gpu-") as folder:
        found = rehearse(world, folder, "all")
    assert not [record for record in found if record["status"] == "failed"], found
    measured = {f"{record['part']}.{record['figure']}" for record in found if record["status"] == "ok"}
    wanted = {"roofline.copy_rate", "roofline.matrix_rate", "roofline.decode_tiny-llama_b4",
              "roofline.decode_tiny-llama_b4_fraction", "roofline.prefill_tiny-qwen2_b1",
              "serve.c1_output_throughput", "serve.c4_p99_itl_ms", "serve.tenants_jain",
              "serve.busy_idle", "serve.busy_half", "serve.busy_full", "embed.step_32_tokens_x4",
              "embed.http_32_tokens_x4_c2"}
    assert wanted <= measured, wanted - measured
    # The accounts of the one device there is.
    assert [name for name in measured if name.startswith("serve.conservation_cpu")], measured
    for record in found:
        assert {"machine", "commit", "time", "device"} <= record.keys(), record
    # What needs a GPU, or packages that are not here, is said and not left out.
    said = {f"{record['part']}.{record['figure']}" for record in found if record["status"] == "unavailable"}
    assert {"parity.kernels", "parity.sanitizer_memcheck", "peers.llama_cpp"} <= said, said


def rehearse(world, folder, *words):
    """The records of a dry run. This python has no torch for it even where there is one: that would take minutes."""
    environment = os.environ | {"WEIR": str(world.weir), "PYTHON": sys.executable, "PYTHONPATH": "", "PYTHONNOUSERSITE": "1"}
    command = [world.root / "bench/gpu/run.sh", *words, "--dry-run", "--out", folder, "--scratch", f"{folder}/scratch"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(pathlib.Path(folder, "results.json").read_text())
