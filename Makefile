# make demo    a small sweep, a small GAN and their figures    make test    everything that is checked
# make bench   measures it against what it could be     make soak    half an hour of faults
PYTHON ?= python3
BIN := .venv/bin
RESULTS ?= results

.PHONY: demo test bench soak test-tools

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
