# Every target does its own set-up (tools/setup.sh) and is quick when nothing changed.
.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-all cluster numba rdma lint format sanitize wheel tarball clean

PYTHON_IN_VENV := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTEST_ARGS ?=
# Tests mostly wait for processes: one more at a time than there are CPUs, but not more than memory is there for.
PYTEST_WORKERS ?= $(shell n=$$(nproc); echo $$((n < 8 ? n + 1 : 8)))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## system packages that are missing, .venv, Python packages
	@tools/setup.sh

build: setup ## compile the client libraries, softgpu and the engine (build/)
	@$(PYTHON_IN_VENV) tools/build_native.py

demo: build ## run an unmodified Numba-CUDA program on a remote GPU (softgpu where there is no GPU)
	@$(PYTHON_IN_VENV) -m orion_client.demo

test: build ## the tests, without the slow ones
	$(PYTHON_IN_VENV) -m pytest -q -n $(PYTEST_WORKERS) -m "not slow" $(PYTEST_ARGS)

test-all: build ## the slow tests
	$(PYTHON_IN_VENV) -m pytest -q -n 2 --dist loadfile -m "slow and not cluster" --ignore=tests/rdma $(PYTEST_ARGS)

cluster: setup ## the tests on a real Kubernetes (root; the first run builds it, 3 to 6 minutes)
	$(PYTHON_IN_VENV) -m pytest -q -s -m cluster tests/cluster $(PYTEST_ARGS)

numba: build ## numba-cuda's own test suite on softgpu, whole (a quarter of an hour on 2 CPUs)
	$(PYTHON_IN_VENV) tools/numba_suite.py

rdma: build ## RDMA over soft-RoCE in QEMU: server, softgpu, clients, real verbs; tests/e2e over UCX's tcp (minutes)
	@tools/setup.sh --rdma
	$(PYTHON_IN_VENV) -m pytest -q -s -m slow tests/rdma $(PYTEST_ARGS)
	ORION_E2E_TRANSPORTS=ucx $(PYTHON_IN_VENV) -m pytest -q tests/e2e $(PYTEST_ARGS)

lint: build ## ruff, mypy, clang-format, clang-tidy, stale generated files
	@tools/lint.sh

format: setup ## rewrite sources in the project's style
	@tools/format.sh

sanitize: build ## native tests under ASan, UBSan and TSan, and two minutes of libFuzzer
	tests/native/run.sh

wheel: setup ## dist/*.whl
	$(PYTHON_IN_VENV) -m pip wheel -q --no-deps --no-build-isolation --wheel-dir dist .

tarball: setup ## dist/orion-client-VERSION-linux-x86_64.tar.gz: the two client libraries alone
	$(PYTHON_IN_VENV) tools/make_tarball.py

clean: ## remove what the build made (not .venv, not the cache of third-party builds)
	rm -rf build dist *.egg-info orion_server/engine/_engine* orion_server/arbiter/_arbiter*
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
