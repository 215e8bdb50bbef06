# Everything a person does with this project, by name. `make help` lists it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PRESET ?= sample
ARGS ?=
RUNS ?= runs
PORT ?= 5000
IMAGE_REGISTRY ?=
IMAGE_TAG ?=
export IMAGE_REGISTRY IMAGE_TAG

.DEFAULT_GOAL := help
.PHONY: help run test e2e lint format compile-pipeline check-pipeline mlflow demo images push test-images test-cluster manifests bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/run.stamp ## the whole pipeline on the offline sample (PRESET=, ARGS="key=value …")
	$(BIN)/mmgemma run --preset $(PRESET) --runs $(RUNS) $(ARGS)

test: $(VENV)/dev.stamp ## every test that needs no GPU, cluster or network
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

e2e: $(VENV)/dev.stamp ## whole pipelines: the sample, and real photographs (minutes)
	$(BIN)/python -m pytest tests/e2e $(ARGS)

lint: $(VENV)/dev.stamp ## ruff, mypy and deptry (what is imported is declared)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/deptry src components pipelines

format: $(VENV)/dev.stamp ## let ruff lay the code out
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The committed pipelines name images by tag; once images were pushed, compiling names them by digest.
compile-pipeline: export IMAGE_DIGESTS ?= $(wildcard images/digests.json)
check-pipeline: export IMAGE_DIGESTS :=
compile-pipeline: $(VENV)/run.stamp ## write pipelines/compiled/*.yaml (IMAGE_REGISTRY=, IMAGE_TAG=)
	PYTHONHASHSEED=0 $(BIN)/python -m pipelines.compile

check-pipeline: compile-pipeline ## fail if the committed pipelines are not what the code compiles to
	git diff --exit-code -- pipelines/compiled

mlflow: $(VENV)/run.stamp ## browse the registry of the local runs (PORT=5000)
	@test -f $(RUNS)/mlflow/mlflow.db || { echo "make mlflow: $(RUNS)/mlflow/mlflow.db does not exist yet; run \`make run\` first."; exit 2; }
	$(BIN)/mlflow server --backend-store-uri sqlite:///$(abspath $(RUNS))/mlflow/mlflow.db --port $(PORT)

demo: $(VENV)/serve.stamp ## chat about pictures with the latest run's model, in the browser
	$(BIN)/mmgemma demo --model $(RUNS)/latest

images: ## build the pipeline and trainer images (IMAGE_REGISTRY=, IMAGE_TAG=, BASE_IMAGE=)
	images/build.sh

push: ## push the images and note their digests in images/digests.json
	images/push.sh

test-images: $(VENV)/dev.stamp ## the images, built and run with a real Docker engine (minutes)
	PYTHON=$(BIN)/python images/test.sh $(ARGS)

test-cluster: $(VENV)/dev.stamp ## the scenarios of tests/cluster on the cluster of KUBECONFIG (ARGS="--cluster-cpu 1")
	$(BIN)/python -m pytest tests/cluster -v -rs $(ARGS)

manifests: ## render every overlay
	@for overlay in base overlays/kind overlays/gke-a100; do kubectl kustomize manifests/$$overlay > /dev/null || exit 1; done

bench: $(VENV)/run.stamp ## what measures speed, at true shapes (benchmarks/*.py; long, and up to 19 GB of memory)
	@for script in benchmarks/*.py; do \
		if [ $$script = benchmarks/gpu.py ] && ! nvidia-smi > /dev/null 2>&1; then echo "== $$script: no GPU here"; continue; fi; \
		echo "== $$script"; $(BIN)/python $$script || exit 1; done

# What the tests drive besides Python, where npm is at hand: a linter of workflows, and an S3 server that refuses strangers.
build/node/stamp: tests/package.json
	@mkdir -p $(@D)
	cp tests/package.json $(@D)
	npm install --silent --no-fund --no-audit --no-package-lock --prefix $(@D)
	@touch $@

# DVC brings dozens of packages, so it has an environment of its own.
build/dvc/stamp: constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dvc
	@touch $@

# lmms-eval's pins fight this project's, so it has an environment of its own: it sees what is installed here, and adds what
# the loader of tasks and the adapter of Llava models import. The many tasks that need more do not run in it.
LMMS_NEEDS := datasets decord evaluate jsonlines loguru lxml pytablewriter sacrebleu tenacity tqdm-multiprocess
build/lmms/stamp: constraints.txt $(VENV)/dev.stamp
	$(PYTHON) -m venv --clear --without-pip $(@D)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
		> $$($(@D)/bin/python -c 'import site; print(site.getsitepackages()[0])')/project.pth
	$(BIN)/python -m pip --python $(@D)/bin/python install --quiet --disable-pip-version-check -c constraints.txt $(LMMS_NEEDS)
	$(BIN)/python -m pip --python $(@D)/bin/python install --quiet --disable-pip-version-check --no-deps lmms-eval==0.7.3
	@touch $@

clean: ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

# A stamp a set of extras, so that `make run` does not install what only the tests need.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,pipeline]'
	@touch $@

$(VENV)/serve.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[serve,pipeline]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/run.stamp $(VENV)/serve.stamp
