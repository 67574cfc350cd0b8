.DEFAULT_GOAL := help
.PHONY: help demo bench test test-all test-oldest dist docs docs-serve docs-test check format golden notebooks clean
BIN := .venv/bin
READY := .venv/.ready
DOCS := .venv/.docs
OLDEST := torch==2.11.0 torchvision==0.26.0
IN_PARALLEL := -n auto --dist loadfile
PYTEST := $(BIN)/pytest $(IN_PARALLEL)

help: ## Print this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

$(READY): pyproject.toml
	test -x $(BIN)/python || python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

.venv-oldest/.ready: pyproject.toml Makefile
	test -x .venv-oldest/bin/python || python3 -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' $(OLDEST)
	touch $@

demo: $(READY) ## Pretrain on drawn shapes, then probe: about 3 minutes on 2 CPU cores
	$(BIN)/msssl fit --config demo.yaml
	$(BIN)/msssl probe --ckpt_path last

bench: $(READY) ## Measure the step of the demonstration, part by part, against its floor: a minute
	$(BIN)/python benchmarks/step.py --config demo.yaml

test: $(READY) ## Run the tests and doctests: about 6 minutes on 2 cores
	$(PYTEST)

test-all: $(READY) ## Run the slow tests too
	$(PYTEST) -m ''

test-oldest: .venv-oldest/.ready ## Run all tests with the oldest PyTorch that is allowed, in .venv-oldest
	.venv-oldest/bin/pytest $(IN_PARALLEL) -m ''

dist: $(READY) ## Build the source and the wheel into dist/, and check them for the package index
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

docs: $(DOCS) ## Build the documentation into site/: a warning, or a dead link, is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(DOCS) ## Show it at http://localhost:8000, anew after each change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

docs-test: $(READY) ## Execute every block of the documentation, each command to its end: 6 minutes
	$(BIN)/pytest -n 2 -m '' tests/test_docs.py

check: $(READY) ## Format, lint, types, import contract, tests, also the long ones: what CI runs
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(PYTEST) -m 'not slow'

format: $(READY) ## Format the code and mend what the linter can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

golden: $(READY) ## Rewrite the golden losses: only with a Numerics entry in CHANGELOG.md
	GOLDEN=1 $(BIN)/pytest tests/test_golden.py

notebooks: $(READY) ## Run the notebooks in full and rewrite their outputs: about 10 minutes on 2 CPU cores
	$(BIN)/jupytext --quiet --update --to ipynb notebooks/*.py
	OMP_NUM_THREADS=1 $(BIN)/jupyter execute --inplace notebooks/*.ipynb

clean: ## Remove the environments and what the tools left
	rm -rf .venv .venv-oldest dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
