# make demo [DATA=folder of KuaiRand-Pure]   the whole loop on this machine, from installation to summary table
# make test [TEST_PROCESSES=1]               every check: lint, types, import contracts, tests
# make chaos KILLS=20 SEED=1                 the stream under faults: nothing lost, nothing doubled [BROKER=embedded BROKERS=3 JSON=1]
# make chaos UPGRADE_FROM=COMMIT             that commit's programs are rolled to this tree under traffic: nothing lost
# make fuzz SECONDS=600 SEED=1               mutated records, bodies and files against every decoder and running programs [JSON=1]
# make audit | lock | sbom | pin-images      known vulnerabilities of the image's packages, their hashes, their list, digests of images
# make docs                                  the tables of settings and metrics in the READMEs, from the code
# make bench NAME=learner [JSON=1]           ratios to the field's libraries and the targets; no NAME lists the benchmarks
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
## Most modules of torch are never imported: they are compiled when they are, unless nothing may be written then.
PIP := $(PY) -m pip install $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile) --quiet --disable-pip-version-check -c docker/constraints.txt
DEMO_ARGS ?=
BENCH_VENV := .venv-bench
SUPPLY_VENV := .venv-supply
TEST_PROCESSES ?= 2
KILLS ?= 20
SEED ?= 1
SECONDS ?= 60

.PHONY: help install install-dev demo test lint types contracts docker-lint unit docs chaos fuzz audit lock sbom pin-images bench clean

help:
	@sed -n 's/^# //p' Makefile

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than Python 3.11, which Millstream needs: run make PYTHON=python3.11 (or newer)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml docker/constraints.txt | $(PY)
	@echo "installing into $(VENV) (torch, Kafka client, embedded servers: some minutes the first time)"
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml docker/constraints.txt | $(PY)
	@echo "installing into $(VENV), with the test tools"
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

demo: install
	@$(PY) -m replay demo $(if $(DATA),--dataset kuairand --data '$(DATA)') $(DEMO_ARGS)

test: install-dev lint types contracts docker-lint unit

lint: install-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: install-dev
	$(VENV)/bin/mypy

contracts: install-dev
	$(VENV)/bin/lint-imports

docker-lint: install-dev
	$(VENV)/bin/hadolint docker/Dockerfile
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml
	@if command -v promtool > /dev/null; then \
	  promtool check config docker/prometheus/prometheus.yml && promtool test rules docker/prometheus/alerts_test.yml; \
	else echo "promtool is not here, so the alerts are not tested (Debian: the package prometheus holds it)"; fi

unit: install-dev
	$(PY) -m pytest -n $(TEST_PROCESSES) --dist worksteal $(PYTEST_ARGS)

docs: install-dev
	@$(PY) -m tests.readme_tables

chaos: install-dev
	@$(PY) -m tests.chaos --kills $(KILLS) --seed $(SEED) $(if $(BROKER),--broker $(BROKER)) \
	  $(if $(BROKERS),--brokers $(BROKERS)) $(if $(UPGRADE_FROM),--upgrade-from $(UPGRADE_FROM)) $(if $(JSON),--json)

fuzz: install-dev
	@$(PY) -m tests.fuzz --seconds $(SECONDS) --seed $(SEED) $(if $(JSON),--json)

$(SUPPLY_VENV)/.installed: docker/supply-tools.txt
	$(PYTHON) -m venv $(SUPPLY_VENV)
	$(SUPPLY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

audit lock sbom: install-dev $(SUPPLY_VENV)/.installed
	@$(PY) -m tests.supply $@ --tools $(SUPPLY_VENV)/bin

pin-images: install-dev
	@$(PY) -m tests.supply pin-images

$(BENCH_VENV)/.installed: tests/bench/requirements.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	@echo "installing the benchmarks' peers into $(BENCH_VENV) (2 GB)"
	@echo '*' > $(BENCH_VENV)/.gitignore
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(BENCH_VENV)-join/.installed: tests/bench/requirements-join.txt
	$(PYTHON) -m venv $(BENCH_VENV)-join
	@echo "installing the join benchmark's peers into $(BENCH_VENV)-join"
	@echo '*' > $(BENCH_VENV)-join/.gitignore
	$(BENCH_VENV)-join/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench: install $(if $(filter learner,$(NAME)),$(BENCH_VENV)/.installed) $(if $(filter join,$(NAME)),$(BENCH_VENV)-join/.installed)
	@$(PY) -m tests.bench $(NAME) $(if $(JSON),--json) $(if $(QUICK),--quick)

clean:
	rm -rf $(VENV) $(BENCH_VENV) $(BENCH_VENV)-join $(SUPPLY_VENV) .mypy_cache .ruff_cache .import_linter_cache .hypothesis .millstream *.egg-info
