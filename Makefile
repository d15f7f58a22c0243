# `make` alone lists the targets. PYTHON=... chooses another interpreter, which gets a virtual environment of its own.

PYTHON ?= python3
ifeq ($(origin PYTHON), file)
VENV := .venv
else
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv-$(or $(VERSION),$(error PYTHON=$(PYTHON) does not run))
endif
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -o cache_dir=$(VENV)/pytest-cache
PROGRAMS := binance_funding_ws_daemon.py funding_api_server.py
CODE := $(PROGRAMS) binance_funding packaging tests bench docs

.DEFAULT_GOAL := help
.PHONY: help run demo check-host check test test-all format docs soak bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/run.stamp ## daemon and server against Binance, in the foreground; Ctrl-C ends both
	@$(BIN)/python packaging/foreground.py

demo: $(VENV)/demo.stamp ## the same against a simulated exchange; needs no network
	@$(BIN)/python packaging/foreground.py --demo

check-host: $(VENV)/run.stamp ## why it does or does not work on this host, a line for each step; 20 s at most
	@$(BIN)/python binance_funding_ws_daemon.py --check

check: $(VENV)/test.stamp ## lint, types, unit and simulated tests, size: under a minute
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy --cache-dir=$(VENV)/mypy-cache
	$(BIN)/vermin --quiet --no-tips --target=3.10- --violations $(PROGRAMS) binance_funding packaging
	$(PYTEST) -n 2 tests/unit tests/simulated
	@$(BIN)/python -m tests.support.size

# Most tests with real programs, a browser or a booted systemd wait rather than work. So more of them run at once than
# there are cores, and the machine with systemd runs beside them. Tests that load the machine run after the others.
# A part that fails does not stop the others. The last lines name the parts that failed.
test: export SKIPPED_TESTS = $(CURDIR)/$(VENV)/skipped-tests
test: check ## everything: check, then the tests with real programs, a browser and a booted systemd
	@rm -f $$SKIPPED_TESTS; failed=; \
	$(PYTEST) tests/systemd >$(VENV)/systemd.log 2>&1 & systemd=$$!; trap 'kill $$systemd; exit 130' INT TERM; \
	$(PYTEST) -n 4 --dist loadfile -m "not alone" tests/programs tests/browser || failed="programs and browser"; \
	wait $$systemd || failed="$${failed:+$$failed, }systemd"; cat $(VENV)/systemd.log; \
	$(PYTEST) -m alone tests/programs tests/browser || failed="$${failed:+$$failed, }alone"; \
	if test -s $$SKIPPED_TESTS; then echo "skipped tests:"; sort $$SKIPPED_TESTS | uniq -c; fi; \
	if test "$$failed"; then echo "FAILED: $$failed" >&2; exit 1; fi

test-all: ## check with every Python from 3.10 on that is found in PATH or installed by pyenv
	@set -e; pythons=$$($(PYTHON) tests/support/pythons.py); \
	for python in $$pythons; do echo "== make check PYTHON=$$python"; $(MAKE) --no-print-directory check PYTHON="$$python"; done; \
	echo "== make check passed with:"; for python in $$pythons; do "$$python" --version; done

format: $(VENV)/test.stamp ## format the code and mend what the linter can mend
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

docs: $(VENV)/test.stamp ## write the tables of docs/state-file.md from the schema
	$(BIN)/python -m tests.support.field_tables

soak: $(VENV)/test.stamp ## a day of faults in 24 minutes
	$(BIN)/python -m tests.soak

bench: $(VENV)/test.stamp ## what it costs, measured on this machine: writes bench/results.md
	$(BIN)/python -m bench

clean: ## remove virtual environments and caches
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/run.stamp: requirements.txt
	@test -x $(BIN)/pip || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "no virtual environment: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/demo.stamp: $(VENV)/run.stamp tests/exchange/requirements.txt
	$(PIP) -r tests/exchange/requirements.txt
	@touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp tests/requirements.txt
	$(PIP) -r tests/requirements.txt
	@touch $@

include install.mk
