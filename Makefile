# Set-up, tests and the main job. `make` alone lists the targets. Works with GNU make 3.81 and newer.
#
# Needs Python 3.11 or newer with venv. Nothing is installed outside this directory; models, prompts
# and compiled programs go to ~/.cache/persona_jax.

PYTHON = python3
LOCK = requirements.lock
MODEL = smollm2-135m-instruct
ARGS =
# Processes that pytest spreads the tests over; one more takes the bits target at first.
JOBS = 2

# The one tool that is in no lock, because it makes them.
UV_VERSION = 0.13.9
# Installed by itself, ahead of tests/parity/requirements.txt: see BUILD.md.
TORCH_VERSION = 2.13.0
TORCH_PIP_ARGS =
UPGRADE =

# .venv for the defaults; any other interpreter or lock has an environment of its own.
ENV_NAME := $(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
ENV_NAME := $(ENV_NAME)$(if $(filter-out requirements.lock,$(LOCK)),-$(patsubst requirements-%.lock,%,$(LOCK)))
VENV := .venv$(ENV_NAME)
PARITY_VENV := .venv-parity$(ENV_NAME)
AOT_VENV := .venv-aot$(ENV_NAME)
INSPECT_VENV := .venv-inspect$(ENV_NAME)
TOOLS_VENV := .venv-tools

RUN := $(VENV)/bin/python
PIP_INSTALL := -m pip --disable-pip-version-check install --quiet
# Wheels only: no compiler is needed, and a missing wheel is an error instead of a long build.
LOCKED := --require-hashes --only-binary=:all:

# A stamp's name carries a checksum of what was installed, so that a second call installs nothing,
# and another lock, interpreter or place of the checkout installs again.
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
checksum = $(shell (cat $(1); echo '$(CURDIR)') | cksum | tr ' ' '-')
LOCK_STAMP := $(VENV)/python$(PYTHON_VERSION)-lock-$(call checksum,$(LOCK)).stamp
PROJECT_STAMP := $(VENV)/project-$(call checksum,pyproject.toml).stamp
PARITY_STAMP := $(PARITY_VENV)/parity-$(TORCH_VERSION)-$(call checksum,tests/parity/requirements.txt).stamp
INSPECT_STAMP := $(INSPECT_VENV)/inspect-$(call checksum,tests/parity/requirements-inspect.txt).stamp
AOT_STAMP := $(AOT_VENV)/libtpu-$(call checksum,$(LOCK)).stamp
UV_STAMP := $(TOOLS_VENV)/uv-$(UV_VERSION).stamp

# What the chosen lock was made for.
MIN_MINOR := $(if $(findstring jax0.11,$(LOCK)),12,11)

.DEFAULT_GOAL := help
.PHONY: help demo compare test pytest bits lint format typecheck wheel-test parity aot planted bench bench-gpu bench-capture bench-score bench-load bench-kernels install fetch lock clean check-python

help:
	@echo 'make demo        the core study, reduced, on a real model; report in runs/demo (more flags: ARGS=...)'
	@echo 'make compare     prompt and steering on self-reports, refusal and text, without matches; runs/compare'
	@echo '                 another model: MODEL=gemma-3-270m, a hub id, a directory'
	@echo 'make test        lint, type check and every test (pytest flags: ARGS=...)'
	@echo 'make parity      compare with PyTorch and transformers, in an environment of its own'
	@echo 'make planted     the core study on many worlds whose truth is known; ends with a line of counts'
	@echo 'make aot         compile for TPUs without one and GPUs without one (in an environment of its own)'
	@echo 'make bench       us and Hugging Face, steering-vectors, repeng, llama.cpp on the same grids'
	@echo 'make bench-gpu   the engine (and Hugging Face) on one GPU, sizes of Llama-3.1-8B'
	@echo 'make bench-capture  activations of 20,000 prompts into moments; make bench-score: 1,440 questions'
	@echo 'make bench-kernels  what edits cost on TPUs, by the TPU compiler; no TPU needed'
	@echo 'make bench-load  seconds and memory of loading a checkpoint of 2.5 GB (needs 5 GB of disk, 8 of memory)'
	@echo 'make wheel-test  build the wheel, install it into a clean environment, import it'
	@echo 'make lint        ruff: rules and format'
	@echo 'make format      let ruff rewrite the code'
	@echo 'make typecheck   mypy on persona_jax and persona_kernels'
	@echo 'make install     only make the environment ($(VENV))'
	@echo 'make fetch       only download and check the model and the prompts'
	@echo 'make lock        make the lock files again from pyproject.toml (newest: UPGRADE=--upgrade)'
	@echo 'make clean       remove environments, caches and build products; runs/ is kept'
	@echo
	@echo 'PYTHON=python3.12                picks the interpreter, with an environment of its own'
	@echo 'LOCK=requirements-jax0.11.lock   picks the lock (that one: JAX 0.11.2, Python 3.12)'

# ---- what people run ---------------------------------------------------------------------------

# A newcomer waits for the demo: most of it would be compiling, so LLVM's optimiser is left out for the
# small model (a third of the seconds, measured on 2 cores), and BLAS has one thread (two of them wait
# for one another on a busy machine).
OTHER_MODEL = $(filter-out smollm2-135m-instruct,$(MODEL))
demo: fetch
	$(if $(OTHER_MODEL),test -e '$(MODEL)' || $(RUN) -m persona_jax.fetch $(MODEL))
	OPENBLAS_NUM_THREADS=1 $(if $(OTHER_MODEL),,XLA_FLAGS="$$XLA_FLAGS $(QUICK_COMPILE)") \
	  $(RUN) experiments/persona_non_grata.py --config=configs/persona_non_grata_demo.py:$(MODEL) \
	  --workdir=runs/demo$(if $(OTHER_MODEL),-$(subst /,-,$(MODEL))) $(ARGS)

compare: fetch
	$(if $(OTHER_MODEL),test -e '$(MODEL)' || $(RUN) -m persona_jax.fetch $(MODEL))
	$(RUN) experiments/prompt_vs_steering.py --config=configs/demo.py:$(MODEL) \
	  --workdir=runs/compare$(if $(OTHER_MODEL),-$(subst /,-,$(MODEL))) $(ARGS)

# Side by side: mypy and the few tests of bits use one core each.
test:
	+@$(MAKE) --no-print-directory --jobs=4 lint typecheck $(if $(ARGS),,bits) pytest

# One thread of BLAS a process: two processes with two each wait for one another.
# Most of the time goes into compiling hundreds of tiny programs, so LLVM's optimiser is left out (a
# third less time, measured on 2 cores), each goes to LLVM in one piece instead of up to 32 (a quarter
# less), and XLA's newer emitter of fusions is left out where it can be (another 40 % less; JAX 0.11
# does not know the flag, and XLA aborts at one that it does not know). What promises equal bits, and
# predicted memory, is tested as users compile, as is the real model by make demo and make parity.
QUICK_COMPILE = --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1
OLD_EMITTERS = --xla_cpu_use_fusion_emitters=false
pytest: fetch
	flags='$(QUICK_COMPILE) $(OLD_EMITTERS)'; \
	JAX_PLATFORMS=cpu XLA_FLAGS="$$flags" $(RUN) -c 'import jax; jax.devices()' >/dev/null 2>&1 || \
	  flags='$(QUICK_COMPILE)'; \
	OPENBLAS_NUM_THREADS=1 JAX_PLATFORMS=cpu XLA_FLAGS="$$XLA_FLAGS $$flags" \
	  $(RUN) -m pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder $(if $(ARGS),$(ARGS),-m 'not bits')

bits: fetch
	JAX_PLATFORMS=cpu $(RUN) -m pytest -m bits --quiet tests/engine tests/edits

wheel-test: install
	JAX_PLATFORMS=cpu $(RUN) -m pytest tests/packaging $(ARGS)

lint: install
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

format: install
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

typecheck: install
	$(RUN) -m mypy

parity: fetch $(PARITY_STAMP) $(INSPECT_STAMP)
	$(RUN) -m persona_jax.fetch gemma-3-270m
	-$(RUN) -m benchmarks.grid.environments steering llama $(if $(TORCH_PIP_ARGS),--torch-pip-args="$(TORCH_PIP_ARGS)")
	JAX_PLATFORMS=cpu $(PARITY_VENV)/bin/python tests/parity/parity.py $(ARGS)
	JAX_PLATFORMS=cpu $(INSPECT_VENV)/bin/python -m pytest --quiet tests/runs/export_test.py

# libtpu and the CUDA plugin, of the versions that the installed JAX asks for; the main environment
# is seen behind them.
aot: fetch $(AOT_STAMP)
	JAX_PLATFORMS=cpu $(AOT_VENV)/bin/python -m pytest --numprocesses=$(JOBS) $(if $(ARGS),$(ARGS),tests/aot)

# Planted worlds in numbers that a claim would rest on; it ends with a line of counts. The simulated
# studies behind docs/core_study.md are among them (power: -m tests.stats.simulations --power).
planted: fetch
	JAX_PLATFORMS=cpu XLA_FLAGS="$$XLA_FLAGS $(QUICK_COMPILE)" $(RUN) -m pytest -q tests/planted tests/stats
	OPENBLAS_NUM_THREADS=1 $(RUN) -m tests.stats.simulations
	OPENBLAS_NUM_THREADS=1 JAX_PLATFORMS=cpu XLA_FLAGS="$$XLA_FLAGS $(QUICK_COMPILE)" \
	  $(RUN) -m tests.planted.seeds $(ARGS)

bench-kernels: $(AOT_STAMP)
	JAX_PLATFORMS=cpu $(AOT_VENV)/bin/python benchmarks/kernels.py $(ARGS)

# Us and the peers on the same work, in one session; the peers' environments take about 20 minutes
# to make, once, whatever parts are run. A corner of it: ARGS=--quick; single parts, without the
# peers: .venv/bin/python -m benchmarks.grid.bench --sections engine --only ours
bench: fetch
	-$(RUN) -m benchmarks.grid.environments $(if $(TORCH_PIP_ARGS),--torch-pip-args="$(TORCH_PIP_ARGS)")
	JAX_PLATFORMS=cpu $(RUN) -m benchmarks.grid.bench $(ARGS)

# On one NVIDIA GPU, random weights of Llama-3.1-8B's sizes; Hugging Face beside us where the
# interpreter has PyTorch for the GPU too.
bench-gpu: install
	$(RUN) -m benchmarks.gpu $(ARGS)

bench-capture bench-score: bench-%: fetch
	$(RUN) -m benchmarks.grid.environments hf $(if $(TORCH_PIP_ARGS),--torch-pip-args="$(TORCH_PIP_ARGS)")
	JAX_PLATFORMS=cpu $(RUN) -m benchmarks.$* $(ARGS)

bench-load: install
	$(RUN) benchmarks/load.py

fetch: install
	$(RUN) -m persona_jax.fetch

# ---- environments ------------------------------------------------------------------------------

install: $(PROJECT_STAMP)

check-python:
	@$(PYTHON) -c '' >/dev/null 2>&1 || { \
	  echo "PYTHON=$(PYTHON) does not run. $(LOCK) needs Python 3.$(MIN_MINOR) or newer." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, $(MIN_MINOR)))' || { \
	  echo "PYTHON=$(PYTHON) is $$($(PYTHON) --version 2>&1). $(LOCK) needs Python 3.$(MIN_MINOR) or newer: name one, as in 'make test PYTHON=python3.12'." >&2; exit 1; }

