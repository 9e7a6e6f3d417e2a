# Weir from a fresh machine: cargo, a C compiler, make, and python3 with pip. `make serve` and `make test` are all there is
# to know; the rest is for those who change the code.

PYTHON ?= python3
CARGO ?= cargo
# Builds go where cargo puts them; both the variable and the default are honoured.
TARGET := $(or $(CARGO_TARGET_DIR),target)
WEIR := $(TARGET)/release/weir
MODELS := .weir/models
# The build with CUDA has a folder of its own: in one folder, the two feature sets would compile candle in turns.
CUDA_TARGET := $(TARGET)/cuda
# What the compiler and the build scripts ask the environment for; CUDA_COMPUTE_CAP is 90 unless set. candle's kernels are
# the long part and take half the processors unless told.
CUDA_ENV = exports=$$($(PYTHON) scripts/cuda_toolkit.py --print-env) && eval "$$exports" && \
	export CUDAFORGE_THREADS="$${CUDAFORGE_THREADS:-$$(getconf _NPROCESSORS_ONLN)}"
# Where weir-gpu looks for CUDA's libraries after LD_LIBRARY_PATH and before the system's folders: in an installation
# beside bin/, and on the machine that built it.
CUDA_RPATH := $$ORIGIN/../lib/weir:$$ORIGIN/../../.weir/cuda/lib
# The names under which the two default models are served, and their folders.
DEFAULT_MODELS := $(MODELS)/smollm2-135m-instruct $(MODELS)/all-minilm-l6-v2
# Seconds for each target of `make fuzz`.
FUZZ_SECONDS ?= 60
# More words for `weir serve`, such as SERVE_FLAGS='--port 9000'.
SERVE_FLAGS ?=
# More words for scripts/bench.py, such as BENCH_FLAGS='--only cpu --allow-busy'.
BENCH_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help serve models build cuda cuda-check test prove chaos simulate-long mutants bless figures bench fuzz fmt lint clean

help: ## say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

serve: models build ## fetch two models, build, and serve them on 127.0.0.1:8000
	@exec $(WEIR) serve $(SERVE_FLAGS) $(DEFAULT_MODELS)

models: ## fetch the two default models into .weir/models, nothing if they are there
	@$(PYTHON) scripts/fetch_models.py

build: ## build target/release/weir
	@scripts/stage 'build weir (release; minutes the first time, seconds after)' \
		$(CARGO) build --release --locked --package weir-server --bin weir

cuda: ## build target/release/weir-gpu, the executor on CUDA; needs no GPU, fetches 680 MB of CUDA the first time
	@$(PYTHON) scripts/cuda_toolkit.py --link
	@$(CUDA_ENV) && scripts/stage 'build weir-gpu (release, compute capability '$$CUDA_COMPUTE_CAP')' \
		$(CARGO) rustc --release --locked --package weir-runtime --features cuda --bin weir-gpu \
		--target-dir $(CUDA_TARGET) -- -C strip=symbols -C link-arg='-Wl,--enable-new-dtags,-rpath,$(CUDA_RPATH)'
	@scripts/cuda_place $(CUDA_TARGET)/release/weir-gpu $(TARGET)/release

cuda-check: ## check the CUDA code without a GPU: every kernel for sm_80 and sm_90, and the crates that use them
	@$(PYTHON) scripts/cuda_toolkit.py --compile
	@$(CUDA_ENV) && scripts/stage 'kernels for sm_80 and sm_90' \
		$(PYTHON) scripts/cuda_report.py --check --into $(CUDA_TARGET)/cubins
	@$(CUDA_ENV) && scripts/stage 'lints with CUDA (candle'\''s kernels take minutes the first time)' \
		$(CARGO) clippy --release --locked --package weir-kernels --package weir-models --package weir-runtime \
		--features weir-runtime/cuda --target-dir $(CUDA_TARGET) -- -D warnings

test: models ## install what the tests need, and run them all
	@$(PYTHON) scripts/test.py

prove: models ## run the proofs at full size and print their figures: about half an hour
	@$(PYTHON) scripts/test.py --prove

chaos: models build ## kill the server a thousand times, fail its disk and its database, and see that its accounts add up: most of an hour
	@$(PYTHON) scripts/test.py --chaos

simulate-long: ## play ten million requests in the simulator, every invariant checked after every event: most of an hour
	@WEIR_PROOFS_REQUESTS=10000000 $(CARGO) test --release --locked --package weir-scheduler --test facts -- \
		--nocapture proofs::no_invariant

mutants: ## break the scheduler in each way of scripts/mutants.py, and see that a test notices: some ten minutes
	@$(PYTHON) scripts/mutants.py

bless: ## write anew what tests compare with, after a change that was meant: the digest of a simulated history
	@WEIR_BLESS=1 $(CARGO) test --release --locked --package weir-scheduler --test facts -- proofs::the_same_seed

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
