# Every target makes what it needs first, so that on a fresh machine `make demo` or `make test` is enough.
# The environment is .venv. PYTHON names the interpreter it is made with; ARGS goes to the program that runs.
# TORCH says which build of PyTorch is installed: cpu, cuda, or auto, which takes the one without CUDA where
# there is no NVIDIA GPU.
# Tests are shared between JOBS processes, a file to each at a time; with ARGS one process runs them.

PYTHON ?= python3
ARGS ?=
JOBS ?= 2
TORCH ?= auto
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest $(if $(ARGS),,--numprocesses $(JOBS) --dist loadfile)

# One build, by the one version constraints.txt names: without that the package index decides, and its build
# may be several gigabytes larger.
INSTALL_TORCH = $(BIN)/python tools/install_torch.py "$$(sed -n 's/^torch==//p' constraints.txt)" --build $(TORCH)

# The last act of an installation, so that one cut short is done again.
PRODUCT := $(VENV)/.product-is-installed
REAL := $(VENV)/.gguf-is-installed
SERVER := $(VENV)/.server-is-installed
DEV := $(VENV)/.dev-is-installed

.DEFAULT_GOAL := help
.PHONY: help demo demo-real serve-demo demo-model torch test test-long test-all test-slow check lint types imports docs clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(PRODUCT) ## run the main job on real text and write a page; ARGS="--model M --corpus PATH" for your own
	$(BIN)/python examples/demo.py $(ARGS)

demo-real: $(REAL) ## the same on a real model, SmolLM2, and packages that it cannot know; fetches 100 MB
	$(BIN)/python examples/demo_real.py $(ARGS)

serve-demo: $(SERVER) ## serve that small model, adapted to docs/, to any client of OpenAI's API
	$(BIN)/python examples/serve_demo.py $(ARGS)

demo-model: $(PRODUCT) ## train the small model that comes with the repository (hours; may be interrupted)
	$(BIN)/python examples/make_demo_model.py $(ARGS)

torch: $(PRODUCT) ## install PyTorch once more, as TORCH=cpu or TORCH=cuda says
	$(INSTALL_TORCH)

test: $(DEV) ## run the tests; ARGS="tests/test_lm.py -k cache" for some
	$(PYTEST) $(ARGS)

test-long: $(DEV) ## run what takes longer: whole recipes and trainings, Ray clusters, killed processes
	$(PYTEST) -m long $(ARGS)

test-all: $(DEV) ## run both, properties on examples drawn anew
	$(PYTEST) -m "not slow" --hypothesis-profile=new $(ARGS)

test-slow: $(DEV) ## run the tests of effects, on a real base model
	$(BIN)/python -m pytest -m slow $(ARGS)

check: lint types imports docs test-all ## all that must pass before a change goes in

lint: $(DEV) ## ruff: faults and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV) ## mypy, strict, on src
	$(BIN)/mypy

imports: $(DEV) ## import-linter: imports run one way
	$(BIN)/lint-imports

docs: $(DEV) ## build the documentation into site/
	$(BIN)/mkdocs build --strict

clean: ## remove what the tools left behind, except .venv and build/
	rm -rf site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests examples bench -name __pycache__ -prune -exec rm -rf {} +

# torch comes first and alone. An environment that was cut short while it was being made has no pip that
# works, and is made again.
$(PRODUCT): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit("Uptake needs Python 3.11 or newer and %s is %d.%d: name one, as in make PYTHON=python3.12" % ("$(PYTHON)", v[0], v[1]) if v < (3, 11) else 0)'
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(INSTALL_TORCH)
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

$(REAL): $(PRODUCT)
	$(PIP) --constraint constraints.txt --editable '.[gguf]'
	@touch $@

$(SERVER): $(PRODUCT)
	$(PIP) --constraint constraints.txt --editable '.[server]'
	@touch $@

$(DEV): $(PRODUCT)
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@
