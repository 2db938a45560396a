# One command for everything: `make demo`, `make test`; `make help` lists the rest.
# Needs Python 3.11 or newer, pip and make; everything else is fetched into .uv, .venv and .peers.

.DELETE_ON_ERROR:
.SUFFIXES:
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
UV_VERSION := 0.13.8
PY := .venv/bin/python
READY := .venv/ready

# A uv of the machine's own comes first; ours is found by the programs we start as well.
export PATH := $(PATH):$(CURDIR)/.uv/bin
export UV_NO_PROGRESS := 1
# Some images forbid Python to keep what it compiled: each process then takes twice as long to start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(READY) ## install everything the project needs into .venv, as locked

.PHONY: demo
demo: $(READY) ## tell the story of a paid request on loopback, with play money
	@.venv/bin/farebox demo $(ARGS)

# More workers than a small machine has cores: many tests wait, for a block or a lapse of time.
.PHONY: test
test: $(READY) peers ## run all tests (ARGS="-k name" for some, ARGS=-n0 in one process)
	@$(PY) -m pytest -n 3 $(ARGS)

.PHONY: check
check: $(READY) ## format, lint, types, import contracts, the lock
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy src tests $(wildcard benchmarks examples)
	.venv/bin/lint-imports --no-logo
	@$(PY) -m pytest -q tests/architecture

# A seed that fails is told with the command that runs it again, step by step.
SECONDS ?= 60
.PHONY: soak
soak: $(READY) ## live through fresh seeds of the simulation (SECONDS=3600, ARGS="--first 7")
	@$(PY) -m tests.simulation --seconds $(SECONDS) $(ARGS)

.PHONY: bench
bench: $(READY) ## measure the ledger on both databases, gateway and channels (ARGS=--json)
	@$(PY) -m benchmarks.ledger $(ARGS)
	@$(PY) -m benchmarks.postgres $(ARGS)
	@$(PY) -m benchmarks.gateway --ecash $(ARGS)
	@$(PY) -m benchmarks.channels $(ARGS)

.PHONY: format
format: $(READY) ## format the code and mend what the linter can mend
	.venv/bin/ruff check --fix-only .
	.venv/bin/ruff format .

.PHONY: example
example: $(READY) ## write farebox.example.toml anew, after a setting has changed
	@$(PY) -c 'from farebox.settings import render_default_settings as r; print(r(), end="")' \
		> farebox.example.toml

.PHONY: lock
lock: .uv/ready ## write requirements.lock anew, after a dependency has changed
	uv pip compile --quiet --universal --generate-hashes --all-extras --no-emit-index-url \
		--custom-compile-command "make lock" pyproject.toml --output-file requirements.lock

# Without the peers their tests are skipped, or fail where FAREBOX_REQUIRE_PEERS=1 is set.
.PHONY: peers
peers: $(READY) ## install the foreign software that tests talk to
	@$(PY) -m tests.peers.install || echo "the tests with what is missing cannot run"

.PHONY: clean
clean: ## remove everything that was made here
	rm -rf .venv .uv .peers dist .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Nothing is built from packages that the lock doesn't name: hence --no-build-isolation.
$(READY): requirements.lock pyproject.toml | .uv/ready
	@$(PY) -c '' 2> /dev/null || uv venv --quiet --clear --python "$(PYTHON)" .venv
	uv pip install --quiet --python $(PY) --require-hashes --requirement requirements.lock
	uv pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable .
	@touch $@

# pip writes into a directory of ours also where the system's Python is "externally managed"
# (PEP 668), and needs no venv module for it.
.uv/ready:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: apt install python3, or make PYTHON=…" >&2; exit 1; }
	@mkdir -p .uv
	@uv --version > /dev/null 2>&1 || "$(PYTHON)" -m pip --version > /dev/null 2>&1 || \
		{ echo "pip is needed: apt install python3-pip" >&2; exit 1; }
	@uv --version > /dev/null 2>&1 || "$(PYTHON)" -m pip install --quiet \
		--disable-pip-version-check --root-user-action ignore --target .uv uv==$(UV_VERSION)
	@touch $@
