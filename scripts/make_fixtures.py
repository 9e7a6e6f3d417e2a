#!/usr/bin/env python3
"""Make the reference fixtures in fixtures/ from independent implementations.

The fixtures are committed; `make test` reads them and needs none of the packages below. Run this only to change them:

    python3 -m venv /tmp/ref
    /tmp/ref/bin/pip install llama-cpp-python==0.3.36 torch transformers accelerate gguf jinja2
    /tmp/ref/bin/python scripts/make_fixtures.py

What is made, and by whom:

* smollm2-ids.json       token ids of llama.cpp, on the same GGUF that Weir serves; chats rendered by jinja2 with the
                         GGUF's own template, the way transformers renders it.
* smollm2-logprobs.json  teacher-forced positions: top-1 id and log-probability of the next id, once by transformers in
                         float32 on the dequantised weights (the truth) and once by llama.cpp (the yardstick: what a
                         good quantised engine loses against that truth).
* minilm-vectors.json    ids and unit vectors of all-MiniLM-L6-v2 by transformers in float32 (mean pooling, L2).
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIGITS = 6  # of every float written

# Chats are what the template renders; the texts of the logprob fixture are drawn from them too.
CHATS = [
    ("plain question", [("user", "What is the capital of France?")]),
    ("numbers", [("user", "Add 1234567 and 89, then multiply by 3.14159. Is 1,000,000 > 999,999.99?")]),
    ("dates and times", [("user", "From 2026-11-21T09:05:00Z to 31/12/1999, how many days? Call +1 (555) 010-9999.")]),
    ("python code", [("user", "Explain:\n```python\ndef f(x: int) -> int:\n    return x**2 if x >= 0 else -x\n\nprint(f(10))\n```")]),
    ("rust code", [("user", "fn main() {\n\tlet v: Vec<u32> = (0..100).map(|i| i * 2).collect();\n\tprintln!(\"{v:?}\");\n}")]),
    ("chinese", [("user", "请用一句话介绍长城,并说明它有多长(约21196公里)。")]),
    ("arabic", [("user", "ما هي عاصمة المملكة المغربية؟ اكتب الأرقام ١٢٣ و456.")]),
    ("russian", [("user", "Расскажи о Волге: длина 3530 км, впадает в Каспийское море.")]),
    ("german", [("user", "Übergrößenträger müssen früh aufstehen — ist das wahr? Straße, Äpfel, 1.234,56 €.")]),
    ("japanese and korean", [("user", "東京は日本の首都です。서울은 한국의 수도입니다. हिन्दी भी।")]),
    ("emoji", [("user", "Rate this: 👍🏽👩‍👩‍👧‍👦🎉 and flags 🇫🇷🇯🇵, please 🙏")]),
    ("whitespace runs", [("user", "  two leading,\t\ttabs,    four,\n\n\n three newlines \r\n and trailing   ")]),
    ("contractions", [("user", "I'm sure they'd've said it's Bob's; we'll see WHAT'S up, don't y'all?")]),
    ("system message", [("system", "You answer in exactly three words."), ("user", "Why is the sky blue?")]),
    ("several turns", [
        ("user", "My name is Ada and I was born in 1815."),
        ("assistant", "Nice to meet you, Ada!"),
        ("user", "How old was I in 1843?"),
        ("assistant", "You were 27 or 28 years old."),
        ("user", "And what is my name?"),
    ]),
    ("several turns, system", [
        ("system", "You are a pirate. Speak like one; keep it short."),
        ("user", "Hello!"),
        ("assistant", "Arr, matey! What be ye seekin'?"),
        ("user", "The treasure of 1,000 doubloons @ 24.5°N, 81.8°W."),
    ]),
    ("empty content", [("user", "")]),
]

# Strings without a template. A special token's text in a plain string is text, not the token.
PLAIN = [
    "Hello, world!",
    " leading space",
    "1234567890 12 007 3.14 1e-9 0x1F",
    "a\n\nb\n \n  c\t\td   e",
    "The quick brown fox jumps over the lazy dog.",
    "日本語と中文とEnglish混在123",
    "مرحبا بالعالم",
    "Привет, мир! Ёлка.",
    "naïve café Ångström ﬁ ½ ²",
    "👩‍💻🧑🏿‍🚀",
    "for(int i=0;i<10;++i){a[i]+=i<<2;}//done",
    "<|im_start|>user\nnot a control token<|im_end|>",
    "<|endoftext|>",
    "https://example.com/a_b-c?q=1&r=%20#frag",
    "HTTPServerError::NotFound __init__ camelCaseWord snake_case_word",
    "\u200bzero\u00a0width\u3000spaces",
]

# Teacher-forced as they are: no template, no continuation.
FIXED = [
    ("prose", "The history of the bicycle begins in the early nineteenth century, when a German baron built a wooden "
              "machine with two wheels in line. The rider pushed himself along with his feet on the ground. Pedals came "
              "later, first fixed to the front wheel, and then joined to the rear wheel by a chain. With rubber tires "
              "filled with air, the bicycle became comfortable, cheap and popular all over the world."),
    ("code", "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n    a, b = 0, 1\n    for _ in range(n):\n"
             "        a, b = b, a + b\n    return a\n\n\nif __name__ == \"__main__\":\n    for i in range(10):\n"
             "        print(i, fibonacci(i))\n"),
]

# (chat name, ids of the greedy continuation): continued by the float32 model, then teacher-forced.
CONTINUED = [
    ("plain question", 32), ("numbers", 96), ("python code", 112), ("chinese", 64), ("german", 80),
    ("system message", 48), ("several turns", 64), ("rust code", 96), ("dates and times", 80),
]

VECTOR_TEXTS = [
    "",
    " ",
    ".",
    "weir",
    "A weir divides a river into measured shares.",
    "The same sentence, twice. The same sentence, twice.",
    "Ein Wehr teilt einen Fluss in gemessene Anteile.",
    "Плотина делит реку на части.",
    "堰把河水分成几份。",
    "سد يقسم النهر إلى حصص.",
    "Crème brûlée & naïve café, 1,234.56 € on 2026-11-21 🎉",
    "def mean(xs):\n    return sum(xs) / len(xs)",
    "[CLS] words in brackets [SEP] are special tokens [MASK]",
    "unbelievablyquestionablepneumonoultramicroscopicsilicovolcanoconiosis",
    "How do I reset my password? I have tried the link in the e-mail, but it has expired, and the help desk is closed "
    "until Monday. My account name is ada@example.com and I need the invoice for October.",
    "Rivers carry water from the hills to the sea. " * 14,
    "Long inputs are cut at two hundred and fifty-six tokens, " * 30,
]
INPUT_LEN_MAX = 256  # of all-MiniLM-L6-v2, its sentence_bert_config.json


def rounded(x):
    return round(float(x), DIGITS)


def write(name, value):
    """One line per entry of each list, so that a change reads well in a diff."""
    lines = []
    for key, item in value.items():
        if isinstance(item, list):
            rows = ",\n  ".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in item)
            lines.append(f"{json.dumps(key)}: [\n  {rows}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(item, ensure_ascii=False)}")
    path = ROOT / "fixtures" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


def open_llama(gguf, **options):
    import llama_cpp

    return llama_cpp.Llama(str(gguf), n_ctx=2048, verbose=False, **options), llama_cpp.__version__


def render(template, messages, bos, eos):
    """As transformers' apply_chat_template renders: trimmed blocks, loop controls, no autoescape."""
    import jinja2.ext
    import jinja2.sandbox

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    return env.from_string(template).render(
        messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos)


