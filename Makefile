# Every target makes the virtual environment it needs; CI calls only these targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

DEMO_ARGS      ?=
TEST_ARGS      ?=
BENCH_ARGS     ?=
REPRODUCE_ARGS ?=
WORKERS        ?= 2
# The demonstration uses what the development environment has, where there is one.
DEMO_STAMP := $(firstword $(wildcard $(STAMP)-dev) $(STAMP)-cli,plot,transformers)
BENCHMARKS := $(basename $(notdir $(sort $(wildcard benchmarks/*.py))))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test lint docs bench reproduce-quick clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 18

demo: $(DEMO_STAMP)  ## run the demonstration (DEMO_ARGS="...")
	$(BIN)/bochner demo $(DEMO_ARGS)

test: $(STAMP)-dev  ## run all tests: tests/, doctests, the code in the documents (TEST_ARGS="...")
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(TEST_ARGS)

lint: $(STAMP)-dev  ## check style, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(STAMP)-dev  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP)-bench  ## run every benchmark of benchmarks/, in 20 quiet minutes (BENCH_ARGS="--quick")
	@set -e; for name in $(BENCHMARKS); do \
		echo "== $$name"; $(BIN)/python -m benchmarks.$$name $(BENCH_ARGS); \
	done

reproduce-quick: $(STAMP)-dev  ## run every experiment in its small version (REPRODUCE_ARGS="...")
	OMP_NUM_THREADS=1 $(BIN)/bochner reproduce --quick --fresh --workers $(WORKERS) $(REPRODUCE_ARGS)

clean:  ## remove the virtual environment and all that was built
	rm -rf $(VENV) site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "bochner needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
			"name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of extras. The constraints pin torch from the first call of pip on, so that
# no other build of it is ever resolved.
$(STAMP)-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch '$@'
