# `make demo` and `make test` need Python 3.11 or newer, git and make; they do the rest themselves.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow check setup lock clean
.DEFAULT_GOAL := test

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Vitrail needs Python 3.11 or newer; none was found. Name one: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/vitrail demo

# Two processes of one thread each: more threads than cores wait for each other.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow and not gpu"

test-slow: setup
	$(BIN)/pytest -m "slow"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Rewrites the pinned set from pyproject.toml; torch and torchvision stay the oldest pair that is supported.
lock: setup
	printf 'torch==2.11.0\ntorchvision==0.26.0\n' > $(VENV)/oldest.txt
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --quiet --upgrade \
		--constraint $(VENV)/oldest.txt --no-emit-index-url --no-emit-find-links --no-header --no-annotate --output-file constraints.txt

clean:
	rm -rf $(VENV) runs demo dist
