# make run    daemon and server against Binance, in the foreground; Ctrl-C ends both
# make demo   the same against a simulated exchange: needs nothing outside this machine
# make test   lint, types, tests
# make soak   a whole day of faults in 24 minutes; make bench   what it all costs: bench/results.md
# make install, make uninstall (as root): the systemd service

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROGRAMS := binance_funding_ws_daemon.py funding_api_server.py
CODE := $(PROGRAMS) binance_funding packaging tests bench docs

.PHONY: run demo test check format soak bench clean

run: $(VENV)/run.stamp
	@$(BIN)/python packaging/foreground.py

demo: $(VENV)/test.stamp
	@$(BIN)/python packaging/foreground.py --demo

# Most tests wait rather than work, so several run at once; those that boot a systemd have the machine to themselves.
test: check
	$(BIN)/python -m pytest -n 4 --dist loadfile --ignore tests/test_systemd.py
	$(BIN)/python -m pytest tests/test_systemd.py

check: $(VENV)/test.stamp
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/vermin --quiet --no-tips --target=3.10- --violations $(PROGRAMS) binance_funding

format: $(VENV)/test.stamp
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

soak: $(VENV)/test.stamp
	$(BIN)/python -m tests.soak

bench: $(VENV)/test.stamp
	$(BIN)/python -m bench

$(VENV)/run.stamp: requirements.txt
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
	  { echo "no virtual environment: on Debian and Ubuntu, apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp tests/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

include install.mk
