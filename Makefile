# make demo | test | check | bench | clean. Needs Python 3.11 and nothing else: each makes what it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check check-style bench clean

demo: $(VENV)/.demo
	$(BIN)/flawmap demo --out demo
	@echo
	@echo "The report is demo/elpv-evaluation/report.html; open it in a browser."

# Files of tests side by side, on up to four cores, each process with one thread.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile

check-style: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

check: check-style
	$(BIN)/python -m pytest -m "not slow and not data" tests/test_layers.py tests/test_door.py tests/verdict tests/images

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/promise.py
	$(BIN)/python benchmarks/results.py

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .ruff_cache

# Made anew when pyproject.toml changes.
$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e ".[train,demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/pip install --quiet -e ".[train,demo,dev]"
	@touch $@