$(LOCK_STAMP): | check-python
	@echo 'Installing $(LOCK) into $(VENV); once, a few minutes'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) $(PIP_INSTALL) $(LOCKED) -r $(LOCK)
	@touch $@

# hatchling, the build backend, is in the lock: nothing is fetched to build.
$(PROJECT_STAMP): $(LOCK_STAMP)
	@$(RUN) $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/project-*.stamp
	@touch $@

# PyTorch and transformers, with the main environment's packages (JAX, this project) behind them.
$(PARITY_STAMP): $(PROJECT_STAMP)
	@echo 'Installing PyTorch and transformers into $(PARITY_VENV); once, a few minutes'
	@rm -rf $(PARITY_VENV)
	@$(PYTHON) -m venv $(PARITY_VENV)
	@$(PARITY_VENV)/bin/python $(PIP_INSTALL) $(TORCH_PIP_ARGS) torch==$(TORCH_VERSION)
	@$(PARITY_VENV)/bin/python $(PIP_INSTALL) $(LOCKED) -r tests/parity/requirements.txt
	@main=$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  own=$$($(PARITY_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  echo "import site; site.addsitedir('$$main')" > "$$own/main_environment.pth"
	@touch $@

# Inspect AI, with the main environment's packages behind it.
$(INSPECT_STAMP): $(PROJECT_STAMP)
	@echo 'Installing Inspect AI into $(INSPECT_VENV); once, a minute'
	@rm -rf $(INSPECT_VENV)
	@$(PYTHON) -m venv $(INSPECT_VENV)
	@$(INSPECT_VENV)/bin/python $(PIP_INSTALL) $(LOCKED) -r tests/parity/requirements-inspect.txt
	@main=$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  own=$$($(INSPECT_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  echo "import site; site.addsitedir('$$main')" > "$$own/main_environment.pth"
	@touch $@

# The TPU compiler: a wheel of 140 MB, 640 MB installed.
$(AOT_STAMP): $(PROJECT_STAMP)
	@echo 'Installing libtpu and the CUDA plugin into $(AOT_VENV); once, a minute'
	@rm -rf $(AOT_VENV)
	@$(PYTHON) -m venv $(AOT_VENV)
	@libtpu=$$($(RUN) -c 'import importlib.metadata as m; print(next(r.split(";")[0] for r in m.requires("jax") if r.startswith("libtpu")))') && \
	  $(AOT_VENV)/bin/python $(PIP_INSTALL) --only-binary=:all: --no-deps "$$libtpu" \
	    $$($(RUN) -c 'import jax; print(*(f"jax-cuda13-{part}=={jax.__version__}" for part in ("plugin", "pjrt")))')
	@main=$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  own=$$($(AOT_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  echo "import site; site.addsitedir('$$main')" > "$$own/main_environment.pth"
	@touch $@

# ---- locks -------------------------------------------------------------------------------------

UV_COMPILE = $(TOOLS_VENV)/bin/uv pip compile --quiet --no-config --universal --generate-hashes \
  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' $(UPGRADE)

lock: $(UV_STAMP)
	$(UV_COMPILE) --python-version 3.11 --extra dev --output-file requirements.lock pyproject.toml
	echo 'jax==0.11.2' | $(UV_COMPILE) --python-version 3.12 --extra dev \
	  --output-file requirements-jax0.11.lock pyproject.toml -
	$(UV_COMPILE) --python-version 3.11 --constraint requirements.lock \
	  --output-file tests/parity/requirements.txt tests/parity/requirements.in
	$(UV_COMPILE) --python-version 3.11 \
	  --output-file tests/parity/requirements-inspect.txt tests/parity/requirements-inspect.in
	for name in hf steering llama; do \
	  $(UV_COMPILE) --python-version 3.11 --override benchmarks/grid/override-torch.txt --no-emit-package torch \
	    --output-file benchmarks/grid/requirements-$$name.txt benchmarks/grid/requirements-$$name.in || exit 1; \
	done
	@! grep -nE '://|file:|^-' requirements.lock requirements-jax0.11.lock tests/parity/requirements*.txt \
	  benchmarks/grid/requirements-*.txt \
	  || { echo 'a lock names a host or a path' >&2; exit 1; }

$(UV_STAMP): | check-python
	@rm -rf $(TOOLS_VENV)
	@$(PYTHON) -m venv $(TOOLS_VENV)
	@$(TOOLS_VENV)/bin/python $(PIP_INSTALL) uv==$(UV_VERSION)
	@touch $@

clean:
	rm -rf .venv .venv-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find persona_jax kernels experiments configs tests -name __pycache__ -type d -prune -exec rm -rf {} +
