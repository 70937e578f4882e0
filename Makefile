# make demo: train, evaluate and try the nano model. make test: the tests that end in
# minutes; make test-fast: a minute of them, while writing; make test-long: those that
# take longer (more meshes, kills, processes).
# make test-large: real weights against their reference. make fuzz: COUNT damaged files
# of every format. make check: ruff, its formatter and pyright. make docs: the site, with
# every link checked.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/demo
# Test files run at once; each process takes up to 6 GB.
JOBS ?= 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-fast test-long test-large fuzz check docs clean

demo: $(VENV)/.installed
	$(BIN)/nim4 demo --workdir=$(WORKDIR) $(if $(FROM_SCRATCH),--from_scratch)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile tests/text tests/context tests/test_layout.py tests/test_features.py tests/test_line_file.py tests/test_whole_file.py

test-long: $(VENV)/.installed-test
	$(PIP) -e '.[tpu-aot,eval-peers]'
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m long

test-large: $(VENV)/.installed-test
	$(PIP) -e '.[large,eval-peers]'
	$(BIN)/python -m pytest -m large tests/large tests/weights

fuzz: $(VENV)/.installed-test
	JAX_PLATFORMS=cpu $(BIN)/python tests/fuzz/fuzz.py --count=$(or $(COUNT),200000)

check: $(VENV)/.installed-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/check_types.py

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict --quiet --site-dir build/site

clean:
	rm -rf build dist *.egg-info runs/demo

# Each stamp is newer than setup.py once what it stands for is installed.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	  "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + \
	  "; name another with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python setup.py
	@echo "installing into $(VENV) (a minute or two, once)"
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.installed-check: $(VENV)/.installed
	$(PIP) -e '.[check]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) -e '.[docs]'
	@touch $@
