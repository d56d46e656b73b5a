# Two commands on a fresh machine: `make run` and `make test`. Everything else is listed by `make help`.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation
# every file that the network delivers must have a hash in one of the constraints files
HASHED := $(PIP) --require-hashes --requirement

.DEFAULT_GOAL := help
.PHONY: help run test lint structure unit coverage uncovered fuzz bench bench-quick bench-demo soak mutation docs lock wheel deb clean debian-run debian-test

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: $(VENV)/.run ## set everything up and start the demo on http://127.0.0.1:8080
	$(BIN)/reflexd demo

test: $(VENV)/.test lint unit ## lint, types, layers, and every test

# each needs one core and most of its time is spent in mypy, so two at a time
LINTERS := lint-style lint-types lint-types-of-tests lint-imports lint-settings
lint: $(VENV)/.test structure ## style, types, layers of imports, settings that nothing reads
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target $(LINTERS)

.PHONY: $(LINTERS)
lint-style:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-types:
	$(BIN)/mypy

lint-types-of-tests:
	$(BIN)/mypy --cache-dir .mypy_cache/tests --config-file tests/benchmarks/mypy.ini tests

lint-imports:
	$(BIN)/lint-imports

lint-settings:
	$(BIN)/python tests/settings_reads.py

structure: $(VENV)/.test ## import cycles, folder sizes, module docstrings, README length: measured and bounded
	$(BIN)/python tests/structure.py

# two at a time with one thread each; the rest of tests/faults, which watches the clocks of gates and supervisors, one after the
# other. Never three: children of idle priority (compilers, learners) would starve beside two busy workers
LEARNING := tests/faults/test_disk_full.py tests/faults/test_kill_daemon.py tests/faults/test_kill_learning.py
UNIT = $(BIN)/pytest -m "not slow" $(COVERAGE)
# hundreds of child processes compile our modules once, not each for itself; sets have one order in all of them
unexport PYTHONDONTWRITEBYTECODE
export PYTHONHASHSEED := 0

# `make structure` runs tests/test_docs_style.py
RESULTS := .test-results
unit: $(VENV)/.test
	rm -rf $(RESULTS)
	failed=0; \
	$(UNIT) -n 2 --dist loadfile --junitxml=$(RESULTS)/1.xml --ignore=tests/end_to_end --ignore=tests/faults --ignore=tests/test_docs_style.py || failed=1; rm -f .coverage.*; \
	$(UNIT) -n 2 --dist loadfile --junitxml=$(RESULTS)/2.xml tests/end_to_end $(LEARNING) || failed=1; rm -f .coverage.*; \
	$(UNIT) --junitxml=$(RESULTS)/3.xml tests/faults $(LEARNING:%=--ignore=%) || failed=1; rm -f .coverage.*; \
	$(BIN)/python tests/failures.py $(RESULTS)/1.xml $(RESULTS)/2.xml $(RESULTS)/3.xml; \
	exit $$failed

# measuring doubles the processor time of the tests. What `unit` removes are the files of children that a test killed while they
# wrote: no databases
coverage: COVERAGE := --cov --cov-append --cov-report=
coverage: $(VENV)/.test uncovered unit ## every test once more, and which lines none of them runs: at least 90 % of them
	$(BIN)/coverage report --fail-under=90

uncovered:
	rm -f .coverage .coverage.*

bench: $(VENV)/.test ## every benchmark: prints tables of ratios; the fine-tuning ones take hours
	set -e; for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file; done

bench-quick: $(VENV)/.test ## the body of every benchmark with tiny sizes: does it work? About half an hour
	$(BIN)/python tests/benchmarks/quick.py

bench-demo: $(VENV)/.test ## learning curve of the demo, as numbers and runs/demo/curve.png
	$(BIN)/python tests/benchmarks/demo_curve.py --out runs/demo

soak: $(VENV)/.test ## 15 minutes at three times the rate with a broker that goes away and policies that change: what grows?
	$(BIN)/python tests/benchmarks/soak.py --out runs/soak

