# Everything happens in .venv, made on first use from the hashed lock files.
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
LOCK := uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help install install-dev dev test test-faults test-containers bench-check lint format types imports docs lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: .venv/.installed  ## create the environment with what the product needs

install-dev: .venv/.installed-dev  ## the same, with what developing it needs

dev: install  ## start the embedded aggregator on port 8080
	@$(BIN)/aggregator dev $(ARGS)

test: install-dev  ## run the whole suite; what it cannot use here is listed at the end
	@$(BIN)/python -m pytest -m "not slow" -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-faults: install-dev  ## break it in every way on the list; one scenario by name: K=zombie
	@$(BIN)/python -m pytest tests/faults $(if $(K),-k "$(K)",-n 2 --dist loadfile --no-loadscope-reorder) $(ARGS)

test-containers: install-dev  ## build the image and run docker-compose.yml for real; says why where it cannot
	@$(BIN)/python -m pytest tests/containers -v --durations=0 --durations-min=5 $(ARGS)

bench-check: install-dev  ## fail if we have become slower beside the limits than the kept results say
	@$(BIN)/python -m benchmarks.check $(ARGS)

lint: install-dev  ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install-dev  ## put code into the agreed format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install-dev  ## mypy, strict
	$(BIN)/mypy

imports: install-dev  ## who may import whom
	$(BIN)/lint-imports

docs: install-dev  ## write the generated reference pages anew
	$(BIN)/python docs/generate.py

lock:  ## resolve the dependencies anew (needs uv on the path)
	$(LOCK) pyproject.toml -o requirements.lock >/dev/null
	$(LOCK) --group build -c requirements.lock -o requirements-build.lock >/dev/null
	$(LOCK) --group image -o deploy/requirements-uv.lock >/dev/null
	$(LOCK) pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock >/dev/null

clean:  ## remove the environment and everything built
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and was not found; install it," \
		"or name it: make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) cannot create a virtual environment;" \
		"on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

.venv/.installed: requirements.lock requirements-build.lock pyproject.toml | .venv/bin/python
	@echo "Installing the locked dependencies into .venv ..."
	@$(PIP) install --quiet --require-hashes -r requirements.lock -r requirements-build.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.installed-dev: requirements-dev.lock .venv/.installed
	@echo "Installing the development dependencies into .venv ..."
	@$(PIP) install --quiet --require-hashes -r requirements-dev.lock
	@touch $@
