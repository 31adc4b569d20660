# python3 (3.10 or later), pip and make are all this needs. Another Python: make demo PYTHON=python3.12
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
META   := settings.ini setup.py pyproject.toml
MIN    := $(shell sed -n 's/^min_python *= *//p' settings.ini)
STATE  := { git diff; git ls-files -o --exclude-standard | git hash-object --stdin-paths; } | git hash-object --stdin

QUICK  := tests/test_package.py tests/test_views.py tests/objectives -k 'not (import_c or process or by_name)'

.DEFAULT_GOAL := help
.PHONY: help demo quick test slow docs export readme check clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | while IFS='	' read -r t d; do printf 'make %-8s %s\n' "$$t" "$$d"; done

demo: $(VENV)/.installed ## Install, then run the whole job on images that the package draws itself (under 5 minutes on 2 cores)
	$(BIN)/contrastive-demo

quick: $(VENV)/.dev ## Run what to run while working: the rules of the house, views and objectives (under a minute)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --ff -q $(QUICK)

test: $(VENV)/.dev ## Install what the tests need, then run every test and every notebook
	PYTEST_ADDOPTS="-n auto --dist worksteal $$PYTEST_ADDOPTS" $(BIN)/python -m pytest

slow: $(VENV)/.dev ## Run the tests that take minutes each, which `make test` leaves out
	OMP_NUM_THREADS=1 PYTEST_ADDOPTS="-n auto --dist worksteal $$PYTEST_ADDOPTS" $(BIN)/python -m pytest -m slow

docs: $(VENV)/.dev ## Write the documentation from the notebooks, as they are, into _docs/html
	$(BIN)/sphinx-build -c docs nbs _docs/html -d _docs/doctrees -j auto -q -W --keep-going
	@echo 'The first page is _docs/html/index.html'

export: $(VENV)/.dev ## Write the modules from the notebooks, and clean the notebooks
	$(BIN)/nbdev-export
	$(BIN)/python scripts/wrap_all.py
	$(BIN)/python -c 'from nbdev.config import set_version; set_version("fastai_contrastive", "$(shell sed -n 's/^version *= *//p' settings.ini)")'
	$(BIN)/nbdev-clean

readme: $(VENV)/.dev ## Write README.md from nbs/index.ipynb
	$(BIN)/python scripts/readme.py

check: $(VENV)/.dev ## Fail if the modules, the notebooks or README.md are out of step
	@was=$$($(STATE)); $(MAKE) --no-print-directory export readme && now=$$($(STATE)) || exit 1; \
	if [ "$$was" != "$$now" ]; then git status --short; git --no-pager diff --stat; \
	  echo 'Modules, notebooks and README were out of step: `make check` has just written them anew; look at the diff and commit it.'; exit 1; \
	else echo 'Modules, notebooks and README are in step.'; fi

clean: ## Remove what builds and tests leave behind (the environment stays: rm -r .venv)
	rm -rf build dist *.egg-info .pytest_cache _proc _docs
	find fastai_contrastive nbs tests scripts \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(MIN)".split("."))))' || { \
	  echo "Python $(MIN) or later is needed, and $(PYTHON) is $$($(PYTHON) --version 2>&1): name another, as in make demo PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { \
	  echo "$(PYTHON) comes without its venv module: install it (Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(META) | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(META) | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $(VENV)/.installed $@
