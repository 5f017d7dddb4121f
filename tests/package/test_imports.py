"""Importing the package: lazy, in any order, and under one name only. Each in a fresh process."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pwl_hf
from tests import children

ROOT = Path(__file__).resolve().parents[2]
REPORT = """
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
import sys
from pwl_hf import PWLConfig, PWLForImageClassification, VGGConfig, VGGForImageClassification
known = AutoModelForImageClassification._model_mapping
assert CONFIG_MAPPING["pwl"] is PWLConfig and CONFIG_MAPPING["pwl_vgg"] is VGGConfig
assert known[PWLConfig] is PWLForImageClassification and known[VGGConfig] is VGGForImageClassification
assert type(AutoConfig.for_model("pwl", num_stages=2)) is PWLConfig
assert not [f for f in sys.meta_path if "pwl_hf" in type(f).__module__], "the import hook is still there"
print("registered")
"""


def python(code: str, cwd: Path | str = "/") -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment, timeout=300
    )


def printed(code: str, cwd: Path | str = "/") -> str:
    done = python(code, cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def report(first: str) -> str:
    """What a process that has torch says after the import."""
    done = children.python(first + "\n" + REPORT, cwd="/")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_import_is_lazy():
    code = """
import sys
import pwl_hf
heavy = {"torch", "transformers", "huggingface_hub", "numpy", "safetensors", "jinja2", "typer"} & set(sys.modules)
import json; print(json.dumps([sorted(heavy), len(pwl_hf.__all__)]))
"""
    heavy, count = json.loads(printed(code))
    assert heavy == []
    assert count == len(pwl_hf.__all__)


@pytest.fixture(scope="module")
def saved_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model."""
    from tests.tiny import tiny_model

    folder = tmp_path_factory.mktemp("saved") / "repo"
    tiny_model("vit").save_pretrained(folder)
    return folder


PURE = ["task_names", "sources", "errors", "lazy", "bounds", "routes.cuts", "stages", "streaming.stream"]
IN_REPOSITORY = sorted(path.stem for path in (ROOT / "modeling" / "repository").glob("*.py"))


@pytest.mark.parametrize("module", IN_REPOSITORY)
def test_what_handles_files_imports_neither_torch_nor_transformers(module):
    code = f"import sys, pwl_hf.modeling.repository.{module}; print({{'torch', 'transformers'}} & set(sys.modules))"
    assert printed(code) == "set()"


def test_folder_is_opened_without_the_client_of_a_hub(saved_student):
    code = f"""
import sys
from pwl_hf.modeling.repository.source import Repository
opened = Repository.open({str(saved_student)!r})
manifest = opened.manifest()
opened.verify(manifest.files_for(manifest.schedule.mask(0)))
print({{"httpx2", "httpcore2", "filelock", "tqdm", "yaml", "numpy", "safetensors"}} & set(sys.modules))
"""
    assert printed(code) == "set()"


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_import_neither_torch_nor_transformers(module):
    code = f"import sys, pwl_hf.modeling.{module}; print({{'torch', 'transformers', 'safetensors'}} & set(sys.modules))"
    assert printed(code) == "set()"


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import AutoModelForImageClassification; import pwl_hf",
        "from pwl_hf import PWLForImageClassification",
        pytest.param("import pwl_hf.modeling.parts.construction", marks=pytest.mark.slow),
    ],
)
def test_auto_classes_know_our_models_in_any_order(first):
    assert report(first) == "registered"


def test_package_before_transformers_survives_a_search_for_its_auto_module():
    # A search finds the module and does not import it.
    first = "import pwl_hf, importlib.util; importlib.util.find_spec('transformers.models.auto.modeling_auto')"
    assert report(first) == "registered"


def test_importing_transformers_alone_knows_nothing_of_us():
    code = "import transformers, sys; print([name for name in sys.modules if name.startswith('pwl_hf')])"
    assert children.python(code, cwd="/").stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["modeling", "training"])
def test_import_of_a_top_level_folder_is_refused_with_the_right_name(name):
    done = python(f"import {name}", cwd=ROOT)
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert f"import it as `pwl_hf.{name}`" in done.stderr


def test_checkout_root_as_working_directory_gives_the_same_classes():
    code = """
import pwl_hf, pwl_hf.modeling, pwl_hf.training
from pathlib import Path
print(Path(pwl_hf.modeling.__file__).parent, pwl_hf.modeling.__name__)
"""
    assert printed(code, ROOT) == f"{ROOT / 'modeling'} pwl_hf.modeling"


@pytest.mark.parametrize("module", ["pwl_hf", "pwl_hf.data", "pwl_hf.evaluation", "pwl_hf.modeling"])
def test_all_is_sorted_complete_and_importable(module):
    found = importlib.import_module(module)
    names = list(found.__all__)
    assert names == sorted(names)
    for name in names:
        assert getattr(found, name) is not None
    assert set(names) <= set(dir(found))
    lazy = set(found._EXPORTS)
    assert set(names) - {"__version__"} == lazy


@pytest.mark.parametrize("module", ["pwl_hf", "pwl_hf.data", "pwl_hf.evaluation", "pwl_hf.modeling"])
def test_unknown_name_raises_attribute_error(module):
    found = importlib.import_module(module)
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
        found.nothing  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "from pwl_hf.data import DataSource",
        "from pwl_hf.waveforms import read_waveform",
        "from pwl_hf.evaluation import masks_of",
        "from pwl_hf.training.objective.masks import mixed_masks",
    ],
)
def test_light_names_of_sub_packages_import_neither_torch_nor_transformers(statement):
    heavy = "{'torch', 'transformers', 'datasets', 'safetensors'}"
    assert printed(f"import sys; {statement}; print({heavy} & set(sys.modules))") == "set()"


@pytest.mark.parametrize("module", ["pwl_hf", "pwl_hf.modeling"])
def test_public_names_are_documented_and_so_are_their_methods(module):
    found = importlib.import_module(module)
    missing = []
    for name in found.__all__:
        value = getattr(found, name)
        if not inspect.isclass(value):
            continue
        if not (value.__doc__ or "").strip() or value.__doc__.startswith(f"{name}("):
            missing.append(name)
        for key, member in vars(value).items():
            function = getattr(member, "__func__", member)
            is_own = inspect.isfunction(function) or isinstance(member, property)
            if is_own and not key.startswith("_") and not (inspect.getdoc(getattr(value, key)) or "").strip():
                missing.append(f"{name}.{key}")
    assert missing == []


def test_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert pwl_hf.__version__ == version("pwl-hf")
