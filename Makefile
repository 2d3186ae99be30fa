# `make demo` shows it at work, `make test` checks all of it; both install what they need into .venv first.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python
DEMO := runs/demo

.PHONY: help demo test test-versions fuzz lint types unit docs wheel bench clean

help:
	@echo "make demo    train STMI on a small synthetic set and retrieve with it (under 5 minutes after the installation)"
	@echo "make test    everything CI checks: lint, types, tests, docs, wheel"
	@echo "make lint    ruff and typos; 'make types', 'make unit' and 'make wheel' are other parts"
	@echo "make test-versions  the tests of the layers with torch 2.6.0 and with the newest (gigabytes), into docs/tables"
	@echo "make fuzz    2,000 variants of files, read rightly, refused by name or counted"
	@echo "make docs    build the documentation into site/ and check it in a Chromium, where there is one"
	@echo "make bench   time and memory of the layers, into docs/tables and docs/assets"
	@echo "make clean   remove what was built and run; .venv stays"
	@echo "Another Python: make PYTHON=python3.12 demo"

# Installation: one stamp per set of extras. The larger set serves for the smaller one.
.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: '$(PYTHON)' was not found; name a Python of 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: Python 3.11 or newer is needed, '$(PYTHON)' is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/examples.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(RUN) -m pip install -c constraints.txt -e ".[examples]"
	@touch $@

# Three quarters of these files are never imported; the rest are compiled when they are.
.venv/all.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(RUN) -m pip install --no-compile -c constraints.txt -e ".[all]"
	@touch .venv/examples.stamp $@

demo: .venv/examples.stamp
	rm -rf $(DEMO)
	$(RUN) -m examples.prepare.synthetic --out $(DEMO)/data
	$(RUN) -m examples.train stmi --data $(DEMO)/data --modalities RGB NI TI --captions required --epochs 14 --out $(DEMO)
	@echo "contact sheet of the data: $(DEMO)/data/contact_sheet.png"

# What takes seconds comes first. Most of the next three is work of one process: they run beside each other, and each
# shows its output as a whole where make can do that.
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

test:
	$(MAKE) lint
	$(MAKE) -j 2 $(SYNC) types wheel docs
	$(MAKE) unit

# Both ends of the versions of torch that are promised, each in an environment under build/versions.
test-versions: .venv/bin/python
	$(RUN) -m tests.versions

# Each variant is made from its number; a fault is repeated by python -m tests.fuzz --seed NUMBER --variants 1.
fuzz: export OMP_NUM_THREADS = 1
fuzz: .venv/all.stamp
	$(RUN) -m tests.fuzz --variants 2000

lint: .venv/all.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/typos
	$(BIN)/validate-pyproject pyproject.toml

types: .venv/all.stamp
	$(BIN)/pyright

# One thread per worker: two workers with two threads each would wait for one another. `make wheel` runs the script of
# the guide.
unit: export OMP_NUM_THREADS = 1
unit: .venv/all.stamp
	$(RUN) -m pytest --slow -n 2 --dist loadfile --ignore tests/training/test_pip_user.py

docs: export NO_MKDOCS_2_WARNING = 1
docs: .venv/all.stamp
	$(RUN) -m mkdocs build --strict
	$(RUN) -m pytest -q -n 2 --site site tests/browser

# What an installation gives: the wheel in an empty environment, away from the sources; alone, then with two extras.
# Thousands of modules that nothing imports are not compiled.
wheel: .venv/all.stamp
	rm -rf build/venv dist
	$(RUN) -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(RUN) -m venv build/venv
	build/venv/bin/python -m pip install --quiet --no-compile -c constraints.txt dist/*.whl
	cd build && venv/bin/python -I ../examples/quickstart.py
	build/venv/bin/python -m pip install --quiet --no-compile -c constraints.txt "$$(echo dist/*.whl)[training,clip]"
	$(RUN) -m pytest -q --slow --python build/venv/bin/python tests/training/test_pip_user.py

bench: .venv/all.stamp
	$(RUN) -m benchmarks --docs

clean:
	rm -rf build dist site $(DEMO) .pytest_cache .ruff_cache .hypothesis
