# The README's commands by shorter names.
PYTHON := .venv/bin/python

.PHONY: demo test eval lint bench docs clean

demo: .venv/regiontok
	.venv/bin/regiontok demo

test: .venv/dev
	$(PYTHON) -m pytest -n auto --dist loadfile

eval: .venv/dev .venv-eval/eval
	$(PYTHON) -m pytest tests/evaluation/test_lmms.py

lint: .venv/dev
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	$(PYTHON) -m codespell_lib

bench: .venv/dev
	$(PYTHON) -m benchmarks

docs: .venv/docs
	$(PYTHON) -m sphinx -n -W --keep-going -q docs docs/_build && echo "open docs/_build/index.html"

clean:
	rm -rf .venv .venv-eval docs/_build docs/_gallery docs/gallery docs/api/generated

.venv/regiontok: pyproject.toml
	python3 -m venv .venv && .venv/bin/pip install -q -e . && touch $@

.venv/docs: pyproject.toml
	python3 -m venv .venv && .venv/bin/pip install -q -e '.[docs]' && touch $@

.venv-eval/eval: pyproject.toml
	python3 -m venv .venv-eval && .venv-eval/bin/pip install -q -e '.[eval]' && touch $@

.venv/dev: pyproject.toml
	python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]'
	SAM2_BUILD_CUDA=0 .venv/bin/pip install -q --no-build-isolation sam2 && touch $@ .venv/regiontok
