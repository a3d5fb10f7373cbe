# Two commands: `make demo` makes out/demo.mp4, `make test` runs the tests. Both install what they need into $(VENV).
#
#   PYTHON  interpreter, 3.11 or later
#   VENV    folder of the virtual environment
#   TORCH   what pip installs as PyTorch; to spare gigabytes of CUDA on a machine without a GPU:
#           make demo TORCH="torch==2.13.0 --index-url URL", URL as PyTorch's installation page says for "CPU"

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test test-slow test-ray lint clean

demo: $(VENV)/installed
	mkdir -p out
	$(VENV)/bin/dawn generate examples/portrait.png examples/speech.wav -o out/demo.mp4 --seed 1

test: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest

test-slow: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest -m slow

test-ray: $(VENV)/installed-dev
	$(PIP) -e ".[dev,ray]"
	$(VENV)/bin/python -m pytest -m slow tests/test_batch.py

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf out build dist $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/torch: | $(VENV)/bin/python
	$(PIP) $(TORCH)
	touch $@

$(VENV)/installed: pyproject.toml | $(VENV)/torch
	$(PIP) -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/torch
	$(PIP) -e ".[dev]"
	touch $(VENV)/installed $@