fuzz: $(VENV)/.test ## every parser for 25 s (FUZZ_SECONDS, FUZZ_SEED), a million steps of the model of the gate, 100,000 rows of experience
	FUZZ_SECONDS=$${FUZZ_SECONDS:-25} $(BIN)/pytest -q -s --timeout 0 tests/corpus/test_fuzz_parsers.py
	set -e; for seed in $${GATE_MODEL_SEEDS:-$$(seq 1 50)}; do echo "model of the gate, seed $$seed"; \
	  GATE_MODEL_SEED=$$seed GATE_MODEL_STEPS=$${GATE_MODEL_STEPS:-20000} $(BIN)/pytest -q --timeout 0 tests/runtime/gate/test_gate_model.py; done
	ROW_CASES=$${ROW_CASES:-100000} $(BIN)/pytest -q --timeout 0 tests/learners/test_rows_say_what_happened.py

mutation: $(VENV)/.test ## mutation score of the gate (at least 97 %) and of what carries its commands (95 %)
	bash tests/actuators/safety/mutation.sh

docs: $(VENV)/.test ## rewrite docs/topics.md and docs/settings.md from the code
	$(BIN)/python -m runtime.cli.reference docs

lock: $(VENV)/.test ## rewrite the constraints files for pyproject.toml, with the hashes of all packages (needs the network)
	$(BIN)/python tests/lock_packages.py

wheel: $(VENV)/.test ## dist/*.whl and dist/*.tar.gz
	$(BIN)/python -m build --no-isolation --outdir dist .

deb: wheel ## dist/*.deb: the wheel, the hashes of its packages, the systemd unit and a settings file in shadow mode
	bash configs/deb.sh "$$(ls -t dist/reflexd-*.whl | head -1)" dist

clean: ## remove the virtual environment and every build product
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* .test-results mutants runs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# first what builds packages from source: a build environment of pip's own would be filled without hashes. Then the small build
# of torch, where pip has been given one (find-links, or another index); elsewhere constraints.txt brings the one with CUDA.
$(VENV)/.run: pyproject.toml constraints-build.txt constraints-cpu.txt constraints.txt constraints-cuda.txt | $(VENV)/bin/python debian-run
	@echo "Installing reflexd and its models into $(VENV); the first time takes a few minutes."
	$(HASHED) constraints-build.txt
	$(HASHED) constraints-cpu.txt 2>/dev/null || true
	$(HASHED) constraints.txt
	! $(NEEDS_CUDA) || $(HASHED) constraints-cuda.txt
	$(PIP) --editable .
	@echo "Preparing the models for this machine."
	@output=$$($(BIN)/python -W ignore -m runtime.cli prepare configs/demo.yaml 2>&1) || { echo "$$output" | tail -3; echo "The models could not be prepared; the demo will report it too."; }
	@touch $@

# whether this build of torch requires the packages of CUDA
NEEDS_CUDA := $(BIN)/python -c "from importlib.metadata import requires as r; exit(not any(s.startswith(('nvidia', 'cuda')) for s in r('torch')))"

$(VENV)/.test: $(VENV)/.run constraints-test.txt | debian-test
	@echo "Installing what the tests need."
	$(HASHED) constraints-test.txt
	npm install --silent --no-audit --no-fund --ignore-scripts --omit=optional --prefix $(VENV)/node-red $(NODE_RED)
	@touch $@

# the last line of Node-RED that Debian 12's node runs
NODE_RED := node-red@4.1.15
RUN_PACKAGES := mosquitto libportaudio2 libgl1 libglib2.0-0
TEST_PACKAGES := $(RUN_PACKAGES) mosquitto-clients espeak-ng pulseaudio pulseaudio-utils libasound2-plugins alsa-utils \
  gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad \
  gstreamer1.0-plugins-ugly gstreamer1.0-libav python3-gi opencv-doc chromium prometheus systemd tuxpaint-stamps-default \
  pocketsphinx-testdata

debian-run:
	@bash configs/debian.sh $(RUN_PACKAGES)

debian-test:
	@bash configs/debian.sh $(TEST_PACKAGES)
	@command -v npm >/dev/null || bash configs/debian.sh npm
