# make help   lists what there is.
# PYTHON=...  chooses the Python that the environment is made with (3.11 or newer); VENV=... where it lies.

VENV  ?= .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready
# One thread a process: the small models gain nothing from more (a second costs them, on a busy machine many times
# over), notebooks and tests run side by side, and a fixed number keeps sums, and so figures, the same everywhere.
ifeq ($(strip $(OMP_NUM_THREADS)),)
export OMP_NUM_THREADS := 1
ALL_CORES := env -u OMP_NUM_THREADS
endif
export NUMBA_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup weights test test-slow test-portable test-browser lint types figures check-notebooks lab docs mini bench lock audit clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-16s %s\n", $$1, $$2 }'

setup: $(READY)  ## create the environment in .venv (the other targets do it when needed)

# Runs once, and again when what is to be installed has changed. torch goes first, alone, at the pinned version: where
# an index or a wheel folder offers a CPU build of that version, pip takes it, and nothing later replaces it.
$(READY): pyproject.toml constraints.txt
	@set -e; python=""; found=""; \
	for p in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	  if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$p"; break; fi; \
	  found="$$found$$("$$p" --version 2>/dev/null | sed "s|.*|  & ($$p)|")"; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "emolab needs Python 3.11 or newer; found:$${found:- none}"; \
	  echo "Install one and try again, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; \
	fi; \
	if [ ! -x $(BIN)/python ]; then \
	  echo "Setting up $(VENV) with $$("$$python" --version): several minutes, once."; \
	  "$$python" -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$$python cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv"; exit 1; }; \
	fi
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

# Nothing is fetched from the model hub: the default model and the judge come from the package index.
# To run the notebooks on a model of your own from the hub: make figures HF_HUB_OFFLINE=0 OMP_NUM_THREADS=8
test test-slow test-portable test-browser figures check-notebooks: export HF_HUB_OFFLINE ?= 1
mini bench: export OMP_NUM_THREADS := $(shell getconf _NPROCESSORS_ONLN)

# The default model, from the package index into the user's cache (EMOLAB_CACHE moves it): once, then a second's check.
weights: $(READY)  ## fetch the default model, once (the other targets do it when needed)
	@$(BIN)/python -m emolab fetch smollm2

test: $(READY) lint weights  ## lint and the quick tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: $(READY) weights  ## the slow tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow and not browser"

# The same sums in another order, as on processors of other makers and ages (CONTRIBUTING.md says which library obeys
# which variable). The last run takes a processor that nobody has: tests/other_processor.py.
PORTABLE := $(foreach t,activations vectors controls steering generation damage scoring judges geometry,$(wildcard tests/*/test_$(t).py))
PORTABLE_RUN := $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(PORTABLE)

test-portable: $(READY) weights  ## the numeric tests under the kernels of other processors
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2 OPENBLAS_CORETYPE=Haswell $(PORTABLE_RUN)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Nehalem $(PORTABLE_RUN)
	$(PORTABLE_RUN) -p tests.other_processor

test-browser: $(READY) weights  ## widgets and a notebook in a real JupyterLab, driven in Chromium (install that first)
	$(BIN)/python -m pytest -m browser

lint: $(READY)  ## ruff, and that rooms import in one direction only
	$(BIN)/python -m ruff check .
	$(BIN)/lint-imports --no-cache

types: $(READY)  ## pyright, in standard mode, on emolab/
	$(BIN)/python -m pyright --project pyproject.toml --pythonpath $(BIN)/python

figures: $(READY) weights  ## run all notebooks from fresh kernels; write what changed into figures/ and notebooks/ (FRESH=1: all)
	$(BIN)/python -m tools.editions
	$(BIN)/python -m tools.badges
	$(BIN)/python -m tools.notebooks $(if $(FRESH),--fresh)

check-notebooks: $(READY) weights  ## run all notebooks and compare with what is committed; write nothing
	$(BIN)/python -m tools.notebooks --check

lab: $(READY) weights  ## JupyterLab on notebooks/
	$(ALL_CORES) $(BIN)/python -m jupyterlab notebooks

docs: $(READY)  ## the documentation as a site, into site/
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict

mini: $(READY)  ## train the tests' toy model again (about twenty minutes on two cores; resumes where it was)
	$(BIN)/python -m tests.mini.train

bench: $(READY) weights  ## the benchmarks in benchmarks/
	@set -e; for f in benchmarks/[a-z]*.py; do \
	  [ -e "$$f" ] || { echo "no benchmarks yet"; exit 0; }; echo "== $$f"; $(BIN)/python "$$f"; done

lock:  ## requirements.lock again from constraints.txt (needs uv)
	uv pip compile pyproject.toml --all-extras -c constraints.txt --universal --python-version 3.11.5 \
	  --generate-hashes --no-config --no-header --no-annotate -o .lock.tmp
	sed '/^[^#]/,$$d' requirements.lock | cat - .lock.tmp > .lock.new && mv .lock.new requirements.lock && rm .lock.tmp

audit:  ## known vulnerabilities of the locked versions (needs pip-audit and its online service)
	pip-audit -r requirements.lock --require-hashes --disable-pip --strict

clean:  ## remove the environment and caches (never runs/ or figures/)
	rm -rf $(VENV) build dist site mutants .coverage* .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
