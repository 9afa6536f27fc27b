# Two commands on a fresh machine: `make demo` runs the main job, `make test` passes the tests.
# Both do all set-up themselves: a .venv of their own and everything from the package index.

PYTHON ?= python3
# Order and draws of `make test`: the same each time, so that a red run is about the change. Others
# with SEED=any number; `make test-long` draws anew.
SEED   ?= 20261126
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# A stamp names the extras that are installed; it is older than pyproject.toml when that changes.
DEMO  := $(VENV)/.demo-installed
TEST  := $(VENV)/.test-installed
LINT  := $(VENV)/.lint-installed
BENCH := $(VENV)/.bench-installed
TORCH := $(VENV)/.torch-installed

.PHONY: demo test test-long test-containers test-torch lint bench docs clean help

help:
	@echo "make demo             the main job on real data: record, kill, fault, recover, SQL"
	@echo "make test             the tests, with the short form of every promise's figure"
	@echo "make test-long        the full figures (10,000 kills and the like; an hour) in test-long.log"
	@echo "make test-containers  the testcontainers path, with an image made on this machine"
	@echo "make test-torch       the tests that need torch, which it installs; real ranks among them"
	@echo "make lint             ruff, mypy --strict"
	@echo "make bench            the benchmarks, each a ratio against a peer in the same run"
	@echo "make docs             whether the measured tables in docs/ are what their command prints"

demo: $(DEMO)
	@$(BIN)/qigstore demo $(ARGS)

test: $(TEST) $(LINT)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@QIGSTORE_TEST_SEED=$(SEED) $(BIN)/python -m pytest --numprocesses 2 --dist loadfile \
	  --randomly-seed=$(SEED) --hypothesis-seed=$(SEED) $(ARGS)

# Every verdict, duration and figure goes to test-long.log; ARGS=--resume goes on with one that was
# stopped, on the same tree. QIGSTORE_TEST_SHARE=0.1 does a tenth of each. Three at a time on two
# cores: many of them wait.
test-long: $(TEST)
	@$(BIN)/python -m pytest -m long --numprocesses 3 --dist load --maxschedchunk 1 \
	  --long-log=test-long.log $(ARGS)

test-containers: $(TEST)
	@$(PIP) install --quiet --editable '.[containers]'
	@$(BIN)/python -m pytest -m containers -s tests/containers $(ARGS)

test-torch: $(TEST) $(TORCH)
	@$(BIN)/python -m pytest $(ARGS) $$(grep -rl 'importorskip("torch"' tests)

lint: $(LINT)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(BENCH)
	@$(BIN)/python -m benchmarks.recording
	@$(BIN)/python -m benchmarks.geometry
	@$(BIN)/python -m benchmarks.recovery
	@$(BIN)/python -m benchmarks.query --rows 2000000
	@$(BIN)/python -m benchmarks.checkpoints
	@$(BIN)/python -m benchmarks.detectors
	@$(BIN)/python -m benchmarks.signals
	@$(BIN)/python -m benchmarks.stream

docs: $(TEST)
	@$(BIN)/python -m benchmarks.kernels_validity --check

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find qigstore -name '*.so' -delete

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "qigstore needs Python 3.11 or later; %s is %d.%d. Try: make PYTHON=python3.12" \
	  % (sys.executable, *sys.version_info[:2]))'
	@echo "setting up $(VENV) (about a minute, once)"
	@$(PYTHON) -m venv $(VENV)

# What is compiled as the package is installed.
SOURCES := pyproject.toml hatch_build.py $(wildcard qigstore/*/*.[ch] qigstore/*/*/*.[ch])

$(DEMO): $(SOURCES) | $(BIN)/python
	@$(PIP) install --quiet --editable '.[demo]'
	@touch $@

$(TEST): $(SOURCES) | $(BIN)/python
	@$(PIP) install --quiet --editable '.[demo,test]'
	@touch $@

$(LINT): pyproject.toml | $(BIN)/python
	@$(PIP) install --quiet --editable '.[lint]'
	@touch $@

$(TORCH): $(SOURCES) | $(BIN)/python
	@$(PIP) install --quiet --editable '.[torch]'
	@touch $@

$(BENCH): $(SOURCES) | $(BIN)/python
	@$(PIP) install --quiet --editable '.[bench,geometry-bench,server]'
	@touch $@