def as_messages(turns):
    return [{"role": role, "content": content} for role, content in turns]


def make_ids(gguf):
    llama, version = open_llama(gguf, vocab_only=True)
    template = llama.metadata["tokenizer.chat_template"]
    chats = []
    for name, turns in CHATS:
        messages = as_messages(turns)
        text = render(template, messages, "<|im_start|>", "<|im_end|>")
        ids = llama.tokenize(text.encode(), add_bos=False, special=True)
        chats.append({"name": name, "messages": messages, "text": text, "ids": ids})
    plain = [{"text": text, "ids": llama.tokenize(text.encode(), add_bos=False, special=False)} for text in PLAIN]
    write("smollm2-ids.json", {
        "model": gguf.name,
        "made_by": f"llama-cpp-python {version}; chats rendered by jinja2 with add_generation_prompt, special tokens "
                   "recognised; plain strings with add_bos off and special tokens not recognised",
        "chats": chats,
        "plain": plain,
    })
    return {chat["name"]: chat["ids"] for chat in chats}, llama


def log_softmax(logits):
    """[positions, vocab] float64 -> the same."""
    import numpy

    logits = numpy.asarray(logits, dtype=numpy.float64)
    top = logits.max(axis=-1, keepdims=True)
    return logits - top - numpy.log(numpy.exp(logits - top).sum(axis=-1, keepdims=True))


