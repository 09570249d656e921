# Each target does all the set-up it needs; `make help` lists them.
# PYTHON=path   the Python that .venv is made from (3.10 or newer); its torch is used if >= 2.10.
#               `make test-cuda` runs in it as it is, unnamed in .venv or else in python3
# DATA=path     a data folder of your own for `make demo`: COCO, YOLO, Pascal VOC or LabelMe
# ARGS='...'    further arguments for pytest, the demo or the benchmark

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
DATA ?=
ARGS ?=

PY := $(VENV)/bin/python
STAMPS := $(VENV)/.stamps
# Without compiling them: Python compiles what it imports, which is a small part of what is installed.
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile
NATIVE_SOURCES := $(shell find ops -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh' 2>/dev/null)
CXX_FOUND := $(firstword $(foreach name,$(CXX) c++ g++ clang++,$(shell command -v $(name))))
# A PYTHON that is named would otherwise be ignored where there is a .venv already.
MADE_FROM := $(shell cat $(VENV)/made-from 2>/dev/null)
ifneq ($(filter-out test-cuda,$(MAKECMDGOALS)),)
ifneq ($(origin PYTHON),file)
ifneq ($(MADE_FROM),)
ifneq ($(MADE_FROM),$(shell command -v $(PYTHON)))
$(error $(VENV) was made from $(MADE_FROM), not from $(PYTHON); remove it first: rm -rf $(VENV))
endif
endif
endif
endif
# Exits with 0 when the Python that runs it has a torch that is new enough.
HAS_TORCH := import torch; \
	raise SystemExit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10))
# Where PYTHON is itself a virtual environment, its packages are no "system site packages".
TORCH_FOLDER := import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])
SITE_FOLDER := import sysconfig; print(sysconfig.get_path("purelib"))

# A machine with a GPU may have no network: test-cuda takes a Python as it is.
CUDA_PYTHON := $(if $(filter file,$(origin PYTHON)),$(firstword $(wildcard $(PY)) $(PYTHON)),$(PYTHON))
CUDA_NEEDS := $(shell sed 's/\#.*//; s/[<>=].*//' requirements/test_cuda.txt)
# Prints the generations of the GPUs that torch sees, such as 9.0, or says what is missing.
GPU_ARCHITECTURES := import importlib.util, sys; \
	missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]; \
	missing and sys.exit("make test-cuda: %s lacks %s; see requirements/test_cuda.txt, or name \
	another one: make test-cuda PYTHON=/path/to/python3" % (sys.executable, ", ".join(missing))); \
	import torch; \
	gpus = range(torch.cuda.device_count()); \
	gpus or sys.exit("make test-cuda: torch %s of %s sees no GPU" % (torch.__version__, sys.executable)); \
	print(";".join(sorted({"%d.%d" % torch.cuda.get_device_capability(gpu) for gpu in gpus})))

# Of tests/ops, those that run the kernels.
SANITIZED_TESTS := test_cpu_kernels.py test_dropout.py test_fused.py test_ms_deform_attn.py test_op_errors.py \
	test_op_fuzz.py test_op_properties.py

SOAK_MINUTES ?= 60

# Waiting threads soon sleep instead of spinning: a step loses a twelfth on a quiet machine, and
# does not grow tenfold when another process wants a core.
export GOMP_SPINCOUNT ?= 2000

# The op is built while packages are installed.
MAKEFLAGS += -j2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-isa test-cuda sanitize soak lint docs bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMPS)/package $(STAMPS)/requirements ## make .venv, install what is pinned, build the op

demo: setup ## train, evaluate and draw; DATA=path takes your own data folder
	$(PY) tools/demo.py $(if $(DATA),--data "$(DATA)") $(ARGS)

# Two processes of one thread each: most of the time goes into what has one thread. ARGS='-n 0' is one
# process.
test: setup $(STAMPS)/test-requirements ## run the tests
	$(if $(CXX_FOUND),DDETR_REQUIRE_NATIVE=1) OMP_NUM_THREADS=1 \
		$(PY) -m pytest -q --tb=short -n 2 --dist worksteal $(ARGS)

# 16-bit results depend on the instructions of the CPU.
test-isa: setup $(STAMPS)/test-requirements ## run the numeric tests under each instruction set of the CPU
	$(if $(CXX_FOUND),DDETR_REQUIRE_NATIVE=1) OMP_NUM_THREADS=1 \
		$(PY) tests/package/instruction_sets.py -n 2 --dist worksteal $(ARGS)

# Only for the GPUs that are there, which takes a fraction of the time. --force: setuptools would not
# notice that a library was built for others.
test-cuda: ## build the op in place and run its tests on the GPU; needs requirements/test_cuda.txt
	@architectures=$$($(CUDA_PYTHON) -c '$(GPU_ARCHITECTURES)' $(CUDA_NEEDS)) && \
		echo "Building the op for GPUs of generation $$architectures" && \
		DDETR_BUILD_OPS=1 FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$$architectures" \
		$(CUDA_PYTHON) setup.py -q build_ext --inplace --force
	DDETR_REQUIRE_NATIVE=1 $(CUDA_PYTHON) -m pytest -q --tb=short -m cuda tests/ops $(ARGS)

