# A machine with python3, its venv module and make is enough; everything else is locked in requirements/.
PYTHON ?= python3
UV ?= uv
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
NEEDED := curl strace

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test check test-deps perf lock clean

help:
	@echo 'make demo       push 3 GiB, kill it halfway, resume it, compare  (DEMO_FLAGS="--size 100M")'
	@echo 'make test       style, types, imports and tests                  (TEST_FLAGS="-k names")'
	@echo 'make test-deps  install the programs that tests call (root)'
	@echo 'make perf       the benchmarks                                   (PERF_FLAGS=...)'
	@echo 'make lock       resolve requirements/ again (needs uv)'
	@echo 'make clean      remove what make and the tests made'

demo: $(VENV)/.package
	$(BIN)/tdx demo $(DEMO_FLAGS)

# pytest comes last, so that the output ends with its closing line.
test: check
	$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report= --branch-floor=95 $(TEST_FLAGS)

check: $(VENV)/.test $(VENV)/.package
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache --no-logo

test-deps:
	@missing=; for program in $(NEEDED); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	if [ -z "$$missing" ]; then echo "test-deps: nothing to do ($(NEEDED) are here)"; \
	elif [ "$$(id -u)" != 0 ]; then echo "test-deps: missing$$missing; run 'make test-deps' as root" >&2; exit 1; \
	else apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $$missing; fi

perf: $(VENV)/.package
	$(BIN)/python -m perf $(PERF_FLAGS)

COMPILE := pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --custom-compile-command 'make lock'

lock:
	$(UV) $(COMPILE) pyproject.toml --extra test --group build -o requirements/test.txt
	$(UV) $(COMPILE) pyproject.toml -c requirements/test.txt -o requirements/run.txt
	$(UV) $(COMPILE) --group build -c requirements/test.txt -o requirements/build.txt

clean:
	rm -rf $(VENV) build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find engine cli tests perf -name __pycache__ -prune -exec rm -rf {} +

# --- the virtual environment, in steps that are repeated only when their inputs change ---

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tdx needs Python 3.11 or newer")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'no virtual environment: apt-get install python3-venv' >&2; exit 1; }
	@touch $@

$(VENV)/.run: requirements/run.txt requirements/build.txt | $(VENV)/.made
	$(PIP) install --require-hashes -r requirements/run.txt -r requirements/build.txt
	@touch $@

$(VENV)/.test: requirements/test.txt | $(VENV)/.made
	$(PIP) install --require-hashes -r requirements/test.txt
	@touch $@ $(VENV)/.run

$(VENV)/.package: pyproject.toml engine/tdx/version.py $(VENV)/.run
	$(PIP) install --no-index --no-deps --no-build-isolation --editable .
	@touch $@