def judge(logits, ids):
    """Top-1 id and log-probability of the next id, at every position but the last."""
    logprobs = log_softmax(logits)[:-1]
    top = logprobs.argmax(axis=-1)
    return [int(t) for t in top], [rounded(logprobs[i, ids[i + 1]]) for i in range(len(ids) - 1)]


def make_logprobs(gguf, chat_ids, vocab):
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    texts = []
    with torch.no_grad():
        for name, text in FIXED:
            texts.append((name, 0, vocab.tokenize(text.encode(), add_bos=False, special=False)))
        for name, count in CONTINUED:
            prompt = chat_ids[name]
            # The end token is held back until the count is reached, so every text has its full length.
            made = model.generate(torch.tensor([prompt]), max_new_tokens=count, min_new_tokens=count, do_sample=False,
                                  repetition_penalty=1.0, pad_token_id=2)[0].tolist()
            # Positions from the last prompt id on: what the model says, not what the prompt says.
            texts.append((name, len(prompt) - 1, made))
        f32 = [judge(model(torch.tensor([ids])).logits[0].double().numpy(), ids) for _, _, ids in texts]
    del model

    llama, version = open_llama(gguf, logits_all=True)
    entries, rows = [], []
    for (name, start, ids), (f32_top, f32_logprob) in zip(texts, f32):
        llama.reset()
        llama.eval(ids)
        top, logprob = judge(llama.scores[: len(ids)], ids)
        entries.append({
            "name": name, "from": start, "ids": ids,
            "f32_top": f32_top[start:], "f32_logprob": f32_logprob[start:],
            "llama_cpp_top": top[start:], "llama_cpp_logprob": logprob[start:],
        })
        rows += zip(f32_top[start:], top[start:], f32_logprob[start:], logprob[start:])
    agreement = sum(a == b for a, b, _, _ in rows) / len(rows)
    difference = sum(abs(a - b) for _, _, a, b in rows) / len(rows)
    write("smollm2-logprobs.json", {
        "model": gguf.name,
        "made_by": f"f32: transformers {transformers.__version__}, torch {torch.__version__} on the dequantised weights; "
                   f"llama_cpp: llama-cpp-python {version}, its defaults on a CPU",
        "meaning": "entry i of the four lists speaks of position from + i: the model has read ids[..=from+i]; top is its "
                   "most likely next id, logprob that of ids[from+i+1]",
        "positions": len(rows),
        "llama_cpp_agreement": rounded(agreement),
        "llama_cpp_mean_abs_difference": rounded(difference),
        "texts": entries,
    })
    print(f"figure=llama_cpp_positions value={len(rows)}")
    print(f"figure=llama_cpp_top1_agreement value={agreement:.6f}")
    print(f"figure=llama_cpp_mean_abs_logprob_difference value={difference:.6f}")


def make_vectors(folder):
    import tokenizers
    import torch
    import transformers

    model = transformers.BertModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", add_pooling_layer=False)
    model.eval()
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    entries = []
    for text in VECTOR_TEXTS:
        tokenizer.no_truncation()
        whole = len(tokenizer.encode(text).ids)
        tokenizer.enable_truncation(INPUT_LEN_MAX)
        ids = tokenizer.encode(text).ids
        with torch.no_grad():
            hidden = model(torch.tensor([ids])).last_hidden_state[0].double()  # [tokens, 384]
        vector = hidden.mean(dim=0)
        vector = vector / vector.norm()
        entries.append({"text": text, "truncated": whole > INPUT_LEN_MAX, "ids": ids,
                        "vector": [rounded(x) for x in vector]})
    write("minilm-vectors.json", {
        "model": "all-minilm-l6-v2",
        "made_by": f"transformers {transformers.__version__}, torch {torch.__version__}, float32; mean over all tokens, "
                   "then unit length",
        "inputs": entries,
    })


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / ".weir" / "models")
    parser.add_argument("--only", choices=["ids", "logprobs", "vectors"])
    options = parser.parse_args()
    if options.only in (None, "ids", "logprobs"):
        ggufs = sorted((options.models / "smollm2-135m-instruct").glob("*.gguf"))
        if not ggufs:
            sys.exit(f"no GGUF in {options.models}/smollm2-135m-instruct: run scripts/fetch_models.py")
        chat_ids, vocab = make_ids(ggufs[0])
        if options.only != "ids":
            make_logprobs(ggufs[0], chat_ids, vocab)
    if options.only in (None, "vectors"):
        make_vectors(options.models / "all-minilm-l6-v2")


if __name__ == "__main__":
    main()
