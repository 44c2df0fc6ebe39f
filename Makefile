# Everything a user types. `make help` lists it.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow report clean lock

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv from the lock file (demo and test do this themselves)

$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else f"Python 3.10 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}; name another: make setup PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -q -r requirements.lock
	@touch $(READY)

demo: setup  ## a small real sweep on text that is on your disk already, and its report (about ten minutes on two cores)
	$(PY) run.py -m experiment=quick
	$(PY) report.py 'runs=[multirun/quick]' out=multirun/quick/report

test: setup  ## the fast tests (a few minutes, no network, no GPU)
	$(PY) -m pytest -q

test-slow: setup  ## the slow tests too
	$(PY) -m pytest -q -m 'slow or not slow'

report: setup  ## the report over everything under multirun/, pretrain/, finetune/
	$(PY) report.py

lock: setup  ## make requirements.lock anew (needs the network)
	$(PY) -m pip install -q uv
	{ sed -n '/^#/p' requirements.lock; $(VENV)/bin/uv pip compile --universal --python-version 3.10 --no-header --no-annotate \
	  --extra test pyproject.toml | grep -Ev '^(nvidia-|cuda-|triton)'; } > requirements.new && mv requirements.new requirements.lock

clean:  ## remove the virtual environment and caches (runs stay)
	rm -rf $(VENV) .pytest_cache
