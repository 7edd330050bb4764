# make demo      a small sweep, a small GAN, and a page of both
# make check     fast checks in two minutes: linter, types, tests without Ray
# make test      all checks
# make compat    jobs and analysis with the oldest and the newest versions of the packages
# make bench     benchmarks, each side by side with what it is compared with
# make soak      half an hour of faults on a cluster of three hosts
# make results   the experiments of docs/ in full: hours; re-run it to resume. Parts of it:
#                results-figures, results-horizon, results-copy-first, results-gan
# make constraints   all checks with the newest packages, whose versions go to constraints.txt
PYTHON ?= python3
BIN := .venv/bin
RESULTS ?= results

.PHONY: demo lint check test compat bench soak constraints test-tools
.PHONY: results results-figures results-horizon results-copy-first results-gan

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

SWEEP := $(BIN)/python jobs/sweep.py --storage "$(RESULTS)"
TRIALS := $(BIN)/python analysis/trials.py --epochs
HORIZON := $(BIN)/python analysis/horizon.py
# Columns of docs/*/epochs.csv.gz.
COLUMNS := cell,init,length,seed,epoch,train_loss,val_loss,val_accuracy,train_seconds
HORIZON_COLUMNS := $(COLUMNS),val_accuracy_within_epoch,epoch_seconds

results: results-figures results-horizon results-copy-first results-gan
	$(BIN)/python analysis/report.py "$(RESULTS)/figures-rmsprop" "$(RESULTS)/figures-adam" "$(RESULTS)/gan-report" \
	  --out "$(RESULTS)/report.html"

# Figures 1-3 with half the preset's palindromes: with all of them it takes twice as long.
results-figures: .venv/installed
	$(SWEEP) --preset figures-adam --num-sequences 50000 --name figures-adam
	$(SWEEP) --preset figures --num-sequences 50000 --name figures-rmsprop
	$(SWEEP) --lengths 3 --seeds 0-9 --num-sequences 100 --batch-size 80 --epochs 1000 --name three-digits
	$(BIN)/python analysis/sweep.py "$(RESULTS)/figures-adam" --out docs/results/adam
	$(BIN)/python analysis/sweep.py "$(RESULTS)/figures-rmsprop" --out docs/results/rmsprop
	$(BIN)/python analysis/compare.py "$(RESULTS)/figures-rmsprop" "$(RESULTS)/figures-adam" --out docs/results
	$(TRIALS) "$(RESULTS)/figures-adam" "$(RESULTS)/figures-rmsprop" --columns optimizer,grad_clip,$(COLUMNS) \
	  --csv docs/results/epochs.csv.gz
	$(TRIALS) "$(RESULTS)/three-digits" --columns cell,seed,epoch,val_accuracy --csv docs/results/three_digits/epochs.csv.gz

