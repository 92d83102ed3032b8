# Each target sets up what it needs. PYTHON and TORCH may be overridden: make test PYTHON=python3.12
PYTHON ?= python3
# Pinned: an open range would pull another build of torch, of several GB.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt README.md \
  $(wildcard csrc/*.cpp csrc/*/* csrc/*/*/*) $(wildcard ssept_ext/*.py ssept_ext/*/*.py ssept_ext/*/*/*.py)

# A wheel is for the GPUs of CMakeLists.txt's default, or for those that the caller names.
WHEEL_ENV := $(if $(CUDAARCHS),,env -u CUDAARCHS)
# pip does not compile modules that may never be imported, of torch's build environment least of all. It turns a no-option
# on by a false value.
export PIP_NO_COMPILE := no
# One GPU generation is enough for a development build; a plain `pip install .` takes CMakeLists.txt's default.
export CUDAARCHS ?= 90-real
# What test-matrix tests: each of these Pythons with each of these releases of torch.
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
TORCHES ?= 2.11.0 2.13.0 2.14.1
MATRIX_TESTS ?= tests
MATRIX := $(foreach python,$(PYTHONS),$(foreach torch,$(TORCHES),build/matrix/$(python)-torch-$(torch)))

# Two processes: many tests wait for one thread. Tests of one file stay together, as they share what they compiled. In the
# order of tests/conftest.py, slow files first: xdist's own begins with files of many tests, and ends on one core.
PYTEST := pytest -n 2 --dist loadfile --no-loadscope-reorder
# Threads that wait sleep, and leave their core to the other process.
test test-all $(MATRIX): export OMP_WAIT_POLICY := passive

# The synthetic data set is made for a short window, see ssept_ext/data/synthetic.py.
DEMO_OPTIONS ?= --seq-max-len 2 --window-sampling-prob 1 --num-blocks 1 --item-embedding-dim 32 \
  --user-embedding-dim 16 --dropout-rate 0.1 --loss sampled_softmax --num-negatives 16 \
  --schedule cosine --learning-rate 0.01 --epochs 60 --val-epoch 10
# The demo uses the development environment if there is one, or installs only what it needs.
DEMO_INSTALLED := $(if $(wildcard $(VENV)/installed),$(VENV)/installed,$(VENV)/demo-installed)
# CUDA kernels take minutes to build, so the demo builds them only where it can use them: for the GPU that is there.
GPUS = $(shell nvcc --version >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null)
DEMO_BUILD_ENV = $(if $(GPUS),CUDAARCHS=native,SSEPT_CUDA=OFF)

.PHONY: help demo test test-all test-matrix $(MATRIX) lint format docs wheel bench gpu-check clean

help:
	@echo "make demo    build for the CPU (or this machine's GPU), train and evaluate on a synthetic data set"
	@echo "make test    install into $(VENV) and run the tests"
	@echo "make test-all   the same, and the slow ones: kernels under checkers, for older processors and GPUs, by other compilers"
	@echo "make test-matrix   the tests on several Pythons and releases of torch, each in build/matrix"
	@echo "make lint    check format, style and types"
	@echo "make format  format all sources"
	@echo "make docs    build the documentation, in build/docs"
	@echo "make wheel   build a wheel and check it, in dist"
	@echo "make bench   measure against eager PyTorch; results go to bench/results"
	@echo "make gpu-check  build, test, measure and sanitize on this machine's GPU; results go to bench/results"

# One thread: the model is so small that a second one only costs time.
demo: $(DEMO_INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/ssept train $(DEMO_OPTIONS)

test: $(VENV)/installed
	$(BIN)/$(PYTEST) -m "not slow" $(PYTEST_OPTIONS)

test-all: $(VENV)/installed
	$(BIN)/$(PYTEST) $(PYTEST_OPTIONS)

test-matrix: $(MATRIX)

$(MATRIX): %: %/installed
	$@/bin/$(PYTEST) -m "not slow" $(PYTEST_OPTIONS) $(MATRIX_TESTS)

# The module is built with the torch of pyproject.toml, in pip's build environment, and has to run with any other.
build/matrix/%/installed: $(SOURCES)
	test -d $(@D) || $(firstword $(subst -torch-, ,$*)) -m venv $(@D)
	$(@D)/bin/pip install --quiet "torch==$(lastword $(subst -torch-, ,$*))"
	SSEPT_CUDA=OFF $(@D)/bin/pip install ".[test]"
	touch $@

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

# Zensical prints what is wrong with docstrings, but does not fail because of it.
docs: $(VENV)/installed
	mkdir -p build
	$(BIN)/zensical build --strict --clean >build/docs.log 2>&1 && ! grep -q griffe: build/docs.log \
	  || { cat build/docs.log; false; }

# torch's libraries stay outside: `import torch` has loaded them. auditwheel looks for patchelf on PATH.
wheel: $(VENV)/installed
	rm -rf build/wheel dist
	$(WHEEL_ENV) $(BIN)/pip wheel . --no-deps --wheel-dir build/wheel
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude libtorch_cpu.so --exclude libc10.so \
	  --wheel-dir dist build/wheel/*.whl
	$(BIN)/auditwheel show dist/*.whl
	$(BIN)/twine check --strict dist/*.whl
	$(BIN)/python -m zipfile -e dist/*.whl build/wheel
	cd build/wheel && "$(abspath $(BIN))/python" -m ssept_ext info

bench: $(VENV)/installed
	$(BIN)/python bench/all.py

# Not in $(VENV): a machine with a GPU brings its own torch, and perhaps no network.
gpu-check:
	$(PYTHON) bench/gpu_check.py --out "bench/results/gpu-$$(date +%F)"

clean:
	rm -rf $(VENV) build dist

$(VENV)/installed: $(SOURCES)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install ".[test,lint,docs,wheel]"
	# TorchRec asks for FBGEMM's CUDA build, of which the tests of large tables need no more than the CPU's.
	$(BIN)/pip install --quiet --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0 torchmetrics==1.0.3
	# Pinned: a newer one could ask for another torch.
	$(BIN)/pip install --quiet tensordict==0.15.3 pyre-extensions==0.0.32 lightning-utilities==0.15.3
	touch $@

# Without build isolation, which would unpack torch a second time.
$(VENV)/demo-installed: $(SOURCES)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" "scikit-build-core>=0.10" "pybind11>=2.13" "ninja>=1.11" "cmake>=3.26"
	$(DEMO_BUILD_ENV) $(BIN)/pip install --quiet --no-build-isolation .
	touch $@
