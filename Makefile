# Every chore of the project is a target here, and CI calls the same words. Needs Python 3.11+ only.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= 2
ARGS ?=

# One thread a process: parallelism is over test workers, and answers are the same bits on any machine.
export OMP_NUM_THREADS := 1

# Looked up only when the environment is built; the version that the lock was made with comes first.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

.PHONY: help setup check format test peers slow faults wheel-test docs lint-docker demo demo-quick serve schema lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: $(INSTALLED) ## Make .venv and install medae with all that development needs

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 or newer with venv (Debian: apt-get install python3-venv)" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt hatchling
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

check: $(INSTALLED) ## Lint, format and types, nothing is changed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## Format, and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(INSTALLED) ## The tests (ARGS="tests/test_io.py -x" for some of them)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

peers: $(INSTALLED) ## Tests against other programs (dciodvfy, dcmtk, Orthanc, Chromium)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m peers -rs $(ARGS)

slow: $(INSTALLED) ## Tests that take minutes (trainings, the wheel)
	$(BIN)/python -m pytest -q -m slow --timeout 1800 -rs $(ARGS)

faults: $(INSTALLED) ## All that can go wrong with the service, on purpose: minutes; wants chromium
	$(BIN)/python -m pytest -q -m "not gpu and not bench" --timeout 1800 -rs tests/test_service_*.py tests/peers/test_chromium.py $(ARGS)

wheel-test: $(INSTALLED) ## Build the wheel and use it in an empty environment
	$(BIN)/python -m pytest -q -m slow --timeout 1800 tests/test_wheel.py $(ARGS)

demo: $(INSTALLED) ## The whole way on real images, ending in pictures under demo/
	$(BIN)/medae demo --out demo

demo-quick: $(INSTALLED) ## The same way with trainings of a few seconds
	$(BIN)/medae demo --quick --out demo-quick

docs: $(INSTALLED) ## The documentation as pages under site/; fails on a link that leads nowhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint-docker: $(INSTALLED) ## Lint the Dockerfile
	$(BIN)/hadolint Dockerfile

serve: $(INSTALLED) ## The HTTP service (ARGS="runs/nuclei/package --port 3000")
	$(BIN)/medae serve $(ARGS)

schema: $(INSTALLED) ## Write configs/experiment.schema.json, from which editors complete a config
	$(BIN)/medae schema --out configs/experiment.schema.json

lock: $(INSTALLED) ## Write constraints.txt from what is installed here
	@{ sed -n '/^#/p' constraints.txt; \
	  $(BIN)/pip freeze --exclude-editable --exclude pip --exclude setuptools | sed -E '/^(#|-e )/d; s/\+(cpu|cu[0-9]+)$$//'; \
	} > constraints.new
	mv constraints.new constraints.txt

clean: ## Remove what the tools leave behind; keeps .venv, runs/ and demo/
	rm -rf dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find medae services tests benchmarks -name __pycache__ -type d -exec rm -rf {} +
