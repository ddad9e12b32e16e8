# Every target does its own set-up: a virtual environment in .venv and pip; nothing else but Python >= 3.10 is assumed.
PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.ready
BENCH := .venv/.bench
DOCS := .venv/.docs
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: race test lint claims bench bench-optim bench-loop bench-federated bench-diffusion docs clean

race: $(READY)
	$(PY) -m hasten race --report race.html

test: $(READY)
	$(PY) -m pytest -n 2 --dist worksteal -m "not alone"
	$(PY) -m pytest -m alone

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

claims: $(READY)
	$(PY) -m hasten claims --write
	$(PY) docs/generate.py

bench: bench-loop bench-optim bench-federated bench-diffusion

bench-loop: $(BENCH)
	$(PY) benchmarks/loop.py

bench-optim: $(BENCH)
	$(PY) benchmarks/optim.py

bench-federated: $(BENCH)
	$(PY) benchmarks/federated.py

bench-diffusion: $(BENCH)
	$(PY) benchmarks/diffusion.py

docs: $(DOCS)
	$(PY) docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

$(READY): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) torch
	$(PIP) --editable '.[dev,ray]'
	touch $@

$(BENCH): $(READY)
	$(PIP) --editable '.[bench]'
	touch $@

$(DOCS): $(READY)
	$(PIP) --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv .hasten site race.html
