"""`pwl-hf schedule`: the order that a repository's own masks make best, written where it is better."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError

from pwl_hf import PWLForImageClassification, SaveError
from pwl_hf.cli import main
from pwl_hf.data import DataSource
from pwl_hf.data.digits import image_processor, load_splits
from pwl_hf.evaluation import evaluate_repository
from pwl_hf.evaluation.repositories import open_to_measure
from pwl_hf.evaluation.running import answers_of
from pwl_hf.modeling.publishing.model_card import write_card
from pwl_hf.modeling.publishing.push import Target, push_schedule
from pwl_hf.modeling.publishing.saving import write_attachments, write_metrics, write_schedule
from pwl_hf.modeling.repository.manifest import Manifest, Metric
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.modeling.schedule import Schedule
from pwl_hf.scheduling import _without_statistics, schedule_repository
from tests.once import made_once
from tests.repository.helpers import load, publish, tree
from tests.tiny import tiny_images, tiny_model

PREFIX = ["SSSS", "TSSS", "TTSS", "TTTS", "TTTT"]
SUFFIX = ["SSSS", "SSST", "SSTT", "STTT", "TTTT"]
GRAPHS = {"onnx/student.onnx": b"a graph", "onnx/index.json": b"{}"}


def pixels(n: int) -> dict[str, torch.Tensor]:
    return dict(image_processor()(load_splits()[1].images[:n], return_tensors="pt"))


@pytest.fixture(scope="session")
def one_way(tmp_path_factory: pytest.TempPathFactory, saved: Path) -> Path:
    """A repository whose student is its teacher, whose decoders change nothing, and whose encoders lose everything.

    So each stage from the last block to the first is right wherever the teacher is, and no stage of another order.
    """

    def make(folder: Path) -> None:
        teacher = saved / "teacher"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of the converters
            twin = PWLForImageClassification.from_teacher_student(teacher, teacher, num_blocks=4)
        with torch.no_grad():
            # No answer is the most likely on all images.
            mean = twin(**pixels(60), sources="TTTT").logits.mean(0)
            for network in (twin.teacher, twin.student):
                network.classifier.bias.sub_(mean)
            for converter in twin.decoders.values():
                converter.weight.copy_(torch.eye(len(converter.weight)))
                converter.bias.zero_()
            for converter in twin.encoders.values():
                converter.weight.zero_()
        twin.eval().save_pretrained(folder)
        shutil.copy(saved / "preprocessor_config.json", folder)

    return made_once(tmp_path_factory, "one-way", make)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, one_way: Path) -> Path:
    """Digits whose labels are what that teacher answers."""

    def make(folder: Path) -> None:
        with torch.no_grad():
            labels = load(one_way, stage="teacher")(**pixels(60)).logits.argmax(-1).tolist()
        assert len(set(labels)) > 2
        for i, (image, label) in enumerate(zip(load_splits()[1].images[:60], labels, strict=True)):
            place = folder / "validation" / str(label) / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            image.save(place)

    return made_once(tmp_path_factory, "answers-of-the-teacher", make)


@pytest.fixture
def folder(one_way: Path, tmp_path: Path) -> Path:
    return shutil.copytree(one_way, tmp_path / "pwl")


@pytest.fixture
def run(monkeypatch, capsys, pictures):
    def run(*arguments) -> tuple[int, str, str]:
        given = [] if "--dataset" in arguments else ["--dataset", str(pictures)]
        monkeypatch.setattr(sys, "argv", ["pwl-hf", "schedule", *map(str, arguments), *given, "--quiet"])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


def stages(folder: Path) -> list[str]:
    return [stage.sources for stage in Repository.open(folder).manifest().stages]


def files(hub, repo_id: str, revision: str = "main") -> dict[str, bytes]:
    found = hub.store.files(repo_id, revision)
    del found[".gitattributes"]
    return found


def manifest_on(hub, repo_id: str, revision: str = "main") -> Manifest:
    return Manifest.from_json(hub.store.files(repo_id, revision)["pwl_index.json"])


# --- Folders ---------------------------------------------------------------------------------------------------------


def test_the_best_order_is_written_and_nothing_else_changes(run, folder, one_way):
    code, out, err = run(folder)
    assert code == 0, err
    before, after = tree(one_way), tree(folder)
    assert {path for path in before if before[path] != after[path]} == {"pwl_index.json"}
    assert after.keys() == before.keys()
    assert stages(folder) == SUFFIX
    rows = [line.split("│") for line in out.splitlines() if line.startswith("│")]
    assert [(row[2].strip(), row[5].strip()) for row in rows] == list(zip(PREFIX, SUFFIX, strict=True))
    assert "16 masks, chosen by 30 images and judged by 30 others" in out
    assert out.splitlines()[-1] == "The schedule was written."
    assert all(len(line) <= 80 for line in out.splitlines() if "│" in line)


def test_areas_are_those_of_an_evaluation(folder, pictures):
    source, target = DataSource(str(pictures)), Target(str(folder))
    # Everything is right, or wrong, alike on all images: half of them tell of all.
    report = schedule_repository(str(folder), source, "validation", target=target)
    assert report.written
    found = evaluate_repository(folder, source, "validation")
    assert (report.best.area, report.best.total_bytes) == (pytest.approx(found.area), found.total_bytes)
    assert report.best.masks == found.schedule
    assert report.gain.low > 0.1


def test_every_stage_of_the_new_order_loads_and_is_right(run, folder):
    assert run(folder)[0] == 0
    inputs, model = pixels(8), load(folder)
    with torch.no_grad():
        expected = load(folder, stage="teacher")(**inputs).logits
        for stage, mask in enumerate(SUFFIX):
            assert (model.stage, model.sources) == (stage, mask)
            torch.testing.assert_close(model(**inputs).logits, expected)
            if stage < 4:
                model.load_next_stage()


@pytest.mark.parametrize("search", ["all", "swaps"])
def test_a_schedule_that_is_best_already_stays(run, folder, search):
    write_schedule(folder, Schedule.of(SUFFIX))
    before = tree(folder)
    code, out, err = run(folder, "--search", search)
    assert code == 0, err
    assert out.splitlines()[-1] == "No order has a greater area: the schedule stays."
    assert tree(folder) == before


def test_nothing_is_written_in_a_dry_run(run, folder):
    before = tree(folder)
    code, out, err = run(folder, "--dry-run")
    assert code == 0, err
    assert "SSTT" in out
    assert out.splitlines()[-1] == "Nothing was written."
    assert tree(folder) == before


def test_what_may_be_chance_is_not_written(run, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "pwl")
    before = tree(folder)
    # Random networks are right about one image in ten, in any order.
    code, out, err = run(folder, "--dataset", "digits", "--split", "test", "--max-samples", "40")
    assert code == 0, err
    assert out.splitlines()[-1] == "That is no more than images differ by: the schedule stays."
    assert tree(folder) == before


def test_images_to_choose_by_are_not_those_to_judge_by(saved):
    """Where they were, the order would be as good by them as it looks."""
    source, target = DataSource("digits", max_samples=80), Target(str(saved))
    report = schedule_repository(str(saved), source, "test", target=target, dry_run=True)
    assert (report.num_chosen_by, report.num_judged_by) == (40, 40)
    opened = open_to_measure(saved, source, "test", keep_all=True, keep_images=True)
    found = answers_of(opened.model, opened.samples, PREFIX)
    right = found.right.double()
    assert list(report.present.accuracies) == right[:, 1::2].mean(1).tolist()
    assert right[:, ::2].mean(1).tolist() != right[:, 1::2].mean(1).tolist()


def test_what_was_measured_stays_with_its_mask_and_the_card_follows(run, folder):
    write_metrics(folder, {k: [Metric("accuracy", k / 10, "d", "test", 10)] for k in range(5)})
    card = write_card(folder)
    card.write_text(card.read_text() + "\nMy own words.\n")
    code, out, err = run(folder)
    assert code == 0, err
    assert "Without an accuracy in the manifest: SSST, SSTT, STTT; see pwl-hf evaluate." in out
    found = Repository.open(folder).manifest().stages
    assert [[metric.value for metric in stage.metrics] for stage in found] == [[0.0], [], [], [], [0.4]]
    assert "My own words." in card.read_text()
    assert "`SSTT`" in card.read_text()
    assert "`TTSS`" not in card.read_text()


def test_graphs_of_the_stages_before_go_and_this_is_said(run, folder):
    write_attachments(folder, GRAPHS)
    code, out, err = run(folder)
    assert code == 0, err
    assert "Its ONNX graphs are of the stages before and go: pwl-hf export" in out
    assert not (folder / "onnx" / "index.json").exists()
    assert Repository.open(folder).manifest().attachments == ()


def test_a_subfolder_gets_its_order(run, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "many" / "one")
    code, _, err = run(tmp_path / "many", "--subfolder", "one")
    assert code == 0, err
    assert stages(tmp_path / "many" / "one") == SUFFIX
    assert stages(folder) == PREFIX


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search", "greedy"], "search must be one of all, swaps, got 'greedy'"),
        (["--split", "test"], "no split 'test'; it has 'validation'"),
        (["--max-samples", "3"], "a choice takes samples to choose by and others to judge by, got 3 in all"),
        (["--device", "nowhere"], "'nowhere'"),
        (["--dataset", "digits", "--holdout", "1.5"], "holdout"),
    ],
)
def test_what_cannot_be_done_ends_with_one_line_and_changes_nothing(run, folder, arguments, message):
    before = tree(folder)
    code, out, err = run(folder, *arguments)
    assert (code == 0, out) == (False, "")
    assert message in err
    assert "Traceback" not in err
    assert tree(folder) == before


@pytest.mark.parametrize("search", ["all", "swaps"])
def test_rungs_of_low_precision_get_the_order(run, one_way, tmp_path, search):
    model = load(one_way)
    model.add_tier()
    model.save_pretrained(tmp_path)
    assert stages(tmp_path) == [mask.mask for mask in Schedule.of(PREFIX).ladder()]
    before = tree(tmp_path)
    code, out, err = run(tmp_path, "--search", search)
    assert code == 0, err
    expected = ["SSSS", "SSSQ", "SSQQ", "SQQQ", "QQQQ", "QQQT", "QQTT", "QTTT", "TTTT"]
    assert stages(tmp_path) == expected
    assert {path for path, content in tree(tmp_path).items() if content != before[path]} == {"pwl_index.json"}
    report = evaluate_repository(tmp_path, DataSource("digits", max_samples=20))
    assert report.schedule == tuple(expected)
    assert "SSQQ" in out
    code, out, _ = run(tmp_path)
    assert (code, out.splitlines()[-1]) == (0, "No order has a greater area: the schedule stays.")


def test_a_holdout_is_the_validation_split(run, folder):
    code, out, err = run(folder, "--dataset", "digits", "--holdout", "0.1", "--dry-run")
    assert code == 0, err
    assert re.search(r"chosen by 5\d images and judged by 5\d others: digits, split validation\.", out)


def test_one_block_has_no_order(tmp_path, saved, pictures):
    teacher = saved / "teacher"
    PWLForImageClassification.from_teacher_student(teacher, teacher, num_blocks=1).save_pretrained(tmp_path)
    shutil.copy(saved / "preprocessor_config.json", tmp_path)
    with pytest.raises(ValueError, match="has one block, which comes in one order"):
        schedule_repository(str(tmp_path), DataSource(str(pictures)), "validation", target=Target(str(tmp_path)))


def test_other_weights_by_then_are_not_given_the_order(folder, saved):
    before = Repository.open(saved).manifest()
    with pytest.raises(SaveError, match="got other weights meanwhile"):
        write_schedule(folder, Schedule.of(SUFFIX), before)
    assert stages(folder) == PREFIX


# --- The Hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pushed(hub, repo_id, one_way):
    publish(hub, repo_id, one_way)
    return repo_id


def test_a_repository_of_the_hub_gets_its_order_in_one_commit(run, hub, pushed, one_way):
    count = len(hub.store.commits(pushed))
    with hub.record() as requests:
        code, out, err = run(pushed)
    assert code == 0, err
    first, *earlier = hub.store.commits(pushed)
    assert (first.title, len(earlier)) == ("Change the order of stages", count)
    assert pushed in out.splitlines()[-1]
    before, after = tree(one_way), files(hub, pushed)
    assert {path for path in before if before[path] != after.get(path)} == {"pwl_index.json"}
    assert [stage.sources for stage in manifest_on(hub, pushed).stages] == SUFFIX
    assert not [r for r in requests if "safetensors" in r.path and r.method in ("PUT", "POST")]
    assert load(pushed, stage=2).sources == "SSTT"


def test_its_graphs_go_and_its_card_follows_in_the_same_commit(run, hub, repo_id, folder):
    write_attachments(folder, GRAPHS)
    write_card(folder, repo_id=repo_id)
    publish(hub, repo_id, folder)
    assert run(repo_id)[0] == 0
    found = files(hub, repo_id)
    assert not GRAPHS.keys() & found.keys()
    assert b"`SSTT`" in found["README.md"]
    assert len(hub.store.commits(repo_id)) == 3


def test_a_subfolder_of_the_hub_gets_its_order(run, hub, repo_id, one_way):
    publish(hub, repo_id, one_way, subfolder="deep/one")
    code, _, err = run(repo_id, "--subfolder", "deep/one")
    assert code == 0, err
    found = Manifest.from_json(hub.store.files(repo_id)["deep/one/pwl_index.json"])
    assert [stage.sources for stage in found.stages] == SUFFIX


def test_a_dry_run_commits_nothing(run, hub, pushed):
    head = hub.store.head(pushed)
    code, out, err = run(pushed, "--dry-run")
    assert (code, out.splitlines()[-1]) == (0, "Nothing was written."), err
    assert hub.store.head(pushed) == head


def test_a_pull_request_leaves_the_branch_as_it_is(run, hub, pushed):
    head = hub.store.head(pushed)
    code, out, err = run(pushed, "--create-pr", "-m", "Other order")
    assert code == 0, err
    assert "/discussions/1" in out
    assert hub.store.head(pushed) == head
    assert [stage.sources for stage in manifest_on(hub, pushed, "refs/pr/1").stages] == SUFFIX


def test_a_branch_that_has_moved_is_not_given_an_order_of_other_weights(hub, pushed, one_way):
    source = Repository.open(pushed)
    hub.store.commit(pushed, {"notes.txt": b"later"})
    head = hub.store.head(pushed)
    with pytest.raises(HfHubHTTPError):
        push_schedule(source, Schedule.of(SUFFIX), Target(pushed))
    assert hub.store.head(pushed) == head


# --- Statistics ------------------------------------------------------------------------------------------------------


def test_stages_without_statistics_of_their_own_are_named_and_none_is_lost(tmp_path):
    model = tiny_model("resnet")
    model.estimate_statistics(tiny_images("resnet", 8), ["SSST", "TSSS"])
    model.save_pretrained(tmp_path)
    manifest = Repository.open(tmp_path).manifest()
    assert _without_statistics(manifest, Schedule.of(SUFFIX)) == ("SSTT", "STTT")
    changed = write_schedule(tmp_path, Schedule.of(SUFFIX))
    assert set(changed.masks) == set(manifest.masks)
    assert changed.fingerprint == manifest.fingerprint
    by_stage = [{entry.path for entry in stage.files} for stage in changed.stages]
    assert "statistics/SSST.safetensors" in by_stage[1]
    assert "statistics/TSSS.safetensors" in {entry.path for entry in changed.other_files}
    assert json.loads((tmp_path / "pwl_index.json").read_text())["stages"][1]["sources"] == "SSST"