# In the folder of the build, so that Python finds that package and not this one. Leaks are those of
# Python itself; memory that cannot be had is an error as without sanitizers; a process that dies at
# exit under compilers' threads is no finding either. Neither is pyproject.toml's pythonpath taken,
# whose "." is this folder.
sanitize: setup ## run the op's tests under AddressSanitizer and UndefinedBehaviorSanitizer (GCC)
	CFLAGS='-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer' \
		LDFLAGS='-fsanitize=address,undefined' DDETR_BUILD_OPS=1 $(PY) setup.py -q \
		build --build-base build/sanitized --build-lib build/sanitized/lib
	cd build/sanitized/lib && DDETR_REQUIRE_NATIVE=1 \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
		$(abspath $(PY)) -m pytest -q --tb=short -p no:cacheprovider -o pythonpath= $(ARGS) \
		$(addprefix $(CURDIR)/tests/ops/,$(SANITIZED_TESTS))

soak: setup ## train for SOAK_MINUTES (60), predict a thousand times, fail if memory grows
	$(PY) -m benchmarks.long_runs.soak --minutes $(SOAK_MINUTES) $(ARGS)

# mypy reads the types of the packages that the code imports.
lint: $(STAMPS)/requirements ## check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# It reads the sources and imports none of them. Strict: a broken link or reference ends it.
docs: $(STAMPS)/docs-requirements ## build the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo 'See build/site/index.html'

bench: setup ## measure the op; see benchmarks/ for the rest
	$(PY) -m benchmarks.op $(ARGS)

clean: ## remove what was built, but neither .venv nor results
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis $(STAMPS)/package
	find ddetr_plugin -name '*.so' -delete -o -name '*.build.json' -delete
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The steps of the set-up leave stamps, so that each is repeated only when its inputs change.

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo 'Python 3.10 or newer is needed; name one: make PYTHON=/path/to/python3' >&2; exit 1; }
	@if $(PYTHON) -c '$(HAS_TORCH)' 2>/dev/null; then \
		echo 'Making $(VENV) on top of the torch that $(PYTHON) has'; \
		$(PYTHON) -m venv --system-site-packages $(VENV) && \
		{ $(PY) -c 'import torch' 2>/dev/null || \
			$(PYTHON) -c '$(TORCH_FOLDER)' > $$($(PY) -c '$(SITE_FOLDER)')/torch_of_python.pth; }; \
	else \
		echo 'Making $(VENV)'; \
		$(PYTHON) -m venv $(VENV); \
	fi || { rm -rf $(VENV); \
		echo 'The venv module failed; on Debian or Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@command -v $(PYTHON) > $(VENV)/made-from

$(STAMPS)/torch: | $(PY)
	@mkdir -p $(STAMPS)
	@$(PY) -c '$(HAS_TORCH)' 2>/dev/null || { echo 'Installing $(TORCH)'; $(PIP) '$(TORCH)'; }
	@touch $@

$(STAMPS)/build-requirements: $(STAMPS)/torch requirements/dev.txt requirements/runtime.txt
	@echo 'Installing what builds the op'
	@$(PIP) -r requirements/dev.txt -c requirements/runtime.txt setuptools
	@touch $@

$(STAMPS)/requirements: $(STAMPS)/build-requirements requirements/runtime.txt requirements/openmmlab.txt
	@echo 'Installing the pinned packages'
	@$(PIP) -r requirements/runtime.txt
	@$(PIP) --no-deps -r requirements/openmmlab.txt
	@touch $@

$(STAMPS)/test-requirements: $(STAMPS)/requirements requirements/test.txt requirements/test_no_deps.txt
	@echo 'Installing what only tests need'
	@$(PIP) -r requirements/test.txt
	@$(PIP) --no-deps --retries 0 --timeout 10 -r requirements/test_no_deps.txt \
		|| echo 'Without panopticapi-lite, tests of PQ are skipped'
	@touch $@

$(STAMPS)/docs-requirements: requirements/docs.txt | $(PY)
	@mkdir -p $(STAMPS)
	@echo 'Installing what makes the documentation'
	@$(PIP) -r requirements/docs.txt
	@touch $@

$(STAMPS)/package: $(STAMPS)/build-requirements $(wildcard setup.py pyproject.toml MANIFEST.in) $(NATIVE_SOURCES)
	@echo 'Building the op and installing the package'
	@$(if $(CXX_FOUND),,echo 'No C++ compiler: the op will be slow. Install g++, then: make clean setup' >&2; DDETR_BUILD_OPS=0) \
		$(PIP) --no-build-isolation --no-deps -e .
	@touch $@
