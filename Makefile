# make demo runs the main job, make test the tests: each needs only Python 3.11 to 3.13 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Idle threads spin only briefly before they sleep: two processes side by side would starve each other.
export GOMP_SPINCOUNT ?= 1000

.PHONY: venv demo test test-learning bench studies offline-data lint docs tiny clean

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Upslope needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}. Try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,bench,mujoco]'
	touch $@

demo: venv
	$(BIN)/upslope train grpo --config demo.yaml --out runs/demo --resume

test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-learning: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m learning -n 2 --timeout 1800

studies: venv  # an hour on two cores; goes on where it was stopped
	$(BIN)/python benchmarks/studies.py

offline-data: venv  # logs of four environments in five qualities, in runs/offline-data; goes on where it was stopped
	$(BIN)/python benchmarks/offline_data.py $(ONLY)

bench: venv  # all parts, or some: make bench ONLY="pairs distill"
	$(BIN)/python benchmarks/run.py --out docs/results/bench.md $(if $(ONLY),--only $(ONLY))

lint: venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[lint]'
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

tiny: venv
	$(BIN)/python scripts/make_tiny.py tiny
	$(BIN)/python scripts/make_tiny.py tiny-teacher --steps 2500
	$(BIN)/python scripts/make_preferences.py

clean:
	rm -rf site docs/methods build
