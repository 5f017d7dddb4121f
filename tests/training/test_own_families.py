"""A family of the user's own in the training scripts and on the command line, by the module that registers it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pwl_hf import PWLForImageClassification
from pwl_hf.cli import main
from pwl_hf.data.digits import image_processor
from pwl_hf.modeling.errors import InputError
from pwl_hf.modeling.families.registry import FAMILIES, OWN_CONFIGS
from pwl_hf.own_families import import_families
from pwl_hf.training import train, train_teacher
from tests.modeling.test_own_family import PatchNetConfig, PatchNetForImageClassification

NAME = "test-patch-net"
SOURCE = f"""
from pwl_hf import register_family
from tests.modeling.test_own_family import PatchNetConfig, PatchNetFamily
register_family("{NAME}", PatchNetFamily(), config_class=PatchNetConfig)
"""
SHORT = ["--dataset", "digits", "--max_steps", "2", "--max_train_samples", "64", "--max_eval_samples", "32"]
SHORT += ["--use_cpu", "true", "--disable_tqdm", "true", "--save_strategy", "no", "--report_to", "none"]


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Path]:
    """A file that registers the family when it is imported."""
    path, before = tmp_path / "patch_net_family.py", list(sys.path)
    path.write_text(SOURCE)
    yield path
    sys.path[:] = before
    sys.modules.pop(path.stem, None)
    for known in (FAMILIES, OWN_CONFIGS):
        known.pop(NAME, None)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    labels = {i: str(i) for i in range(10)}
    config = PatchNetConfig(width=12, depth=4, id2label=labels, label2id={name: i for i, name in labels.items()})
    PatchNetForImageClassification(config).save_pretrained(tmp_path / "teacher")
    image_processor().save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def test_a_pair_is_trained_evaluated_and_trained_further(
    module: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, results = tmp_path / "pwl", tmp_path / "results.json"
    own = ["--family_module", str(module), "--num_blocks", "2"]
    narrow = ["--student_config_overrides", "width=6", "depth=2", "--init_student_from_teacher", "spread"]
    words = [*own, "--teacher", str(teacher), *narrow, "--init_converters", "matched"]
    accuracies = train.train(train.command_line().parse([*SHORT, *words, "--output_dir", str(folder)]))
    assert len(accuracies) == 3
    # What was run is a recipe, and names the module.
    again = ["--output_dir", str(tmp_path / "again")]
    assert train.train(train.command_line().parse([str(folder / "training_args.yaml"), *again])) == accuracies
    asked = ["evaluate", str(folder), "--dataset", "digits", "--max-samples", "32", "--quiet", "-o", str(results)]
    monkeypatch.setattr(sys, "argv", ["pwl-hf", "--family-module", str(module), *asked])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, capsys.readouterr().err
    measured = json.loads(results.read_text())["masks"]
    assert [row["accuracy"] for row in measured] == pytest.approx(accuracies)
    model = PWLForImageClassification.from_pretrained(folder, keep_all=True)
    assert model.config.student_config.width == 6


@pytest.mark.parametrize("fresh", [True, False])
def test_a_teacher_is_trained(module: Path, teacher: Path, tmp_path: Path, fresh: bool) -> None:
    words = ["--model", str(teacher)]
    if fresh:
        words = ["--model_type", NAME, "--config_overrides", "depth=2", "--image_size", "8"]
    given = [*SHORT, *words, "--family_module", str(module), "--output_dir", str(tmp_path / "new")]
    train_teacher.train_teacher(train_teacher.command_line().parse(given))
    saved = PatchNetForImageClassification.from_pretrained(tmp_path / "new")
    assert saved.config.depth == (2 if fresh else 4)


def test_presets_know_no_sizes_of_it(module: Path, teacher: Path, tmp_path: Path) -> None:
    words = ["--family_module", str(module), "--teacher", str(teacher), "--student_preset", "half"]
    with pytest.raises(ValueError, match=f"student_preset=half: .* '{NAME}': give student_config_overrides"):
        train.train(train.command_line().parse([*SHORT, *words, "--output_dir", str(tmp_path / "pwl")]))


def test_a_module_is_imported_once_by_its_file_and_by_its_name(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(module.parent)
    for name in (str(module), str(module), module.name, module.stem):
        import_families(name)
    assert NAME in FAMILIES


def test_what_is_no_module_is_refused_by_name(module: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*nowhere\.py of families: give the module's dotted name"):
        import_families(str(tmp_path / "nowhere.py"))
    with pytest.raises(InputError, match=r"no module 'nowhere\.families' of families"):
        import_families("nowhere.families")
    taken = module.rename(tmp_path / "json.py")
    with pytest.raises(InputError, match=r"json\.py has the name of another module, 'json'"):
        import_families(str(taken))


def test_errors_within_a_module_are_its_own_and_it_can_be_mended(module: Path) -> None:
    module.write_text("import a_package_that_is_not_there")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        import_families(str(module))
    module.write_text(SOURCE)
    import_families(str(module))
    assert NAME in FAMILIES


def test_a_file_imports_its_neighbours(module: Path) -> None:
    (module.parent / "patch_net_neighbour.py").write_text(SOURCE)
    module.write_text("import patch_net_neighbour")
    import_families(str(module))
    assert NAME in FAMILIES
    del sys.modules["patch_net_neighbour"]
