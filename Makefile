# make demo    the whole way on images it draws itself: shard, stats, train, eval
# make test    the tests          make test-all   the slow ones too; JOBS processes, one a core
# make check   format, lint, types, imports, generated docs
# make docs    the generated tables of docs/       make site    docs/ as a static site, build/site
# make gpu-check OUT=folder [DATA=data set]   all that needs a GPU, tests and measurements, 8 minutes;
#              with PYTHON=python3 by that Python and its packages, without .venv (docs/notes/machines.md)
# make gpu-proofs   what is proved of a GPU without one, a part of make test
# make fuzz    SECONDS of changed files of every kind, drawn by SEED, against their readers
# make lock    locks/*.txt anew: what the set-ups install, with the hashes of all files of it
# make browser Debian's chromium, which the tests of the report look at its pages with
# All set-ups take TORCH=pypi: PyTorch for CUDA 13 by its hashes, instead of the build that pip finds.
# They ask nothing and do nothing when they have been done; Python's land in .venv.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
LOCKED := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
    --no-build-isolation
UV := uv==0.13.9
LOCKS := locks/build.txt locks/run.txt locks/simd.txt locks/torch.txt
# In a lock of their own, for the build of torch that is right depends on the machine: PyPI has one for
# CUDA 13, others are on indexes of PyTorch's. TORCH=pypi installs PyPI's by its hashes; otherwise pip
# takes the one that is installed, or that it finds.
TORCH ?= any
TORCH_PACKAGES := torch cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti \
    nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver \
    nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 \
    nvidia-nvtx
COMPILE_ALL = build/lock/bin/uv pip compile --quiet --no-header --no-annotate --universal \
    --python-version 3.11 --generate-hashes --constraint constraints.txt
COMPILE = $(COMPILE_ALL) $(addprefix --no-emit-package ,$(TORCH_PACKAGES))
APT := apt-get install --yes --no-install-recommends

JOBS ?= auto
OUT ?= build/gpu-check
GENERATED := $(wildcard docs/reference/*.md) docs/notes/differences.md docs/notes/results.md README.md

.PHONY: demo test test-all gpu-proofs check docs site gpu-check fuzz lock browser headers clean

demo: .venv/.installed
	$(BIN)/alexprep demo

test: .venv/.dev
	$(BIN)/python -m pytest --quiet --numprocesses $(JOBS) --dist worksteal

test-all: .venv/.dev
	$(BIN)/python -m pytest --quiet --numprocesses $(JOBS) --dist worksteal -m "not gpu and not two_gpus"

# Kernels, crossings between GPUs, graphs and budgets, each against what a CPU can show of it.
gpu-proofs: .venv/.dev
	$(BIN)/python -m pytest --quiet --numprocesses $(JOBS) --dist worksteal $(addprefix tests/test_, \
	    $(addsuffix .py,fake_gpus waiting step_budget dali_graph training_graph dropout_triton planes_triton \
	    sgd_triton stages_triton cuda_ops first_layer norms_channels_last))

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/cog -I . --check $(GENERATED)

docs: .venv/.dev
	$(BIN)/cog -I . -r $(GENERATED)

fuzz: SECONDS := 60
fuzz: SEED := 0
fuzz: .venv/.dev
	PYTHONPATH=. $(BIN)/python benchmarks/fuzz.py --seconds $(SECONDS) --seed $(SEED) --out build/fuzz

site: .venv/.dev
	$(BIN)/mkdocs build --quiet

# A PYTHON that was asked for is taken as it is: a GPU host may reach no package index.
ifeq ($(origin PYTHON),file)
gpu-check: .venv/.dev
gpu-check: CHECKER := $(BIN)/python
else
gpu-check: CHECKER := $(PYTHON)
endif
gpu-check:
	@$(CHECKER) benchmarks/gpu/check.py --out "$(OUT)" $(if $(DATA),--data "$(DATA)")

# What making .venv needs; the compiler and headers are for pillow-simd, which is optional.
headers:
	@missing=""; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	test -f "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" \
	    || missing="$$missing python3-dev"; \
	printf '#include <stdio.h>\n#include <jpeglib.h>\n' | $(CC) -E - >/dev/null 2>&1 \
	    || missing="$$missing libjpeg-dev"; \
	printf '#include <zlib.h>\n' | $(CC) -E - >/dev/null 2>&1 || missing="$$missing zlib1g-dev"; \
	$(INSTALL_MISSING)

browser:
	@missing=""; command -v chromium >/dev/null || missing=" chromium"; \
	$(INSTALL_MISSING)

# Debian packages in $$missing: installed where that needs no password, else the line to type.
define INSTALL_MISSING
test -z "$$missing" && exit 0; \
if ! command -v apt-get >/dev/null; then sudo=none; \
elif [ "$$(id -u)" = 0 ]; then sudo=; \
elif sudo -n true 2>/dev/null; then sudo="sudo -n"; \
else sudo=none; fi; \
if [ "$$sudo" = none ]; then \
    echo "missing:$$missing. Type: sudo apt-get install --yes$$missing" >&2; exit 1; fi; \
echo "installing:$$missing"; \
export DEBIAN_FRONTEND=noninteractive; \
$$sudo apt-get update -qq && $$sudo $(APT) -qq $$missing >/dev/null
endef

.venv/bin/python:
	@$(MAKE) --no-print-directory headers || true
	$(PYTHON) -m venv .venv

# First what locks/ names, each file by its hash. Then pip adds torch, unless that was among it, and the
# CUDA libraries that its build pins.
# Dependencies are left out of the first step, for the lock has them all, and build isolation, which
# would fetch a newer setuptools to compile pillow-simd.
.venv/.installed: pyproject.toml constraints.txt $(LOCKS) | .venv/bin/python
	$(LOCKED) -r locks/build.txt
	$(LOCKED) -r locks/run.txt
	$(if $(filter pypi,$(TORCH)),$(LOCKED) -r locks/torch.txt)
	$(PIP) --no-build-isolation --editable '.[cuda13]'
	$(FASTER_PILLOW)
	touch $@

# timm asks for torchvision, which asks for one version of torch: both come without what they ask for,
# to read our shards in tests/test_readers.py.
.venv/.dev: .venv/.installed locks/dev.txt
	$(LOCKED) -r locks/dev.txt
	$(PIP) --no-build-isolation --editable '.[dev]'
	$(FASTER_PILLOW)
	touch $@

# pillow-simd instead of Pillow where it compiles: it resizes faster, to the same pixels.
define FASTER_PILLOW
$(BIN)/python -m pip uninstall --quiet --yes pillow
$(LOCKED) --force-reinstall -r locks/simd.txt || $(PIP) --no-deps pillow
endef

lock:
	@test -x build/lock/bin/uv || { $(PYTHON) -m venv build/lock && build/lock/bin/pip install -q $(UV); }
	@printf 'pip\nsetuptools\nwheel\nhatchling\neditables\n' | $(COMPILE) - -o locks/build.txt
	@$(COMPILE) pyproject.toml --extra cuda13 -o locks/run.txt
	@$(COMPILE) pyproject.toml --extra dev -o locks/dev.txt
	@printf 'timm\ntorchvision\n' | $(COMPILE) --no-deps - >>locks/dev.txt
	@printf 'torch\n' | $(COMPILE_ALL) - -o locks/torch.txt
	@printf 'pillow-simd\n' | $(COMPILE) --no-deps - -o locks/simd.txt

clean:
	rm -rf .venv
