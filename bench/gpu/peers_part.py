"""peers: what else this machine can run at the same shapes: transformers, torch with CUDA graphs, llama.cpp."""

import importlib.util
import os
import pathlib
import shutil
import sys

import place

HERE = pathlib.Path(__file__).resolve().parent
# Carried there by whoever wants the figures; git does not know them.
LLAMA_CPP, GGUF = HERE / "peers/llama.cpp", HERE / "peers/model.gguf"


def run(bench):
    if importlib.util.find_spec("torch"):
        torch(bench)
    else:
        bench.unavailable("torch", "this python has no torch")
    llama_cpp(bench)


def torch(bench):
    tasks = [("ops", ()), *((task, (shape, batch)) for shape in bench.pick(("qwen2.5-0.5b", "llama-3.1-8b"), ("tiny-llama",))
                            for task in ("graph", "eager") for batch in bench.pick((1, 32, 256), (2,)))]
    for task, words in tasks:
        if task == "eager" and not importlib.util.find_spec("transformers"):
            bench.unavailable("eager", "this python has no transformers")
            continue
        name = "_".join(map(str, (task, *words)))
        command = [sys.executable, "-B", HERE / "peer_torch.py", task, *words, *bench.pick((), ("--small",))]
        if not bench.has(name, bench.pick(25, 5)):
            continue
        for line in place.lines(bench.run(name, command, bench.pick(90, 60))):
            more = {key: value for key, value in line.items() if key not in ("figure", "value", "unit")}
            bench.figure(line["figure"], line["value"], line["unit"], command=" ".join(map(str, command)), **more)


def llama_cpp(bench):
    """Built here from carried source (the only thing that any part builds), and run on a carried file of weights."""
    name = "llama_cpp"
    if bench.place.device != "cuda":
        return bench.unavailable(name, "this is the CPU")
    if not LLAMA_CPP.is_dir() or not GGUF.is_file():
        return bench.unavailable(name, f"{LLAMA_CPP.relative_to(HERE)} and {GGUF.relative_to(HERE)} are not carried here")
    if not shutil.which("cmake") or not shutil.which("nvcc"):
        return bench.unavailable(name, "there is no cmake or no nvcc to build it")
    build, binary = LLAMA_CPP / "build", LLAMA_CPP / "build/bin/llama-bench"
    if not binary.exists():
        configure = ["cmake", "-S", LLAMA_CPP, "-B", build, "-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=90",
                     "-DLLAMA_CURL=OFF", "-DCMAKE_BUILD_TYPE=Release"]
        make = ["cmake", "--build", build, "--target", "llama-bench", "-j", len(os.sched_getaffinity(0))]
        for words in (configure, make):
            if bench.run(f"{name}_build", words, bench.left() - 30) is None:
                return None
    words = [binary, "-m", GGUF, "-p", "1024", "-n", "32", "-d", "1024", "-ngl", "99", "-fa", "1", "-o", "jsonl"]
    for line in place.lines(bench.run(name, words, 120)):
        kind = "prefill" if line.get("n_prompt") else "decode"
        bench.figure(f"{name}_{kind}", line["avg_ts"], "tokens/s", command=" ".join(map(str, words)),
                     model=line.get("model_type"))
    return None
