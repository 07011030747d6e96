# Two commands from a fresh clone: `make demo` shows what the program does, `make test` proves that it works.
# Either may be run first; each sets up what it needs. Only python3.11 or newer with venv, and make, are assumed.
#   make check   style and types        make bench   time against the libraries        make clean   start afresh
#   make docs    the documentation as a site

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
DOCS_VENV ?= .venv-docs
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
export MPLBACKEND = Agg
# Threads that sleep while they wait, not spin: on a busy machine tests take a fifth of the time.
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test check bench docs clean
.DELETE_ON_ERROR:

# What a user would type. A run that is there already is not done again; `rm -r runs/demo` to see it all once more.
demo: $(VENV)/.user
	$(BIN)/invbench evaluate --model mnist-cnn mnist-c-dv mnist-vib --suite quick --dataset mnist5k --samples 1000 --keep-images --out runs/demo
	$(BIN)/invbench evaluate --model spheres-misaligned spheres-max-margin --suite spheres --dataset spheres:d=500,n=10,r1=1,r2=1.3 --out runs/demo
	@echo "the report, to be opened in a browser:"
	@$(BIN)/invbench report demo --from runs/demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" --numprocesses logical

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py --write

# An environment of its own: mkdocs needs another version of requests than torchattacks. It does not import the package.
docs: $(DOCS_VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict
	@echo "the documentation, to be opened in a browser: build/docs/index.html"

clean:
	rm -rf $(VENV) $(DOCS_VENV) build dist

# A stamp is newer than what it was made from: a second run does nothing, a changed version installs again.
$(VENV)/.user: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing pinned versions into $(VENV) …"
	$(PIP) --editable ".[torchattacks]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing pinned versions and the developers' tools into $(VENV) …"
	$(PIP) --editable ".[dev,torchattacks]"
	@touch $@ $(VENV)/.user

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "needs Python 3.11 or newer with venv and pip; say where: make PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(DOCS_VENV)/.installed: docs/requirements.txt
	@test -n "$(PYTHON)" || { echo "needs Python 3.11 or newer with venv and pip; say where: make PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --requirement docs/requirements.txt
	@touch $@