# Recipes, initializations and ablations on seeds that were not looked at while they were chosen.
results-horizon: .venv/installed
	$(SWEEP) --preset recipe --cells lstm,rnn --seeds 20-29 --name fresh-recipe
	$(SWEEP) --preset recipe --cells gru --seeds 20-24 --name fresh-gru
	$(SWEEP) --preset recipe --cells lstm,rnn --lengths 100 --seeds 20-29 --name fresh-100
	$(SWEEP) --preset recipe --cells gru --lengths 100 --seeds 20-24 --name fresh-100-gru
	$(SWEEP) --preset horizon --cells rnn --inits orthogonal,uniform --seeds 20-24 --name fresh-inits-rnn
	$(SWEEP) --preset horizon --cells rnn --inits uniform --lengths 35,50,150 --seeds 20-24 --probe \
	  --name fresh-uniform
	$(SWEEP) --preset recipe --lengths 200 --seeds 20-22 --name fresh-200
	$(SWEEP) --preset horizon --cells lstm,gru --inits chrono,uniform --seeds 20-22 \
	  --name fresh-inits-lstm-gru
	$(SWEEP) --preset horizon --ablate --cells lstm,rnn --seeds 20-22 --name fresh-ablation
	$(HORIZON) "$(RESULTS)/fresh-recipe" --out docs/horizon/fresh
	$(HORIZON) "$(RESULTS)/fresh-gru" --out docs/horizon/fresh-gru
	$(HORIZON) "$(RESULTS)/fresh-100" "$(RESULTS)/fresh-100-gru" --out docs/horizon/fresh-100
	$(HORIZON) "$(RESULTS)/fresh-inits-rnn" --out docs/horizon/fresh-inits
	$(HORIZON) "$(RESULTS)/fresh-uniform" --out docs/horizon/fresh-uniform
	$(HORIZON) "$(RESULTS)/fresh-200" --out docs/horizon/fresh-200
	$(HORIZON) "$(RESULTS)/fresh-inits-lstm-gru" --out docs/horizon/fresh-inits-lstm-gru
	$(HORIZON) "$(RESULTS)/fresh-ablation" --out docs/horizon/fresh-ablation
	$(TRIALS) "$(RESULTS)/fresh-recipe" --columns $(HORIZON_COLUMNS) \
	  --csv docs/horizon/fresh/epochs.csv.gz
	$(TRIALS) "$(RESULTS)/fresh-gru" --columns $(HORIZON_COLUMNS) \
	  --csv docs/horizon/fresh-gru/epochs.csv.gz
	$(TRIALS) "$(RESULTS)/fresh-100" "$(RESULTS)/fresh-100-gru" --columns $(HORIZON_COLUMNS) \
	  --csv docs/horizon/fresh-100/epochs.csv.gz
	$(TRIALS) "$(RESULTS)/fresh-inits-rnn" --columns $(HORIZON_COLUMNS) \
	  --csv docs/horizon/fresh-inits/epochs.csv.gz
	$(TRIALS) "$(RESULTS)/fresh-uniform" --columns $(COLUMNS),grad_norm_h,spectral_radii \
	  --csv docs/horizon/fresh-uniform/epochs.csv.gz
	$(TRIALS) "$(RESULTS)/fresh-200" --columns $(HORIZON_COLUMNS) \
	  --csv docs/horizon/fresh-200/epochs.csv.gz
	$(TRIALS) "$(RESULTS)/fresh-inits-lstm-gru" --columns $(HORIZON_COLUMNS) \
	  --csv docs/horizon/fresh-inits-lstm-gru/epochs.csv.gz
	$(TRIALS) "$(RESULTS)/fresh-ablation" --columns variant,$(HORIZON_COLUMNS) \
	  --csv docs/horizon/fresh-ablation/epochs.csv.gz

# Benchmark 1 of Vecoven, Ernst & Drion (2021).
COPY_FIRST := $(SWEEP) --preset copy-first --probe --name copy-first
results-copy-first: .venv/installed
	$(COPY_FIRST)
	$(COPY_FIRST) --lengths 50,100 --inits keras,chrono --seeds 0-2
	$(COPY_FIRST) --lengths 300 --inits chrono
	$(COPY_FIRST) --lengths 300 --inits keras --cells lstm --cpus-per-trial 2  # both cores: hours
	$(BIN)/python analysis/sweep.py "$(RESULTS)/copy-first" --num-test-samples 50000 --out docs/copy-first
	$(TRIALS) "$(RESULTS)/copy-first" --csv docs/copy-first/epochs.csv.gz \
	  --columns cell,init,length,seed,epoch,train_loss,val_loss,grad_norm,train_seconds,epoch_seconds,hardware

# The GAN with three seeds, and the usual public script.
GAN := $(BIN)/python jobs/gan.py --storage "$(RESULTS)"
results-gan: .venv/installed
	$(GAN) --seed 0 --name gan-report
	$(GAN) --seed 1 --name gan-seed1
	$(GAN) --seed 2 --name gan-seed2
	$(BIN)/python analysis/gan.py "$(RESULTS)/gan-report" --out docs/gan
	$(BIN)/python analysis/compare.py "$(RESULTS)/gan-report" "$(RESULTS)/gan-seed1" "$(RESULTS)/gan-seed2" \
	  --out docs/gan/seeds
	$(BIN)/python tests/public_gan.py --out "$(RESULTS)/public_script.csv"
	cp "$(RESULTS)/public_script.csv" docs/gan

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: lint
	$(PYTEST) -m "not ray"

# The parts of the set-up wait for disk and network: together they take less time.
test:
	$(MAKE) --jobs 3 lint test-tools .venv-mlflow/installed
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
