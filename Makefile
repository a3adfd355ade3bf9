# Every target runs in one virtual environment, made on first use. Change any of these on the command line:
#   make install TORCH="torch==2.13.0 --index-url <the index of your CUDA version>"
# On Linux the plain wheel is the CUDA one (some 3 GB with its libraries).
VENV   ?= .venv
PYTHON ?= python3
TORCH  ?= torch==2.13.0
# The Python that holds the peers of `make bench`: make install-bench puts them into VENV.
PEERS  ?= $(BIN)/python

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

# Without a display, MuJoCo renders through EGL; the choice is read when mujoco is imported.
ifeq ($(shell uname -s),Linux)
export MUJOCO_GL ?= egl
endif

.DEFAULT_GOAL := help
.PHONY: help install install-bench quickstart check format test test-slow docs bench build clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1@/' | awk -F@ '{printf "  %-14s %s\n", $$1, $$2}'

install: $(STAMP)  ## Make .venv with everything that tests, docs and development need

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

install-bench: install  ## Add the libraries that benchmarks compare with
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]"

# The same td3 twice: alone, and with SnapshotRL, whose first episodes start where a scripted teacher was.
TD3 := td3(lr=1e-3, gamma=0.95, tau=0.05, policy_delay=6, exploration_noise=0.3, batch_size=128, start=1500, hidden=(64, 64))

quickstart: install  ## Does a teacher's trajectory help td3 in a maze? A verdict within three minutes
	rm -rf quickstart
	$(BIN)/palaestra compare "$(TD3)" "$(TD3)+snapshotrl(steps=6000, length=25, every=2)" --env palaestra/PointMazeUTurn-v0 \
		--steps 8000 --group 5 --max-groups 2 --episodes 5 --out quickstart
	@echo "Open quickstart/report.html; its picture is quickstart/figure.png."

check: install  ## Judge format, lint, types and the arrows between folders
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: install  ## Format, and fix what can be fixed safely
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One thread a worker: two workers with two threads each on two cores are slower than either alone.
test: install  ## Run the fast tests (under ten minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: install  ## Run the slow tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow; code=$$?; \
	if [ $$code -eq 5 ]; then echo "There are no slow tests."; else exit $$code; fi

docs: install  ## Write the generated pages and build the site into site/
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: install-bench  ## Time steps, loops and seeds, ours and the peers', and write the page's tables
	$(BIN)/python benchmarks/throughput.py all --only steps --peers-python $(PEERS) --out docs/benchmarks
	$(BIN)/python benchmarks/throughput.py all --only loops --threads 1 --peers-python $(PEERS) --out docs/benchmarks
	$(BIN)/python benchmarks/seeds.py --out docs/benchmarks
	$(BIN)/python benchmarks/gpu.py --out docs/benchmarks
	$(BIN)/python benchmarks/offline.py speed --peers-python $(PEERS) --out docs/benchmarks/offline_speed.jsonl
	$(BIN)/python benchmarks/language.py speed --threads 2 --peers-python $(PEERS) --out docs/benchmarks
	$(BIN)/python benchmarks/tables.py

build: install  ## Build the wheel and the source archive into dist/
	$(BIN)/python -m build

clean:  ## Remove what was built, cached or left by the quickstart; .venv stays
	rm -rf build dist site quickstart quickstart.png .coverage .hypothesis
	rm -rf .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
