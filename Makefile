PYTHON ?= python
CHECKER = $(if $(findstring /,$(PYTHON)),$(abspath $(PYTHON)),$(PYTHON))

.PHONY: test slow lint format

test:  ## the whole suite, a few minutes on two cores
	$(PYTHON) -m pytest -n 2

slow:  ## what the suite leaves out
	$(PYTHON) -m pytest -m slow

# mypy does not follow the mapping of the top-level folders into the package: it checks an installed copy.
lint:  ## style and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	rm -rf .typecheck build
	$(PYTHON) -m pip install --quiet --no-deps --target .typecheck .
	cd .typecheck && $(CHECKER) -m mypy --config-file ../pyproject.toml -p pwl_hf

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
