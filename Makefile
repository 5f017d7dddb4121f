PYTHON ?= python
CHECKER = $(if $(findstring /,$(PYTHON)),$(abspath $(PYTHON)),$(PYTHON))

.PHONY: test slow lint format docs dist lowest

test:  ## the suite, about eleven minutes on two cores
	$(PYTHON) -m pytest -n 2

slow:  ## what the suite leaves out: whole trainings, and further cases of what it has
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

docs:  ## the site, in site/; every warning is an error
	$(PYTHON) -m sphinx --fresh-env --fail-on-warning --keep-going --quiet --builder html docs site

dist:  ## the wheel and the source distribution, in dist/, and checks of both
	rm -rf dist build
	$(PYTHON) -m build --outdir dist .
	rm -rf build
	$(PYTHON) -m twine check --strict dist/*
	$(PYTHON) -m check_wheel_contents dist/*.whl

# The lowest of each package that is asked for; what these bring is as new as it may be.
lowest:  ## the suite with the lowest versions that pyproject.toml allows, in an environment of its own
	rm -rf .lowest
	$(PYTHON) -m venv .lowest
	.lowest/bin/python -m pip install --quiet -c constraints-lowest.txt -e ".[dev]"
	.lowest/bin/python -m pytest -n 2 --deselect tests/package/test_supply_chain.py
