# Bare `make` lists what can be asked for. Each target sets up what it needs; PYTHON names another interpreter, and
# ARGS is handed on: make demo ARGS="--seconds 30", make test ARGS="tests/stream -x".

PYTHON ?= python3
ARGS ?=
BENCH ?= $(filter-out benchmarks/_%,$(sort $(wildcard benchmarks/*.py)))

VENV := .venv
BIN := $(VENV)/bin
SAY_AND_STOP = { printf 'make: %s\n' $(1) >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench sbom venv

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: venv ## watch it learn: simulated clicks, everything in one process, nothing to install
	@$(BIN)/python -m online demo $(ARGS)

test: venv ## run the tests that need no broker and no Redis (.ci/run has the others)
	@$(BIN)/python -m pytest -m "not real" --numprocesses auto --dist worksteal $(ARGS)

lint: venv ## check style, formatting and types, and the pinned versions for known vulnerabilities
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python .ci/audit $(BIN)/pip-audit

format: venv ## mend formatting and what else the linter can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: venv ## run the benchmarks in turn, or one: make bench BENCH=benchmarks/lsh.py
	@test -n "$(BENCH)" || $(call SAY_AND_STOP,"benchmarks/ holds no benchmark")
	@failed=; for file in $(BENCH); do \
		printf '\n== %s\n' "$$file"; \
		$(BIN)/python -m "benchmarks.$$(basename "$$file" .py)" $(ARGS) || failed="$$failed $$file"; \
	done; test -z "$$failed" || $(call SAY_AND_STOP,"failed:$$failed")

sbom: venv ## write what .venv holds to sbom.cdx.json (CycloneDX); each image has its own
	@$(BIN)/cyclonedx-py environment --output-reproducible --output-file sbom.cdx.json $(BIN)/python

# `.ci/venv` decides whether there is anything to do: a file's time would not tell. PYTHON is needed to make .venv alone.
venv:
	@python=$$(command -v $(PYTHON) || command -v $(BIN)/python) || \
		$(call SAY_AND_STOP,"there is no $(PYTHON) here; install Python 3.11 or later or name one with PYTHON=..."); \
		"$$python" .ci/venv $(if $(filter file,$(origin PYTHON)),,--python-is-named)
