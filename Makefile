# Weir from a fresh machine: cargo, a C compiler, make, and python3 with pip. `make serve` and `make test` are all there is
# to know; the rest is for those who change the code.

PYTHON ?= python3
CARGO ?= cargo
# Builds go where cargo puts them; both the variable and the default are honoured.
TARGET := $(or $(CARGO_TARGET_DIR),target)
WEIR := $(TARGET)/release/weir
MODELS := .weir/models
# The names under which the two default models are served, and their folders.
DEFAULT_MODELS := $(MODELS)/smollm2-135m-instruct $(MODELS)/all-minilm-l6-v2
# Seconds for each target of `make fuzz`.
FUZZ_SECONDS ?= 60
# More words for `weir serve`, such as SERVE_FLAGS='--port 9000'.
SERVE_FLAGS ?=
# More words for scripts/bench.py, such as BENCH_FLAGS='--only cpu --allow-busy'.
BENCH_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help serve models build test prove figures bench fuzz fmt lint clean

help: ## say what there is to make
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

serve: models build ## fetch two models, build, and serve them on 127.0.0.1:8000
	@exec $(WEIR) serve $(SERVE_FLAGS) $(DEFAULT_MODELS)

models: ## fetch the two default models into .weir/models, nothing if they are there
	@$(PYTHON) scripts/fetch_models.py

build: ## build target/release/weir
	@scripts/stage 'build weir (release; minutes the first time, seconds after)' \
		$(CARGO) build --release --locked --package weir-server --bin weir

test: models ## install what the tests need, and run them all
	@$(PYTHON) scripts/test.py

prove: models ## run the proofs at full size and print their figures: about half an hour
	@$(PYTHON) scripts/test.py --prove

figures: models ## print the figures of quality that the tests measure
	@WEIR_TEST_MODELS=$(CURDIR)/$(MODELS) $(CARGO) test --release --locked --workspace --no-fail-fast -- --nocapture 2>/dev/null \
		| grep -o 'figure=.*'

bench: models build ## measure this machine, a quarter of an hour; `scripts/bench.py --report` writes bench/RESULTS.md
	@$(PYTHON) scripts/bench.py --weir $(WEIR) --models $(MODELS) $(BENCH_FLAGS)

fuzz: ## give each parser of outside bytes to a fuzzer for FUZZ_SECONDS; what fails is kept in fuzz/artifacts
	@CARGO=$(CARGO) scripts/fuzz $(FUZZ_SECONDS)

fmt: ## format the code
	@$(CARGO) fmt

lint: ## what .ci/run checks before the tests
	@$(CARGO) fmt --check
	@$(CARGO) clippy --release --locked --all-targets -- -D warnings

clean: ## remove what was built; the models, the key and weir.toml stay
	@$(CARGO) clean
	@rm -rf .weir/py
