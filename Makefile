# The commands of this project, the same ones that CI uses. Each sets up what it needs in .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export YOLO_AUTOINSTALL := false # Ultralytics otherwise installs packages in the middle of a run

.PHONY: help setup demo test coverage check audit format cfg docs bench export-matrix clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/'

setup: $(READY) ## Make the environment in .venv

$(READY): pyproject.toml edge/pyproject.toml hatch_build.py yolo_lightbackbones_autoload.pth
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable ".[dev]" --editable ./edge
	touch $(READY)

demo: $(READY) ## Train, validate, export and run a detector, in minutes and without a GPU
	$(BIN)/python examples/demo.py

# Python 3.12 and newer tell which lines run for a few percent of the time; before, tests take half as long again.
test: check ## Everything CI runs: lint, types and the whole test suite, which builds the documentation as well
	with=$$($(BIN)/python -c "import sys; print('--cov --cov-report=term' if sys.version_info >= (3, 12) else '')") && \
	COVERAGE_CORE=sysmon OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup $$with

coverage: $(READY) ## The whole test suite, and every line of the package that it never runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup --cov --cov-report=term-missing

check: $(READY) ## Lint, types, and dangerous calls
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive yolo_lightbackbones edge/src examples tools

audit: $(READY) ## Known vulnerabilities of everything in the environment; asks PyPI, so it needs the network
	$(BIN)/pip-audit --skip-editable

format: $(READY) ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

cfg: $(READY) ## Write the model YAMLs anew, with the figures of the built models
	$(BIN)/python tools/make_cfg.py

docs: $(READY) ## Build the documentation site into site/
	$(BIN)/mkdocs build --strict

bench: $(READY) ## Speed and memory, as ratios of interleaved runs, into benchmarks/speed.md (hours)
	$(BIN)/python benchmarks/autoload.py
	$(BIN)/python benchmarks/circular.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/speed.py --training
	$(BIN)/python benchmarks/speed.py --share

export-matrix: $(READY) ## Every family in every edge format: accuracy, errors and speed into docs/exports.md (hours)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet executorch coremltools
	$(BIN)/python benchmarks/exports.py --train

clean: ## Remove the environment and everything that runs left behind
	rm -rf $(VENV) .coverage .coverage.* .export runs site dist build .mypy_cache .ruff_cache .pytest_cache
