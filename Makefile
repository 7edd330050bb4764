# make demo      a small sweep, a small GAN, and a page of both
# make check     fast checks in two minutes: linter, types, tests without Ray
# make test      all checks
# make compat    jobs and analysis with the oldest and the newest versions of the packages
# make bench     benchmarks, each side by side with what it is compared with
# make soak      half an hour of faults on a cluster of three hosts
# make results   the report's experiments in full, for docs/: hours; re-run it to resume
# make constraints   all checks with the newest packages, whose versions go to constraints.txt
PYTHON ?= python3
BIN := .venv/bin
RESULTS ?= results

.PHONY: demo lint check test compat bench soak results constraints test-tools

# Installs the versions of the last green run, if $(PYTHON) is the Python that it used.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]' \
	  $$(grep -qF "# $$($(PYTHON) --version | cut -d. -f1-2)." constraints.txt && echo -c constraints.txt)
	touch $@

demo: .venv/installed
	$(BIN)/python jobs/sweep.py --preset quick --storage "$(RESULTS)" --name demo
	$(BIN)/python jobs/gan.py --preset quick --storage "$(RESULTS)" --name demo-gan
	$(BIN)/python analysis/trials.py "$(RESULTS)/demo"
	$(BIN)/python analysis/report.py "$(RESULTS)/demo" "$(RESULTS)/demo-gan" --out "$(RESULTS)/report.html"

# Half the preset's palindromes: with all of them it takes twice as long.
FIGURES := --num-sequences 50000 --storage "$(RESULTS)"
COLUMNS := cell,init,optimizer,grad_clip,length,seed,epoch,train_loss,val_loss,val_accuracy,train_seconds

results: .venv/installed
	$(BIN)/python jobs/sweep.py $(FIGURES) --preset figures-adam --name figures-adam
	$(BIN)/python jobs/sweep.py $(FIGURES) --name figures-rmsprop
	$(BIN)/python jobs/gan.py --storage "$(RESULTS)" --name gan-report
	$(BIN)/python analysis/sweep.py "$(RESULTS)/figures-adam" --out docs/results/adam
	$(BIN)/python analysis/sweep.py "$(RESULTS)/figures-rmsprop" --out docs/results/rmsprop
	$(BIN)/python analysis/compare.py "$(RESULTS)/figures-rmsprop" "$(RESULTS)/figures-adam" --out docs/results
	$(BIN)/python analysis/trials.py "$(RESULTS)/figures-adam" "$(RESULTS)/figures-rmsprop" --epochs \
	  --columns $(COLUMNS) --csv docs/results/epochs.csv.gz
	$(BIN)/python analysis/gan.py "$(RESULTS)/gan-report" --out docs/gan
	$(BIN)/python analysis/report.py "$(RESULTS)/figures-rmsprop" "$(RESULTS)/figures-adam" "$(RESULTS)/gan-report" \
	  --out "$(RESULTS)/report.html"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: lint
	$(PYTEST) -m "not ray"

test: lint test-tools .venv-mlflow/installed
	$(PYTEST)

# The MLflow server of the tests, in an environment of its own: it pins versions of packages that
# others need newer. Without it, the tests that need it are skipped and say so. Most of its files are
# never imported, and need no bytecode.
.venv-mlflow/installed:
	$(PYTHON) -m venv .venv-mlflow \
	  && .venv-mlflow/bin/python -m pip install --quiet --no-compile 'mlflow>=3,<4' && touch $@ \
	  || echo "some tests will be skipped: mlflow cannot be installed"

# The hosts of the tests are network namespaces, each with an sshd, some with a slurmd, and pages are
# opened in a browser. Where these tools are missing, the tests that need them are skipped and say so.
test-tools:
	@for tool in ip sshd rsync chromium chromedriver munged slurmctld slurmd; do \
	  PATH=$$PATH:/usr/sbin command -v $$tool > /dev/null || missing=yes; done; \
	if [ "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends \
	    iproute2 openssh-server rsync chromium chromium-driver munge slurm-wlm \
	  || echo "some tests will be skipped: apt-get failed"; fi

compat: .venv/installed
	$(BIN)/python tests/compat.py

constraints:
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch .venv/installed
	$(MAKE) test || { rm .venv/installed; exit 1; }
	(echo "# $$($(PYTHON) --version), the last green run; renewed by: make constraints"; \
	  $(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//') > constraints.txt
	touch .venv/installed

bench: .venv/installed
	$(BIN)/python tests/bench_sweep.py
	$(BIN)/python tests/bench_gan.py
	$(BIN)/python tests/bench_neighbor.py

soak: .venv/installed test-tools
	$(BIN)/python tests/soak.py
