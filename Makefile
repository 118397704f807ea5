# make compare   the comparison on real digits; sets everything up first
# make test      the tests; BACKENDS="tensorflow jax torch" for all three
# make lowest    tests of the library on JAX with the oldest versions that setup.cfg allows
# make check     lint, types, tests, documentation: what CI runs

PYTHON ?= python3
VENV ?= .venv
BACKENDS ?= tensorflow jax
# A plain "torch" takes the newest build with several GB of CUDA on Linux.
TORCH ?= torch==2.13.0

# Where tests run that say the same on every backend: it takes the least time on torch,
# and less on JAX than on TensorFlow.
ONCE_ON ?= $(lastword $(BACKENDS))

LOWEST ?= .venv-lowest
# What touches Keras's internals: formulas do not depend on its version.
LIBRARY := attach callbacks costs engine gradient_norms learning report tensorboard

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Quiet TensorFlow's start-up banner; errors still show.
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: compare test lowest check lint types docs clean

compare: $(VENV)/.with-tensorflow
	KERAS_BACKEND=tensorflow $(BIN)/keras-scaled-l2 compare --hidden 128,128 \
	    --seeds 20 --tune 5 --directory runs/compare

test: $(VENV)/.with-test $(BACKENDS:%=$(VENV)/.with-%)
	@set -e; for backend in $(BACKENDS); do \
	  echo "== tests on $$backend"; \
	  KERAS_BACKEND=$$backend ONCE_ON=$(ONCE_ON) $(BIN)/python -m pytest $(PYTEST); \
	done

# Warnings of that time about later versions of others are no errors here.
lowest: $(LOWEST)/.with-jax
	@echo "== tests on jax, lowest versions"
	KERAS_BACKEND=jax $(LOWEST)/bin/python -m pytest -o filterwarnings=default \
	    $(LIBRARY:%=tests/test_%.py)

lint: $(VENV)/.with-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.with-test
	$(BIN)/mypy

docs: $(VENV)/.with-docs $(VENV)/.with-tensorflow
	KERAS_BACKEND=tensorflow $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

check: lint types test docs

clean:
	rm -rf $(VENV) $(LOWEST) build docs/_build *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per extra; "make" installs again when the requirements change.
$(VENV)/.with-test: setup.cfg | $(BIN)/python
	$(PIP) install -q -e ".[test,experiments]"
	@touch $@

$(VENV)/.with-tensorflow: setup.cfg | $(BIN)/python
	$(PIP) install -q -e ".[tensorflow,experiments]"
	@touch $@

$(VENV)/.with-jax: setup.cfg | $(BIN)/python
	$(PIP) install -q -e ".[jax]"
	@touch $@

$(VENV)/.with-torch: setup.cfg | $(BIN)/python
	$(PIP) install -q "$(TORCH)"
	$(PIP) install -q -e ".[torch]"
	@touch $@

$(LOWEST)/.packages: setup.cfg
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) tests/lowest.py jax experiments >$(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -m pip --disable-pip-version-check install -q \
	    -r $(LOWEST)/requirements.txt "hypothesis>=6.100" "pytest>=8"
	@touch $@

$(LOWEST)/.with-jax: $(LOWEST)/.packages
	$(LOWEST)/bin/python -m pip --disable-pip-version-check install -q --no-deps -e .
	@touch $@

$(VENV)/.with-docs: setup.cfg | $(BIN)/python
	$(PIP) install -q -e ".[docs]"
	@touch $@
