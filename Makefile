# Needs make and Python 3.11 or newer, nothing else. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
# Empty (`make test REQUIREMENTS=`) installs the newest versions that setup.cfg allows, not the tested pins.
REQUIREMENTS ?= requirements.txt
# Worker processes of the tests (0 runs them in the main process), and notebooks at a time.
JOBS ?= 2
# Where notebooks are executed; CI names the environment that it has just made, as its last user.
COLABS ?= .venv-colabs
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# The name tells Python and requirements apart, so another choice of either installs again.
STAMP := $(VENV)/.installed-$(VERSION)-$(or $(notdir $(REQUIREMENTS)),newest)
# Stands while an installation is under way: one that was cut is begun afresh, never patched.
UNFINISHED := $(VENV)/.unfinished

.PHONY: help venv train test coverage lint format mutation combinations trust report bench colabs pins clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 14

venv: $(STAMP) ## the virtual environment, from requirements.txt

$(STAMP): setup.cfg pyproject.toml $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "fflax needs Python 3.11 or newer, but PYTHON=$(PYTHON) is $(or $(VERSION),not found):" \
	    "name another one, as in 'make PYTHON=python3.12'." >&2; exit 2; }
	@echo "Installing into $(VENV) with Python $(VERSION) (some minutes the first time)"
	@if [ -e $(UNFINISHED) ] || [ "$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" != "$(VERSION)" ] \
	  || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then $(PYTHON) -m venv --clear $(VENV); fi
	@touch $(UNFINISHED) && rm -f $(VENV)/.installed-*
ifeq ($(strip $(REQUIREMENTS)),)
	@$(PIP) install --upgrade --upgrade-strategy eager -e '.[dev,stream,sweep]'
else
	@$(PIP) install -r $(REQUIREMENTS)
	@$(PIP) install --no-deps -e .
endif
	@rm -f $(UNFINISHED) && touch $@

train: venv ## Forward-Forward on the bundled digits (ARGS='--config=... --workdir=...')
	@$(BIN)/python -m experiments.train $(ARGS)

test: venv ## the tests (ARGS='-k numerics')
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(ARGS)

coverage: venv ## every test, the slow ones too, with the coverage of fflax/ (a third slower)
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m '' --cov=fflax --cov-fail-under=96 $(ARGS)

lint: venv ## ruff's checks and format, mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: venv ## put the code into ruff's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

mutation: venv ## plant one-line faults; the tests must catch each
	@$(BIN)/python tests/mutation.py $(ARGS)

combinations: venv ## try the product of choices and write the table of what combines (an hour; ARGS='--walk=table')
	@$(BIN)/python -m experiments.combinations --write $(ARGS)

trust: venv ## figures of trust: fuzz, damaged inputs, kills, planted faults (ARGS='--only kills')
	@$(BIN)/python tests/trust.py $(ARGS)

report: venv ## one page from all result files, in experiments/results/
	@$(BIN)/python -m experiments.report $(ARGS)

bench: venv ## speed and memory against named rivals (installs PyTorch and qwix)
	@$(PIP) install -r requirements-bench.txt
	@for name in step_agreement training_speed sweep_speed pipeline_speed memory int8_speed int8_memory qwix_accuracy channelwise_speed binary_matmul one_pass; do \
	  echo "experiments.benchmarks.$$name"; $(BIN)/python -m experiments.benchmarks.$$name $(ARGS) || exit 1; done

colabs: ## execute the notebooks from an environment made afresh, offline (ARGS='--write 1_quickstart')
	@rm -rf build $(filter-out $(VENV),$(COLABS))
	@$(MAKE) --no-print-directory venv VENV=$(COLABS)
	@$(COLABS)/bin/python -m pip --disable-pip-version-check -q install $(addprefix -c ,$(REQUIREMENTS)) '.[colab]'
	@offline() { \
	  if unshare -rn ip link set lo up 2>/dev/null; then unshare -rn sh -c 'ip link set lo up && exec "$$@"' sh "$$@"; \
	  else echo "No network can be taken away here: the kernels' sockets refuse instead"; "$$@"; fi; }; \
	offline env JAX_PLATFORMS=cpu $(COLABS)/bin/python colabs/build.py --jobs=$(JOBS) $(ARGS)

pins: ## write requirements.txt from what is installed (after `make venv REQUIREMENTS=`)
	@{ sed -n '/^#/p' requirements.txt; $(BIN)/python -m pip freeze --exclude-editable | grep -Eiv '^(torch|qwix)=' \
	  | sed 's/^uvloop==.*/&; sys_platform != "win32"/'; } > requirements.new && mv requirements.new requirements.txt

clean: ## remove the environment, caches and build files; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache .coverage*
	find fflax experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +
