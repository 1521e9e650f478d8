# The front door: every command that a person or CI runs on this project.
#
#   make            what there is
#   make setup      create .venv and install everything (quick when nothing changed)
#   make test       set up, then run the tests
#   make check      everything that must pass before a change is merged; .ci/run calls it
#
# PYTHON=/path/to/python3.12 make setup     picks the interpreter (3.11 or newer); else it is the fastest kind found
# PYTEST_ARGS="-k vote -x" make test        passes arguments on

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=
EXAMPLES_NODE := $(patsubst %/package.json,%/node_modules/.installed,$(wildcard examples/*/package.json))

.PHONY: help setup versions native native-tree test conformance check lint format types contracts proto proto-drift demo bench bench-sizes soak sim zoo mutants jepsen jepsen-doctor fuzz clean

help:
	@echo "make setup        create $(VENV) and install what the project needs"
	@echo "make test         run the tests (sets up first)"
	@echo "make native       compile the hot path (a wheel in dist/); NATIVE=1 runs bench, bench-sizes, soak, sim or demo on it"
	@echo "make conformance  the tests of the fronts by clients of several makes, a part of make test"
	@echo "make check        lint, types, contracts, generated code, then the tests: what CI runs"
	@echo "make lint         ruff check, ruff format --check"
	@echo "make format       let ruff fix and format what it can"
	@echo "make types        mypy --strict"
	@echo "make contracts    which layer may import which (import-linter)"
	@echo "make proto        generate the protobuf code; make proto-drift checks that it is up to date"
	@echo "make demo         a cluster on this machine, a killed leader, no lost write"
	@echo "make bench        benchmarks"
	@echo "make bench-sizes  throughput and latency as the data grows: a quarter of an hour"
	@echo "make soak         half an hour of mixed load: do memory and latency stay flat?"
	@echo "make sim          the deterministic simulation: whole clusters, thousands of faults, replayable"
	@echo "make zoo          is each deliberate bug caught, by what, and how soon?"
	@echo "make mutants      200 small changes of raft/, kv/ and storage/: does a test or the simulator notice?"
	@echo "make jepsen       faults on real nodes, and what the clients may conclude (make jepsen-doctor: which faults)"
	@echo "make fuzz         coverage-guided fuzzing of the fast front"
	@echo "make clean        remove caches and $(VENV)"

# --- Set-up -------------------------------------------------------------------------------------------------------

setup: $(STAMP)
	@:

# Of the Pythons that will do, the first that was built with profile-guided optimization: it runs this project a sixth faster.
# Distributions' own are; those of version managers are if they were told to.
BUILT_WELL := 'import ensurepip, sys, sysconfig, venv; \
	sys.exit(sys.base_prefix != "/usr" and "--enable-optimizations" not in (sysconfig.get_config_var("CONFIG_ARGS") or ""))'

# Depends on pyproject.toml alone, so that every other target can depend on it at no cost.
$(STAMP): pyproject.toml
	@if [ ! -x $(BIN)/python ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		python=""; \
		for candidate in "$${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do \
			[ -n "$$candidate" ] || continue; \
			if ! "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then continue; fi; \
			python="$${python:-$$candidate}"; \
			if [ "$$candidate" = "$${PYTHON:-}" ]; then break; fi; \
			if "$$candidate" -c $(BUILT_WELL) 2>/dev/null; then python="$$candidate"; break; fi; \
		done; \
		if [ -z "$$python" ]; then \
			echo "setup: no Python 3.11 or newer found. Debian/Ubuntu: apt install python3 python3-venv; or PYTHON=/path/to/python3 make setup" >&2; exit 1; \
		fi; \
		if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then \
			echo "setup: $$python has no venv module. Debian/Ubuntu: apt install python3-venv" >&2; exit 1; \
		fi; \
		echo "setup: creating $(VENV) with $$("$$python" --version)"; \
		"$$python" -m venv --clear $(VENV); \
	fi
	@echo "setup: installing (the first time takes a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -e '.[dev]'
	@$(MAKE) --no-print-directory versions
	@touch $@

versions:
	@$(BIN)/python -c 'import importlib.metadata as m, platform; \
	names = "pip grpcio protobuf lmdb crc32c structlog uvloop pytest hypothesis mypy ruff import-linter".split(); \
	print("setup: python " + platform.python_version(), *(f"{name} {m.version(name)}" for name in names), sep=", ")'

# --- The compiled build -------------------------------------------------------------------------------------------

# make native                         a wheel of this machine's Python, compiled by mypyc as pyproject.toml says: five minutes
# make sim NATIVE=1                   runs it compiled; so do bench, bench-sizes, soak and demo
#
# It is built in a copy of the tree, where nothing can be taken for the sources. What the simulator runs of it (all but sockets, front
# and gateway) is compared with the interpreted code: the same seeds must give the same trace hashes, event by event.
TREE := $(if $(NATIVE),build/native,.)
RUN := cd $(TREE) && PYTHONPATH=$$PWD $(CURDIR)/$(BIN)/python
COPY_TREE := git ls-files -z | xargs -0 cp -pu --parents -t build/native
NATIVE_SEEDS := --hashes 12 --first 20260101

native: build/native/.built
	@:

native-tree: setup
ifdef NATIVE
	@$(MAKE) --no-print-directory NATIVE= native
	@$(COPY_TREE)
endif

build/native/.built: $(STAMP) deploy/spell_out.py $(wildcard raftcache/*.py raftcache/*/*.py)
	@echo '#include <Python.h>' | $${CC:-gcc} -E $$($(BIN)/python -c 'import sysconfig; print("-I" + sysconfig.get_path("include"))') - >/dev/null || \
		{ echo "native: no C compiler, or no headers of this Python. Debian/Ubuntu: apt install gcc python3-dev" >&2; exit 1; }
	@echo "native: compiling takes about five minutes"
	@rm -rf $(@D) && mkdir -p $(@D) && $(COPY_TREE)
	@$(BIN)/python deploy/spell_out.py $(@D)
	@cd $(@D) && HATCH_BUILD_HOOK_ENABLE_MYPYC=1 $(CURDIR)/$(BIN)/python -m hatchling build -t wheel
	@cd $(@D) && PYTHONPATH=$$PWD $(CURDIR)/$(BIN)/python -c \
		'import raftcache.raft.core as core; assert core.__file__.endswith(".so"), core.__file__'
	@echo "native: comparing it with the interpreted code"
	@diff <($(BIN)/python -m tests.simulation $(NATIVE_SEEDS)) <(cd $(@D) && PYTHONPATH=$$PWD $(CURDIR)/$(BIN)/python -m tests.simulation $(NATIVE_SEEDS))
	@mkdir -p dist && cp $(@D)/dist/*.whl dist/ && ls dist/*.whl
	@touch $@

# Examples in Node.js are tested where there is a node; the tests say so where there is none.
examples/%/node_modules/.installed: examples/%/package.json
	@if command -v npm >/dev/null; then \
		cd examples/$*; \
		if [ -f package-lock.json ]; then npm ci --silent --no-audit --no-fund; else npm install --silent --no-audit --no-fund; fi; \
		touch node_modules/.installed; \
	else echo "setup: no npm; the Node.js example is not tested"; fi

# --- Checks -------------------------------------------------------------------------------------------------------

test: setup $(EXAMPLES_NODE)
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup $(PYTEST_ARGS)

conformance: setup $(EXAMPLES_NODE)
	$(BIN)/python -m pytest -q tests/edge/test_conformance.py tests/edge/test_fronts.py tests/edge/test_rfc9113.py \
		tests/edge/test_python_client.py tests/edge/test_nodejs_example.py $(PYTEST_ARGS)

check: lint types contracts proto-drift
	@$(MAKE) --no-print-directory test

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup
	$(BIN)/mypy --strict raftcache jepsen-style/faults deploy/spell_out.py

contracts: setup
	$(BIN)/lint-imports --no-logo

# --- Generated code -----------------------------------------------------------------------------------------------

proto: setup
	PYTHON=$(BIN)/python proto/generate.sh

proto-drift: setup
	PYTHON=$(BIN)/python proto/generate.sh --check

# --- To look at ---------------------------------------------------------------------------------------------------

demo: native-tree
	$(RUN) examples/demo.py

# Of this tree in either case: the copy that is compiled is thrown away with the next one. BENCH_ARGS passes arguments on.
BENCH = $(RUN) benchmarks/run.py --output $(CURDIR)/benchmarks/results/$$(date +%FT%H%M)$(if $(NATIVE),-native).json $(BENCH_ARGS)

# make bench                          all parts but the long ones, three runs; BENCH_ARGS="--runs 5 --only one-key"
bench: native-tree
	$(BENCH)

bench-sizes: native-tree
	$(BENCH) --only sizes

# make soak MINUTES=30
soak: native-tree
	$(BENCH) --only soak --minutes $(or $(MINUTES),30)

# make sim                            one minute of fresh seeds;  make sim MINUTES=60  for long runs
# make sim SEED=1234 [LANES=1]        replays one seed; FAULTS=3,17 and CALM=name=value,... as a failure prints them
# make sim COVERAGE=1                 what of raft/ and storage/ the seeds reach, branch by branch (and at a third of the speed)
SIM = -m tests.simulation $(if $(SEED),$(SEED),--minutes $(or $(MINUTES),1)) $(if $(FIRST),--first $(FIRST)) \
	$(if $(FAULTS),--faults $(FAULTS)) $(if $(CALM),--calm $(CALM)) $(if $(LANES),--lanes --script)
sim: native-tree
ifdef COVERAGE
	$(BIN)/python -m coverage run --branch --include='raftcache/raft/*,raftcache/storage/*' --data-file=.coverage.sim $(SIM)
	$(BIN)/python -m coverage report --data-file=.coverage.sim --skip-empty
	$(BIN)/python -m coverage html --data-file=.coverage.sim --directory=build/coverage-sim --quiet
else
	$(RUN) $(SIM)
endif

# make zoo                            all bugs, five trials of fresh seeds each;  make zoo BUGS="no_fsync no_dedup"
# Before them the table of the mutants, as docs/mutants.md keeps it: `make mutants` prints it anew, which takes an hour.
zoo: setup
	@$(BIN)/python -m tests.mutants stored
	$(BIN)/python -m tests.simulation.zoo_run $(BUGS)

# make mutants                        all of them; what earlier runs found is kept in build/mutants and not asked again
# make mutants MINUTES=2              a part of it; run it again to go on
# make mutants AGAIN=1                asks the tests again about what they let through, because there are new tests
mutants: setup
	$(BIN)/python -m tests.mutants run --minutes $(or $(MINUTES),120) $(if $(AGAIN),--again)

# make jepsen MINUTES=10                     all workloads and faults that fit into the time
# make jepsen MINUTES=1 WORKLOAD=register NEMESIS=kill-leader SEED=1234 NODES=5 FRONT=fast
# make jepsen MINUTES=1 BUG=no_dedup         a deliberate bug (tests/simulation/zoo.py), which must be found
# Both may be lists, by commas. Everything of a run is in jepsen-style/runs/; jepsen-style/README.md says how to read it.
NODES ?= 3
JEPSEN := PYTHONPATH=jepsen-style:. $(BIN)/python -m faults
jepsen: setup
	$(JEPSEN) run --minutes $(or $(MINUTES),10) --nodes $(NODES) $(if $(WORKLOAD),--workload $(WORKLOAD)) \
		$(if $(NEMESIS),--nemesis $(NEMESIS)) $(if $(SEED),--seed $(SEED)) $(if $(FRONT),--front $(FRONT)) $(if $(BUG),--bug $(BUG))

jepsen-doctor: setup
	$(JEPSEN) doctor --nodes $(NODES)

# make fuzz                            a minute of coverage-guided fuzzing of the fast front, shared between all targets
# make fuzz MINUTES=60 TARGET="frames peer"    for long runs, and of these targets alone (tests/edge/fuzz/targets.py has them)
# make fuzz COVERAGE=1                   what of edge/ and wire/ the corpora reach, branch by branch; fuzzes nothing
fuzz: setup
ifdef COVERAGE
	$(BIN)/python -m coverage run --branch --include='raftcache/edge/*,raftcache/wire/*' --data-file=.coverage.fuzz -m tests.edge.fuzz replay $(TARGET)
	$(BIN)/python -m coverage report --data-file=.coverage.fuzz
else
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input 'atheris>=3,<4'
	$(BIN)/python -m tests.edge.fuzz run --minutes $(or $(MINUTES),1) $(TARGET)
endif

clean:
	rm -rf $(VENV) .venv-proto .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage.sim .coverage.fuzz build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
