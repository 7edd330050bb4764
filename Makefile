# make demo    a small sweep, a small GAN, a page of both   make test   everything that is checked
# make bench   measures it against what it could be     make soak    half an hour of faults
# make results   the report's experiments in full, for docs/: hours; typed again, it goes on
PYTHON ?= python3
BIN := .venv/bin
RESULTS ?= results

.PHONY: demo test bench soak results test-tools

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: .venv/installed
	$(BIN)/python jobs/sweep.py --preset quick --storage "$(RESULTS)" --name demo
	$(BIN)/python jobs/gan.py --preset quick --storage "$(RESULTS)" --name demo-gan
	$(BIN)/python analysis/trials.py "$(RESULTS)/demo"
	$(BIN)/python analysis/report.py "$(RESULTS)/demo" "$(RESULTS)/demo-gan" --out "$(RESULTS)/report.html"

# Half the preset's palindromes: it takes hours on two cores as it is. Typed again, it goes on.
FIGURES := --samples 50000 --storage "$(RESULTS)"
COLUMNS := cell,start,optimizer,clip,length,seed,epoch,train_loss,val_loss,val_accuracy,train_seconds

results: .venv/installed
	$(BIN)/python jobs/sweep.py $(FIGURES) --name figures
	$(BIN)/python jobs/sweep.py $(FIGURES) --lengths 5,10,15,20 --optimizer rmsprop --clip 10 --name rmsprop
	$(BIN)/python jobs/gan.py --storage "$(RESULTS)" --name gan-report
	$(BIN)/python analysis/sweep.py "$(RESULTS)/figures" --out docs/results
	$(BIN)/python analysis/sweep.py "$(RESULTS)/rmsprop" --out docs/results/rmsprop
	$(BIN)/python analysis/trials.py "$(RESULTS)/figures" "$(RESULTS)/rmsprop" --epochs \
	  --columns $(COLUMNS) --csv docs/results/epochs.csv.gz
	$(BIN)/python analysis/gan.py "$(RESULTS)/gan-report" --out docs/gan
	$(BIN)/python analysis/report.py "$(RESULTS)/figures" "$(RESULTS)/rmsprop" "$(RESULTS)/gan-report" \
	  --out "$(RESULTS)/report.html"

test: .venv/installed test-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The hosts of the tests are network namespaces, each with an sshd, and pages are opened in a browser:
# where these cannot be had, the tests that need them are skipped and say so.
test-tools:
	@for tool in ip sshd rsync chromium chromedriver; do \
	  PATH=$$PATH:/usr/sbin command -v $$tool > /dev/null || missing=yes; done; \
	if [ "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends \
	    iproute2 openssh-server rsync chromium chromium-driver \
	  || echo "some tests will be skipped: apt-get failed"; fi

bench: .venv/installed
	$(BIN)/python tests/bench_sweep.py
	$(BIN)/python tests/bench_gan.py

soak: .venv/installed test-tools
	$(BIN)/python tests/soak.py
