# `make test` and `make demo` each work first on a machine that has nothing but CPython 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
JOBS ?= 2

# More threads than cores make torch and ONNX Runtime slower, not faster, under parallel tests.
export OMP_NUM_THREADS ?= 1

.PHONY: test lint demo docs soak clean

test: $(STAMP) lint
	$(BIN)/python -m pytest -n $(JOBS) -q

# What CI tests in small, in large and on new examples; SEED=… repeats a run, SOAK=… makes it longer or shorter.
SOAK ?= 20000
SEED ?= $(shell date +%s)

soak: $(STAMP)
	@echo "make soak SEED=$(SEED) SOAK=$(SOAK) JOBS=$(JOBS)"
	HYPOTHESIS_PROFILE=soak BNFOLD_LAW_EXAMPLES=1000 \
	BNFOLD_RANDOM_GRAPHS=$(SOAK) BNFOLD_RANDOM_START=$(SEED) BNFOLD_FUZZ_FILES=20000 BNFOLD_FUZZ_SEED=$(SEED) \
		$(BIN)/python -m pytest -n $(JOBS) -q tests/test_laws.py tests/test_fuzz.py tests/test_random_graphs.py
	$(BIN)/python -m tests.run_mutants --jobs $(JOBS)
	BNFOLD_VERIFY_SEEDS=6 $(BIN)/python -m pytest -n $(JOBS) -q tests/test_verify.py
	BNFOLD_SOAK=1 $(BIN)/python -m pytest -q tests/serve

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

demo: $(STAMP)
	$(BIN)/python benchmarks/demo.py

docs: $(STAMP)
	$(BIN)/python -m bnfold.cli.reference > docs/cli.md

# One environment for everything, built from the pinned versions; only new requirements build it again.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) setuptools
	$(PIP) --no-build-isolation -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
