# `make demo` and `make test` do all their own set-up on a machine that has Python >= 3.11 and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint install lock audit clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt fmad_dist/__init__.py # has the version
	@command -v uv >/dev/null || $(PYTHON) -m uv --version >/dev/null 2>&1 || $(PYTHON) -m pip install --quiet uv
	@UV="$$(command -v uv || echo $(PYTHON) -m uv)"; \
	  $$UV venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
	  $$UV pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

# `make demo` makes its own data; `make demo DATA=/path/to/mvtec_ad` takes a real tree in the MVTec AD layout.
demo: install
	$(BIN)/fmad demo $(if $(DATA),--source $(DATA))

# Versions and hashes again, of what pyproject.toml asks for; `make lock UPGRADE=--upgrade` takes the newest versions.
lock: install
	@UV="$$(command -v uv || echo $(PYTHON) -m uv)"; \
	  $$UV pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --custom-compile-command 'make lock' --output-file constraints.txt --quiet $(UPGRADE)

# Known vulnerabilities of those versions; needs a network that reaches the advisory data of PyPI.
audit: install
	@UV="$$(command -v uv || echo $(PYTHON) -m uv)"; \
	  $$UV tool run pip-audit --requirement constraints.txt --disable-pip

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist
