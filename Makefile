# make demo: a real OOM kill, watched.  make test: all rings that this machine allows.  make help: the rest.
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard csrc/*.c csrc/*.h csrc/*.py) setup.py pyproject.toml memcg_oom/_version.py

# What gcc must find nothing in, nor clang-tidy but for the benchmarks, which leave their memory to exit(3).
C_FILES := $(wildcard csrc/*.c tests/*.c tests/faults/*.c tests/fuzz/*.c)
BENCHMARKS := $(wildcard benchmarks/limits/*.c)
WARNINGS := -std=c11 -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wvla -Werror

# Rows of the matrix of kernels, like 6.1:v2; empty: all of them.
KERNELS ?=

# What `make test-pythons` tries, like 3.10 3.14t /usr/bin/python3; empty: all of its rows. TESTS= names the tests.
PYTHONS ?=

# How often `make races` tries.
RACES ?= 10000

# How long `make fuzz` takes, and what it is to do: names of parsers, "model", --seed.
FUZZ_SECONDS ?= 600
FUZZ_ARGS ?=

# How long `make soak` takes, both sources together.
SOAK_SECONDS ?= 1800

.PHONY: help demo test test-kernels test-pythons test-wheel bench bench-quick bench-check soak races fuzz faults docs manual \
	lint sanitize wheel clean

help:
	@echo "make demo      a real OOM kill in a scratch cgroup, and what the watcher says of it (root)"
	@echo "make test      every test that this machine allows"
	@echo "make test-kernels  the wheel on other kernels, in virtual machines (KERNELS=\"6.1:v2 /boot/vmlinuz:v2\" picks)"
	@echo "make test-pythons  the wheel under other Pythons, against the fake kernel (PYTHONS=\"3.10 3.15\" picks)"
	@echo "make test-wheel  every test of the fake and the real kernel, with the wheel, outside the checkout"
	@echo "make bench     the benchmarks, peers side by side, and benchmarks/report.md (root; BENCH_ARGS=\"storm scan\" picks)"
	@echo "make bench-quick  all of them in small, in two minutes, to see that they work (root)"
	@echo "make bench-check  whether a watch and a signal take more instructions than they did (root; valgrind)"
	@echo "make soak      half an hour of creation, kills, renames and removals, with figures (root; SOAK_SECONDS=1800)"
	@echo "make races     RACES=10000 times a kill and the removal of its cgroup at once, with figures (root)"
	@echo "make fuzz      the parsers and the model of a kernel, other inputs each time (FUZZ_SECONDS=600, FUZZ_ARGS=\"model\" picks)"
	@echo "make faults    each system call made to fail once, in each place, with each errno; writes docs/faults.md"
	@echo "make docs      the site, in .cache/site, and a look at each page in a browser (chromium)"
	@echo "make manual    what is drawn and derived: diagrams of docs/, the manual page and completions of share/"
	@echo "make lint      ruff, mypy, gcc's warnings and analyzer, clang-tidy"
	@echo "make sanitize  the tests under ASan and UBSan, the C core under TSan and valgrind too"
	@echo "make wheel     dist/: the wheel and the sdist, as they are published, checked"

demo: $(VENV)/ready
	@$(BIN)/memcg-oom demo

test: $(VENV)/ready
	@$(BIN)/python -m tests.vm.machine
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-kernels: wheel
	@$(BIN)/python -m tests.vm.machine
	@$(BIN)/python -m tests.vm.matrix dist/*.whl $(KERNELS)

test-pythons: wheel
	@$(BIN)/python -m tests.vm.machine
	@$(BIN)/python -m tests.pythons dist $(PYTHONS)

test-wheel: wheel
	@TESTS="$${TESTS:-tests/fake tests/real}" $(BIN)/python -m tests.pythons dist $(abspath $(BIN))/python

bench bench-quick: $(VENV)/ready
	@$(BIN)/pip install --quiet --group bench
	@$(BIN)/python -m benchmarks $(if $(filter bench-quick,$@),--quick) $(BENCH_ARGS)

bench-check: $(VENV)/ready
	@$(BIN)/python -m benchmarks.instructions --check

soak: $(VENV)/ready
	@MEMCG_OOM_SOAK=$(SOAK_SECONDS) $(BIN)/python -m pytest tests/real/soak.py

races: $(VENV)/ready
	MEMCG_OOM_RACES=$(RACES) $(BIN)/python -m pytest tests/real/races.py

fuzz: $(VENV)/ready
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ_ARGS)

faults: $(VENV)/ready
	@MEMCG_OOM_WRITE_FAULTS=1 $(BIN)/python -m pytest -q tests/fake/test_system_calls_fail.py tests/real/test_injected.py

docs: $(VENV)/ready
	@$(BIN)/pip install --quiet --group docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@$(BIN)/python -m tools.browse_site .cache/site

manual: $(VENV)/ready
	@$(BIN)/pip install --quiet --group docs
	@$(BIN)/python -m tools.make_manual
	@$(BIN)/python -m tools.draw_timing

lint: $(VENV)/ready
	@command -v clang-tidy >/dev/null || { echo "missing: apt-get install clang-tidy" >&2; exit 1; }
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for file in $(C_FILES) $(BENCHMARKS); do gcc $(WARNINGS) -fanalyzer -Icsrc -O2 -c -o /dev/null $$file || exit 1; done
	clang-tidy --quiet $(C_FILES) -- -std=c11 -Icsrc -D_GNU_SOURCE

sanitize: $(VENV)/ready
	tools/sanitize.sh $(VENV)

wheel: $(VENV)/ready
	@tools/wheel.sh $(VENV) dist

clean:
	rm -rf $(VENV) build dist *.egg-info memcg_oom/*.so memcg_oom/_native.c .*_cache

# The virtual environment, with the package built in it; made anew when what it is built from changes.
$(VENV)/ready: $(SOURCES) tools/setup.sh
	@PYTHON=$(PYTHON) tools/setup.sh $(VENV)
	@touch $@
