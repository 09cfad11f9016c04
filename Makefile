VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The real inputs that tests use where they are there; see CONTRIBUTING in README.md.
export CSPIPE_TEST_DATA ?= $(realpath ../shared)

.PHONY: demo test test-all lint types fix bench docs clean

demo: $(READY)  ## images to a report on the built-in defaults
	$(BIN)/cspipe run

test: $(READY)  ## all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2

test-all: $(READY)  ## the slow real runs too
	$(BIN)/pytest -q -m ""

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python docs/commands.py --check

types: $(READY)
	$(BIN)/mypy

fix: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## ratios against peers, see benchmarks/
	for script in benchmarks/store.py benchmarks/head.py; do $(BIN)/python $$script || exit 1; done

docs: $(READY)  ## the command reference, from the commands' own help
	$(BIN)/python docs/commands.py

# Some gigabytes come down: a broken download is resumed, then tried again after a pause.
$(READY): pyproject.toml
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --retries 10 --upgrade pip
	for pause in 0 20 60 180; do \
		sleep $$pause; \
		$(BIN)/python -m pip install --quiet --retries 10 --resume-retries 20 --editable '.[dev]' \
			&& touch $@ && exit 0; \
	done; exit 1

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
