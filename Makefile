# The two commands to know: `make quickstart` and `make test`. Everything runs in .venv, which tools/setup.sh makes.
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint unit ray rig cluster e2e images vllm generate pins vllm-pins clean
SHELL := bash
python := .venv/bin/python
DOCKER ?= docker
REGISTRY ?= camel-ray
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' camel_ray/version.py)

help: ## list the commands
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: ## make or refresh .venv (the first time: minutes; then: nothing to do)
	@tools/setup.sh

quickstart: setup ## the whole chain on this machine: text to a PPO-tuned, evaluated model
	@.venv/bin/camel-ray run -f examples/01-quickstart.yaml

test: lint rig ## all checks and all test layers
	@tools/test.sh

lint: setup ## ruff, mypy --strict, layer contracts, generated files
	@$(python) -m ruff check .
	@$(python) -m mypy
	@$(python) -c 'from importlinter.cli import lint_imports_command as main; main()'
	@$(python) -m camel_ray.api.generate --check

unit: setup ## unit tests: seconds, no Ray
	@$(python) -m pytest tests/unit

ray: setup ## tests that start Ray and train, on this machine
	@$(python) -m pytest tests/ray

rig: ## build a real Kubernetes and Helm for tests/cluster, tests/chart, tests/e2e (once, a quarter of an hour; needs Go)
	@tests/rig/build.sh control-plane kueue > /dev/null || echo "tests/cluster will be left out" >&2
	@tests/rig/build.sh helm > /dev/null || echo "tests/chart will be left out" >&2
	@tests/rig/build.sh node > /dev/null || echo "tests/e2e will be left out" >&2

cluster: setup rig ## tests of the operator on a real API server
	@$(python) -m pytest tests/cluster

e2e: setup rig ## the chart, the images and pipelines in real pods on a node of this machine; needs root
	@$(python) -m pytest tests/e2e

images: ## build the images of the operator and of stage pods; DOCKER=podman or buildah, REGISTRY=where they will lie
	@for target in operator trainer; do \
		$(DOCKER) build --target $$target --tag $(REGISTRY)/$$target:$(VERSION) \
			--build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) . || exit; \
	done

vllm: ## add vLLM (its CPU build) to .venv, for `rollout.engine: vllm` and tests/vllm: docs/guide/vllm.md
	@tools/setup.sh vllm

generate: setup ## write what is generated from the code: docs/reference, hf_arguments.json
	@$(python) -m camel_ray.api.generate

pins: setup ## resolve constraints.txt after a change of pyproject.toml (to raise a pin, delete it first)
	@.venv/bin/uv pip compile pyproject.toml --quiet --all-extras --python $(python) --no-annotate \
		--custom-compile-command 'make pins' --output-file constraints.txt

vllm-pins: setup ## resolve constraints-vllm.txt after a change of the shared dependencies or of vLLM's version
	@tools/pin_vllm.sh

clean: ## remove .venv and what tools left here; the shared dependencies and runs stay
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
