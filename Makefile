# make demo    a small sweep, a small GAN and their figures    make test    everything that is checked
# make bench   measures it against what it could be
PYTHON ?= python3
BIN := .venv/bin
RESULTS ?= results

.PHONY: demo test bench

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: .venv/installed
	$(BIN)/python jobs/sweep.py --preset quick --storage $(RESULTS) --name demo
	$(BIN)/python analysis/trials.py $(RESULTS)/demo
	$(BIN)/python analysis/sweep.py $(RESULTS)/demo --out $(RESULTS)/figures
	$(BIN)/python jobs/gan.py --preset quick --storage $(RESULTS) --name demo-gan
	$(BIN)/python analysis/gan.py $(RESULTS)/demo-gan --out $(RESULTS)/figures

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

bench: .venv/installed
	$(BIN)/python tests/bench_sweep.py
	$(BIN)/python tests/bench_gan.py
