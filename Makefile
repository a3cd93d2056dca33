# Bare `make` lists what can be asked for. Each target sets up what it needs; PYTHON names another interpreter, and
# ARGS is handed on: make demo ARGS="--seconds 30", make test ARGS="tests/stream -x".

PYTHON ?= python3
ARGS ?=
BENCH ?= $(filter-out benchmarks/_%,$(sort $(wildcard benchmarks/*.py)))

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SAY_AND_STOP = { printf 'make: %s\n' $(1) >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## watch it learn: simulated clicks, everything in one process, nothing to install
	@$(BIN)/nextclick demo $(ARGS)

test: $(READY) ## run the tests that need no broker and no Redis (.ci/run has the others)
	@$(BIN)/python -m pytest -m "not real" --numprocesses auto --dist worksteal $(ARGS)

lint: $(READY) ## check style, formatting and types, and the pinned versions for known vulnerabilities
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python .ci/audit $(BIN)/pip-audit

format: $(READY) ## mend formatting and what else the linter can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY) ## run the benchmarks in turn, or one: make bench BENCH=benchmarks/lsh.py
	@test -n "$(BENCH)" || $(call SAY_AND_STOP,"benchmarks/ holds no benchmark")
	@failed=; for file in $(BENCH); do \
		printf '\n== %s\n' "$$file"; \
		$(BIN)/python -m "benchmarks.$$(basename "$$file" .py)" $(ARGS) || failed="$$failed $$file"; \
	done; test -z "$$failed" || $(call SAY_AND_STOP,"failed:$$failed")

# setuptools comes first and pinned, so that building the package downloads nothing that constraints.txt does not name.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || $(call SAY_AND_STOP,"there is no $(PYTHON) here; install Python 3.11 or later or name one with PYTHON=...")
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		$(call SAY_AND_STOP,"nextclick needs Python 3.11 or later and this is $$($(PYTHON) --version 2>&1); name another with PYTHON=...")
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		$(call SAY_AND_STOP,"$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv")
	@echo "Setting up $(VENV); the first time takes some minutes, most of them for PyTorch."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--no-build-isolation --editable '.[dev]'
	@touch $@
