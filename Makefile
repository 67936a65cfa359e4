# Every target makes its own .venv first. `make demo`: the main job. `make test`: all checks and tests.
VENV := .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
QUICK := "not slow and not matrix and not gpu and not slurm"
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1
export DS_BUILD_OPS := 0

.PHONY: help venv demo demo-no-replay check test slurm-up slurm-down test-slurm test-matrix test-slow test-gpu bench bench-gpu bench-eval base-model clean

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

venv: $(VENV)/.ready ## the virtual environment with everything installed

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: venv ## train, judge and report on the embedded model (about 4 minutes on 2 cores)
	$(BIN)/dft demo

demo-no-replay: venv ## the same without general data in the mix: what forgetting looks like
	$(BIN)/dft demo --no-replay

check: venv ## lint, format, types, import rules, shell scripts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck .ci/run slurm/*.sbatch

test: check ## check + the tests (what CI runs), two at a time but for those on a Slurm, which has the machine to itself
	$(BIN)/pytest -m $(QUICK) --numprocesses 2 --dist loadfile tests/unit
	$(BIN)/pytest -m $(QUICK) --numprocesses 2 --dist worksteal tests/distributed tests/e2e
	$(BIN)/pytest -m $(QUICK) tests/slurm tests/gpu

test-matrix: venv ## every method on every strategy: parity, memory, reload, resume
	$(BIN)/pytest -m "matrix or not slow" tests/distributed

slurm-up: venv ## a real Slurm on loopback: four nodes (installs Debian's packages where they are missing)
	$(BIN)/python tests/support/cluster.py up

slurm-down: venv ## end it
	$(BIN)/python tests/support/cluster.py down

test-slurm: venv ## jobs on a Slurm of the tests' own: pre-emption, node failure, other sizes, evaluation, sweeps
	$(BIN)/pytest -m "not gpu" tests/slurm

test-slow: venv ## the long suites: every kill, every world size, the whole demo
	$(BIN)/pytest -m slow --ignore tests/slurm

test-gpu: venv ## what needs a CUDA device; skipped without one
	$(BIN)/pytest tests/gpu

bench: venv ## benchmarks against a bare loop and TRL, and of data; results in benchmarks/results/
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.checkpoint_stall
	$(BIN)/python -m benchmarks.vs_trl_cpu
	$(BIN)/python -m benchmarks.data_vs_trl
	$(BIN)/python -m benchmarks.data_scaling
	$(BIN)/python -m benchmarks.page

bench-gpu: venv ## an 8B model with LoRA and QLoRA on one GPU: tokens/s, MFU, peak memory (20 GB in $TMPDIR)
	$(BIN)/python -m benchmarks.train_8b
	$(BIN)/python -m benchmarks.page

bench-eval: venv ## the evaluation: planted failures, forgetting's shape, intervals, speed beside lm-eval (an hour)
	$(BIN)/python -m benchmarks.diagnosis_quality --work build/diagnosis --seeds 4
	$(BIN)/python -m benchmarks.forgetting_shape --work build/forgetting --seeds 5
	$(BIN)/python -m benchmarks.interval_coverage
	$(BIN)/python -m benchmarks.eval_vs_harness
	$(BIN)/python -m benchmarks.eval_extra_checkpoint
	$(BIN)/python -m benchmarks.page

base-model: venv ## train the embedded base from scratch (about an hour on one core)
	$(BIN)/python -m recipes.data --out distributed_ft/assets
	$(BIN)/python -m recipes.base_model --out distributed_ft/assets/base

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build *.egg-info
