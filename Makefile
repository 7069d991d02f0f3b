# Everything here needs only make and Python 3.11 or newer. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Two processes of one thread each: two cores are then used for four fifths of their worth. WORKERS=0 runs in one process.
WORKERS ?= 2
CODE := alignext pipelines trainers tests $(wildcard examples benchmarks integrations)

.PHONY: help demo test slow compat style check docs links bench mini constraints clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    run the methods on the embedded models and write a gallery (installs into $(VENV) first)"
	@echo "make test    the test suite but what is slow"
	@echo "make slow    the slow tests"
	@echo "make style   format the code"
	@echo "make check   format, lint and types, changing nothing"
	@echo "make docs    build the documentation, warnings are errors"
	@echo "make compat  the test suite with the oldest and the newest versions that are allowed"
	@echo "make bench   the benchmarks (see benchmarks/README.md)"
	@echo "make mini    train the embedded models again"
	@echo "make clean   remove $(VENV) and what was built"

# The environment: the package with its dependencies first, so that the demo does not wait for the tools.
$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "alignext needs Python 3.11 or newer, and there is no '$(PYTHON)'. Install it, or name yours: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "alignext needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Installing into $(VENV), which takes a few minutes the first time ..."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@# torch alone first: what comes after finds it there, and brings no other build of it.
	@$(PIP) install -qq -c constraints.txt setuptools torch
	@$(PIP) install -qq -c constraints.txt --no-build-isolation -e .
	@touch $@

$(VENV)/.tools: $(VENV)/.installed
	@echo "Installing the test and development tools ..."
	@$(PIP) install -qq -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/alignext demo --out alignext-demo --processes 2

test: $(VENV)/.tools
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

slow: $(VENV)/.tools
	@$(BIN)/python -m pytest -q -m slow $(ARGS)

# Both run, whatever the first finds. ARGS="tests/test_import.py" runs less.
compat: $(VENV)/.tools
	@status=0; for end in oldest newest; do $(BIN)/python tests/compat.py $$end $(ARGS) || status=1; done; exit $$status

style: $(VENV)/.tools
	@$(BIN)/ruff check -q --fix-only $(CODE)
	@$(BIN)/ruff format $(CODE)

check: $(VENV)/.tools
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	@$(MAKE) -s links
	@$(BIN)/ty check --error-on-warning --output-format concise $(VENV)/types/alignext/*

docs: $(VENV)/.tools
	@$(MAKE) -s links
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The documentation is in site/index.html"

# The type checker and the docs read files and know no package-dir mapping: they see the folders linked as installed.
links:
	@rm -rf $(VENV)/types && mkdir -p $(VENV)/types/alignext
	@ln -s $(CURDIR)/alignext/* $(CURDIR)/pipelines $(CURDIR)/trainers $(VENV)/types/alignext/

bench: $(VENV)/.installed
	@for script in $(filter-out benchmarks/common.py benchmarks/shapes.py,$(wildcard benchmarks/*.py)); do \
	  echo "== $$script"; $(BIN)/python $$script || exit 1; done
	@$(BIN)/python benchmarks/alignedgen.py --device meta

mini: $(VENV)/.tools
	@$(BIN)/python -m alignext.mini.recipe.train vae sd flux video sharper features sd-longer video-longer sharper-longer flux-longer judge-concept judge-style clip

# Write constraints.txt from what is installed here. Local version labels go: a pin must hold on every machine.
constraints: $(VENV)/.tools
	@{ sed -n '1p' constraints.txt; \
	  $(PIP) list --format=freeze --exclude-editable | sed 's/+.*//' | grep '^torch='; \
	  $(PIP) list --format=freeze --exclude-editable | sed 's/+.*//' | grep -v -e '^torch=' -e '^pip='; } > constraints.new
	@mv constraints.new constraints.txt

clean:
	@rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache
