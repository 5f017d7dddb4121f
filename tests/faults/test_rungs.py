"""Low precision under faults and in two processes at once: a file of it is a file like any other."""

from __future__ import annotations

import time

import pytest
import torch

from pwl_hf import FetchError, RepositoryError, SaveError
from pwl_hf.modeling.publishing.push import Target
from pwl_hf.modeling.repository.layout import quantised_file, refinement_file
from pwl_hf.quantising import quantise_repository
from tests.faults.test_kill import is_alive, start, until
from tests.faults.test_matrix import CASES, arrived, cached, explains, is_at, strike_on
from tests.repository.helpers import load, logits, weights
from tests.slow import covering
from tests.tiny import tiny_model

__all__ = ["start"]

# A file of the tier, and the stage before the one that it comes with.
FILES = [(quantised_file(1, 4), 0), (refinement_file(1, 4), 4)]


@pytest.fixture
def struck(hub, pushed_rungs, request):
    return strike_on(hub, request)


@pytest.mark.usefixtures("unhurried_client")
@pytest.mark.parametrize(("method", "kind", "path", "before"), covering(CASES, FILES))
def test_fault_that_passes_leaves_the_exact_answers(
    hub, pushed_rungs, struck, cache, rung_answers, quick, method, kind, path, before
):
    struck(method, kind, path, times=1)
    with hub.record() as requests:
        model = load(pushed_rungs, stage=before, cache_dir=cache, retry=quick)
        is_at(model, before, rung_answers)
        model.load_next_stage()
        is_at(model, before + 1, rung_answers)
    assert [r.file for r in requests if r.fault] == [path]


@pytest.mark.usefixtures("unhurried_client")
@pytest.mark.parametrize(("method", "kind", "path", "before"), covering(CASES, FILES))
def test_lasting_fault_leaves_the_model_and_a_later_call_goes_on(
    hub, pushed_rungs, struck, cache, rung_answers, quick, method, kind, path, before
):
    model = load(pushed_rungs, stage=before, cache_dir=cache, retry=quick)
    names, had = list(model.state_dict()), cached(model)
    struck(method, kind, path, times=None)
    with hub.record() as first, pytest.raises((FetchError, RepositoryError)) as failed:
        model.load_next_stage()
    explains(failed.value, hub, pushed_rungs, path, kind)
    is_at(model, before, rung_answers)
    assert list(model.state_dict()) == names
    assert cached(model) - had <= arrived(first)
    hub.faults.clear()
    with hub.record() as after:
        model.load_next_stage()
    is_at(model, before + 1, rung_answers)
    assert path in arrived(after)


# --- Two at once ------------------------------------------------------------------------------------------------------


def test_two_processes_that_stream_into_one_cache_both_reach_the_teacher(
    hub, pushed_rungs, rung_answers, start, tmp_path
):
    hub.bandwidth, cache = 2_000_000, tmp_path / "cache"
    children = [start("stream", pushed_rungs, cache, tmp_path / f"started-{i}") for i in range(2)]
    until(lambda: not any(map(is_alive, children)), 60)
    assert all((cache / f"done-{pid}").exists() for pid in children)
    hub.bandwidth = None
    model = load(pushed_rungs, cache_dir=cache, local_files_only=True)
    for stage, answer in enumerate(rung_answers):
        model.set_stage(stage)
        assert torch.equal(logits(model), answer)


def test_two_processes_that_add_low_precision_to_one_folder_leave_it_whole(start, tmp_path):
    folder = tmp_path / "repo"
    tiny_model("resnet").save_pretrained(folder)
    plain = weights(folder)
    children = [start("quantise", folder, tmp_path / f"started-{i}", 5) for i in range(2)]
    loads = 0
    while any(map(is_alive, children)):
        # Whichever of both manifests is there, its files are: a reader is at most told to load again.
        try:
            model = load(folder)
            for stage in range(model.num_stages + 1):
                model.set_stage(stage)
            loads += 1
        except RepositoryError:
            time.sleep(0.001)
    assert loads
    # One that found the other at work may have given up, and said so.
    assert any((folder / f"done-{pid}").exists() for pid in children)
    tiny_model("resnet").save_pretrained(folder)
    assert weights(folder) == plain


def test_low_precision_that_is_exchanged_under_a_model_is_refused_and_the_model_stays(saved_rungs, tmp_path):
    quantise_repository(str(saved_rungs), tmp_path / "repo", target=Target("none"))
    model = load(tmp_path / "repo", stage=1)
    expected = logits(model)
    quantise_repository(str(tmp_path / "repo"), bits=4, target=Target("none"))
    with pytest.raises(RepositoryError, match=r"quantised/model-00002.* has \d+ bytes"):
        model.set_stage(2)
    assert model.stage == 1
    assert torch.equal(logits(model), expected)
    with pytest.raises((RepositoryError, SaveError), match="quantised"):
        model.save_pretrained(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    assert load(tmp_path / "repo", stage=2).tier == 4
