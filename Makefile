# Works with GNU make 3.81, the one macOS has.

# A name on the PATH may be a launcher with nothing behind it, so each candidate is run.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

BIN := .venv/bin
# Stamps: what each step of the set-up depends on decides whether it runs again.
MADE := .venv/.made
UV := $(BIN)/uv
INSTALL := $(UV) pip install --python $(BIN)/python
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --custom-compile-command "make lock" $(LOCK_FLAGS)
# The installer compiles this one itself (farm/builds/wheel.py), from a lock of its own.
ENGINE := llama-cpp-python

# Relative to where make runs, so that spaces in the checkout's path do no harm.
HOME_HERE = FARM_HOME="$${FARM_HOME:-$$PWD/.farm}"

# llama-server and its companions: those that are named, else compiled once.
TOOLS = tools="$${FARM_LLAMA_TOOLS:-$$($(BIN)/farm builds compile --json | $(BIN)/python -c \
	'import json, sys; print(json.load(sys.stdin)[0]["folder"])')}"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-dev demo dashboard test check lock bench-engine clean FORCE

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup: $(MADE)-project $(MADE)-engine ## install everything into .venv; compiles llama.cpp once (minutes)
	@echo 'Ready: $(BIN)/farm --help'

setup-dev: $(MADE)-dev setup ## setup, and what the tests and checks need

demo: setup ## measure a small model pair from start to recommendation (state in .farm)
	@$(HOME_HERE) $(BIN)/farm demo

dashboard: setup ## open the dashboard on the state in .farm
	@$(HOME_HERE) $(BIN)/farm dashboard

test: setup-dev ## run the tests; compiles llama-server once (minutes)
	@$(TOOLS) && FARM_LLAMA_TOOLS="$$tools" \
		FARM_LLAMA_SOURCE="$$($(BIN)/python -m farm.builds.source)" \
		FARM_TEST_CHROMIUM="$$(sh scripts/chromium.sh)" $(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(MADE)-dev ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-engine: setup-dev ## the engine's speed, the farm's overhead, on a quiet machine (options: BENCH_ARGS)
	@$(TOOLS) && FARM_LLAMA_TOOLS="$$tools" $(BIN)/python -m tests.bench.engine $(BENCH_ARGS)

lock: $(MADE)-python ## resolve pyproject.toml into the lock files again (newest: LOCK_FLAGS=--upgrade)
	$(COMPILE) pyproject.toml --extra postgres --no-emit-package $(ENGINE) -o requirements.lock
	$(COMPILE) pyproject.toml --extra postgres --group dev --no-emit-package $(ENGINE) \
		-c requirements.lock -o requirements-dev.lock
	sed -n 's/^ *"\($(ENGINE)==[^"]*\)".*/\1/p' pyproject.toml | \
		$(COMPILE) --no-deps - -o requirements-engine.lock

clean: ## remove .venv and tool caches; keeps .farm and its results
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build

$(MADE)-python: scripts/venv.sh
	@sh scripts/venv.sh "$(PYTHON)" .venv
	@touch $@

$(MADE)-runtime: requirements.lock $(MADE)-python
	$(INSTALL) --require-hashes -r requirements.lock
	@touch $@

$(MADE)-project: pyproject.toml $(MADE)-runtime
	$(INSTALL) --no-deps --editable .
	@touch $@

$(MADE)-dev: requirements-dev.lock $(MADE)-project
	$(INSTALL) --require-hashes -r requirements-dev.lock
	@touch $@

# A later `make` without CMAKE_ARGS keeps the backend that was asked for; another value rebuilds.
$(MADE)-cmake-args: $(MADE)-python FORCE
	@if [ -n "$${CMAKE_ARGS+given}" ] || [ ! -f $@ ]; then \
		printf '%s' "$$CMAKE_ARGS" | cmp -s - $@ || printf '%s' "$$CMAKE_ARGS" > $@; fi

$(MADE)-engine: requirements-engine.lock farm/builds/wheel.py farm/builds/compile.py farm/builds/recipe.py farm/builds/llama_cpp.cmake \
		$(MADE)-cmake-args $(MADE)-runtime
	@CMAKE_ARGS="$$(cat $(MADE)-cmake-args)" $(BIN)/python -m farm.builds.wheel
	@touch $@
