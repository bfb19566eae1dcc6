# make train   set everything up and train the default recipe   make train ARGS="reference-40 --seed 1"
# make test    set everything up and run the fast tests; ARGS="-m slow": those with browsers, services and kills
# make test-processors   run the numerical tests as less capable x86 processors would; ARGS=--short: two of seven
# make check   lint, types, the README's figures against results/, docs/API.md against the docstrings
# make results rewrite figures and pictures from results/, and docs/API.md from the docstrings
# make tour    execute docs/tour.ipynb anew and store what it shows
# make faults  interrupt trainings in every way and compare bits: 20 kills, 20 signals, and what leaving out a part does
# make load    the HTTP service under load, beside onnxruntime alone
# make boards  the exported C on emulated microcontrollers: instructions, flash, RAM, stack, and whether bits are equal
# make clean   remove what was installed (runs, results and the data cache stay)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
ARGS ?=
PIP_OPTIONS ?=

.PHONY: train test test-processors check results tour faults load boards clean

train: $(INSTALLED)
	@$(BIN)/tinycifar train $(ARGS)

test: $(INSTALLED)
	@$(BIN)/python -m pytest -m "not end_to_end and not slow" --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

test-processors: $(INSTALLED)
	@$(BIN)/python tests/processors.py $(ARGS)

check: $(INSTALLED)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@for version in 3.10 3.11 3.12 3.13; do $(BIN)/mypy --python-version $$version || exit 1; done
	@$(BIN)/python scripts/update_results.py --check
	@$(BIN)/python scripts/write_api.py --check

results: $(INSTALLED)
	@$(BIN)/python scripts/update_results.py
	@$(BIN)/python scripts/write_api.py

tour: $(INSTALLED)
	@$(BIN)/python scripts/tour.py

faults: $(INSTALLED)
	@$(BIN)/python tests/faults.py $(ARGS)

load: $(INSTALLED)
	@$(BIN)/python tests/load.py $(ARGS)

BOARD_PROGRAMS := arm-none-eabi-gcc riscv64-unknown-elf-gcc qemu-system-arm qemu-system-riscv32 gcc
BOARD_PACKAGES := gcc-arm-none-eabi libnewlib-arm-none-eabi gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf \
	qemu-system-arm qemu-system-misc gcc libc6-dev

# Debian's compilers and QEMU are installed if one of them is missing.
boards: $(INSTALLED)
	@for program in $(BOARD_PROGRAMS); do command -v $$program > /dev/null || missing=1; done; \
	if [ -n "$$missing" ]; then \
	    sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	    $$sudo apt-get update --quiet; \
	    $$sudo apt-get install --yes --quiet --no-install-recommends $(BOARD_PACKAGES); \
	fi
	@PYTHONPATH=tests $(BIN)/python -m boards $(ARGS)

clean:
	rm -rf $(VENV)

# The stamp is written last, so an interrupted install starts over.
$(INSTALLED): pyproject.toml
	@echo "Setting up $(VENV): about a minute, and 200 MB to 2 GB depending on the build of torch"
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "tinycifar needs Python 3.10 or newer: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --disable-pip-version-check $(PIP_OPTIONS) --editable ".[parquet,serve,sweep,tensorboard,tflite,dev]"
	@touch $@
