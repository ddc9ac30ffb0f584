# Every target does its own set-up (scripts/setup.sh) and does it once: the stamps in .venv are newer
# than pyproject.toml and constraints.txt until one of those changes.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:

# Debian puts nginx and haproxy where only root looks.
export PATH := $(PATH):/usr/sbin:/sbin
export PYTHON

BIN := .venv/bin
# Test processes at once. The suite drives real servers, so more than the cores there are only adds noise.
JOBS ?= 2
TOOLS := redis-server nginx haproxy wrk promtool curl openssl
IMAGE_TOOLS := mmdebstrap systemd-nspawn ip
PYTEST := $(BIN)/python -m pytest
SETUP_INPUTS := pyproject.toml constraints.txt scripts/setup.sh

.PHONY: help setup tools run test check wire e2e nightly conformance bench bench-smoke load dist docs image clean-machine clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: .venv/.ready-run ## two example servers, the proxy in front, a client that shows a session stick
	@$(BIN)/mcp-proxy demo

test: .venv/.ready-dev tools ## unit, wire and e2e tests with branch coverage
	@mkdir -p build/coverage
	$(BIN)/coverage erase
	$(BIN)/python -m tests.tools.fetch
	$(BIN)/coverage run -m pytest -n $(JOBS) --dist loadfile -m 'not conformance and not privileged'
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: .venv/.ready-dev ## style, types, architecture, and what must not be committed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir build/import-linter
	scripts/portable.sh

wire: .venv/.ready-dev tools ## what goes over the wire, byte by byte, well-formed and hostile
	$(PYTEST) tests/wire

e2e: .venv/.ready-dev tools ## official clients and servers through the proxy
	$(PYTEST) tests/e2e -m 'not conformance'

nightly: .venv/.ready-dev tools ## state machine of the session registry: 200 new histories for every store
	HYPOTHESIS_PROFILE=nightly $(PYTEST) tests/state

conformance: .venv/.ready-dev ## the official conformance suite, direct and through the proxy
	$(BIN)/python -m tests.conformance

bench: .venv/.ready-dev tools ## cost per call beside nginx and HAProxy; takes minutes, wants a quiet machine
	$(BIN)/python -m tests.bench

bench-smoke: .venv/.ready-dev tools ## does the benchmark run at all: short, small, no goals
	$(BIN)/python -m tests.bench --smoke

load: .venv/.ready-dev tools ## 60 seconds of every kind of user: nginx, two proxies, Redis; report in build/load
	$(BIN)/python -m tests.load

dist: .venv/.ready-dev ## sdist, wheel and bill of materials in dist/, built twice and compared
	scripts/release-build.sh

image: .venv/.ready-dev tools ## build and run image, compose.yaml and the systemd unit, without an engine; needs root
	@scripts/setup.sh tools $(IMAGE_TOOLS)
	$(BIN)/python -m tests.tools.fetch
	$(PYTEST) tests/deploy -m privileged

clean-machine: ## a fresh Debian 12, a fresh clone, and in it make run and make test; needs root
	@scripts/setup.sh tools mmdebstrap
	@scripts/clean-machine.sh run test

docs: .venv/.ready-dev ## the configuration reference, and all of docs as a site in build/site
	@mkdir -p build
	$(BIN)/mcp-proxy schema --markdown > build/configuration.md
	mv build/configuration.md docs/configuration.md
	$(BIN)/zensical build --strict --clean

setup: .venv/.ready-dev tools ## what test and check need, without running them

tools:
	@scripts/setup.sh tools $(TOOLS)

.venv/.ready-%: $(SETUP_INPUTS)
	@scripts/setup.sh python $*

clean: ## remove everything that make has made
	rm -rf .venv .cache build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
