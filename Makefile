# make demo    train CartPole through the real loop: the first thing to try
# make test    every check: style, types, tests
# make lint    style and types alone
# make torture the long form of the fault campaign: an hour or two, in parts (PARTS=kills), resumed where it was
# make bench   every benchmark, one after the other
# make clean   remove what was built and installed here; runs/ stays
#
# Everything is installed into .venv, once, and again only when pyproject.toml has changed.
# Another interpreter: make PYTHON=python3.12 ...   Arguments for pytest: make test PYTEST_ARGS="-k config"

PYTHON ?= python3
PYTEST_ARGS ?=
PARTS ?=
ALONE := cluster or pilot or campaign
VENV := .venv
BIN := $(VENV)/bin
DEV := $(VENV)/.installed-dev
NEEDED := $(shell sed -n 's/^requires-python = ">=\(.*\)"$$/\1/p' pyproject.toml)
SHELL_SCRIPTS := .ci/run $(wildcard jobscripts/*.sbatch tests/support/*.sh)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONDONTWRITEBYTECODE  # compiling all modules anew is a fifth of a short run

.PHONY: demo test packages lint style types tests torture bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-cartpole
	@run=$$(mktemp -u runs/cartpole-XXXX); \
	$(BIN)/rose-hpc run configs/cartpole.toml --run-dir "$$run"; code=$$?; \
	printf '\nLook at it:\n'; \
	printf '  %s\n' "$(BIN)/rose-hpc status $$run" "$(BIN)/rose-hpc inspect $$run/iter-0000/bank.h5" \
	    "$(BIN)/rose-hpc logs $$run" "ls -R $$run"; \
	exit $$code

test: packages lint tests

packages:
	@tests/support/install_packages.sh

lint: style types

# tox (setup.cfg) calls the three below with BIN of its own and DEV empty.
style: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@if command -v shellcheck >/dev/null; then echo shellcheck $(SHELL_SCRIPTS); shellcheck $(SHELL_SCRIPTS); \
	else echo "shellcheck is not installed: shell scripts were not checked"; test -z "$$ROSE_HPC_NO_SKIP"; fi

types: $(DEV)
	$(BIN)/mypy

# What starts a Slurm, a radical.pilot or a crowd of drivers has the machine for itself; all else shares it.
tests: $(DEV)
ifeq ($(strip $(PYTEST_ARGS)),)
	$(BIN)/python -m pytest -m "not ($(ALONE))" --numprocesses=2 --dist=loadfile
	$(BIN)/python -m pytest -m "$(ALONE)"
else
	$(BIN)/python -m pytest $(PYTEST_ARGS)
endif

torture: packages $(DEV)
	$(BIN)/python tests/faults/campaign $(PARTS)

bench: $(DEV)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage htmlcov .mypy_cache .pytest_cache .ruff_cache .hypothesis .tox

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "installing rose-hpc[$*] into $(VENV) (once; this takes a minute)"
	@$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(NEEDED)".split("."))))' || \
	    { echo "Python $(NEEDED) or newer is needed; name one: make PYTHON=python$(NEEDED) ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
