"""The teacher in low precision as stages on the way: each rung is what it should be, and the last one the teacher."""

from __future__ import annotations

import copy
import logging
import pickle
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch

from pwl_hf import PWLForImageClassification, SaveError, StageError
from pwl_hf.evaluation import evaluate_masks
from tests.evaluation.helpers import Images
from tests.repository.helpers import load, weights
from tests.tiny import FAMILIES, WITH_BATCH_NORM, tiny_images, tiny_model

LADDER = ("SSSS", "QSSS", "QQSS", "QQQS", "QQQQ", "TQQQ", "TTQQ", "TTTQ", "TTTT")
every_family = pytest.mark.parametrize("family", FAMILIES)


def with_tier(family: str = "vit", bits: int = 8, dtype: torch.dtype = torch.float32) -> PWLForImageClassification:
    model = tiny_model(family).to(dtype)
    if family in WITH_BATCH_NORM:
        model.estimate_statistics(tiny_images(family, 8, seed=3).to(dtype), ["TSSS", "TTSS"])
    model.add_tier(bits)
    return model


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """The folder of a family's model with a tier, not to be written to."""

    @cache
    def save(family: str = "vit", bits: int = 8, dtype: torch.dtype = torch.float32) -> Path:
        folder = tmp_path_factory.mktemp(family) / "repo"
        with_tier(family, bits, dtype).save_pretrained(folder)
        return folder

    return save


def without_shards(folder: Path, to: Path) -> Path:
    """A copy of a repository whose exact blocks can be had by refinement alone."""
    for path, content in ((p.relative_to(folder), p.read_bytes()) for p in folder.rglob("*") if p.is_file()):
        if not path.as_posix().startswith("teacher/model-"):
            (to / path).parent.mkdir(parents=True, exist_ok=True)
            (to / path).write_bytes(content)
    return to


@torch.no_grad()
@every_family
def test_every_rung_is_the_same_path_in_memory_and_of_files(saved, family):
    original, images = with_tier(family), tiny_images(family)
    model = load(saved(family))
    assert (model.schedule, model.num_stages, model.num_blocks, model.tier) == (LADDER, 8, 4, 8)
    for stage, mask in enumerate(LADDER):
        assert (model.stage, model.sources) == (stage, mask)
        original.set_sources(mask)
        assert torch.equal(model(images).logits, original(images).logits), mask
        assert torch.equal(load(saved(family), stage=stage)(images).logits, original(images).logits), mask
        if stage < model.num_stages:
            model.load_next_stage()
    assert torch.equal(model(images).logits, original.teacher(images).logits)
    for stage in (6, 4, 2, 0):  # and down again
        model.set_stage(stage)
        original.set_sources(LADDER[stage])
        assert torch.equal(model(images).logits, original(images).logits)


@torch.no_grad()
@every_family
def test_low_precision_is_near_the_teacher_and_is_not_the_teacher(saved, family):
    images = tiny_images(family, 8)
    low, exact, student = (load(saved(family), stage=stage)(images).logits for stage in (4, 8, 0))
    assert 0 < (low - exact).abs().max() < 0.1 * (exact - student).abs().max()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bits", [8, 4])
def test_the_last_stage_is_the_teacher_without_its_shards(saved, tmp_path, dtype, bits):
    folder = saved("vit", bits, dtype)
    merged = load(without_shards(folder, tmp_path / "repo"))
    for stage in range(1, 9):
        merged.set_stage(stage)
    shards = load(folder, stage="teacher")
    found, expected = merged.teacher.state_dict(), shards.teacher.state_dict()
    assert found.keys() == expected.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in expected.items()
    )


@torch.no_grad()
@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_a_stream_passes_through_the_rungs(saved, tmp_path, family):
    model, seen = load(without_shards(saved(family), tmp_path / "repo")), []
    images = tiny_images(family)
    model(images)
    with model.stream_stages(on_stage=lambda found, stage: seen.append((stage, found.sources))):
        pass
    assert seen == list(enumerate(LADDER))[1:]
    assert torch.equal(model(images).logits, load(saved(family), stage="teacher")(images).logits)


def test_a_stream_passes_low_precision_over_where_the_shards_are_unless_asked(saved):
    for asked, expected in ((None, [8]), (False, [8]), (True, list(range(1, 9)))):
        model, seen = load(saved()), []
        with model.stream_stages(on_stage=lambda _, stage, seen=seen: seen.append(stage), low_precision=asked):
            pass
        assert (seen, model.sources) == (expected, "TTTT")
    model, seen = load(saved(), stage=2), []
    with model.stream_stages(3, on_stage=lambda _, stage: seen.append(stage)):
        pass
    assert seen == [3]  # what was asked for is reached


@pytest.mark.parametrize(
    ("family", "dtype", "stage"),
    [
        *(("vit", torch.float32, stage) for stage in range(9)),
        *(("resnet", torch.float32, stage) for stage in (0, 2, 5, 8)),
        *(("vit", dtype, stage) for dtype in (torch.bfloat16, torch.float16) for stage in (3, 6)),
    ],
    ids=str,
)
def test_a_save_from_any_rung_gives_the_same_bytes(saved, tmp_path, family, dtype, stage):
    load(saved(family, 8, dtype), stage=stage).save_pretrained(tmp_path)
    assert weights(tmp_path) == weights(saved(family, 8, dtype))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_computes_in_the_dtype_of_the_model(saved, dtype):
    images = tiny_images("vit").to(dtype)
    for model in (load(saved(), stage=4, dtype=dtype), load(saved("vit", 8, dtype), stage=4)):
        assert {tensor.dtype for tensor in model.quantised.state_dict().values()} == {dtype}
        assert model(images).logits.dtype == dtype


def test_a_tier_can_be_added_to_a_repository_at_any_stage(saved, tmp_path):
    plain = tmp_path / "plain"
    tiny_model("vit").save_pretrained(plain)
    before = weights(plain)
    for stage in (0, 2, "teacher"):
        model = load(plain, stage=stage)
        model.add_tier()
        model.save_pretrained(tmp_path / str(stage))
        assert weights(tmp_path / str(stage)) == weights(saved())
    model = load(plain)
    model.add_tier()
    model.save_pretrained(plain)  # over its own folder
    found = weights(plain)
    assert found == weights(saved())
    assert {path for path in before if found[path] != before[path]} == {"pwl_index.json"}
    model.set_stage(3)
    assert model.sources == "QQQS"


def test_any_ladder_may_be_written(tmp_path):
    masks = ["SSSS", "SSSQ", "TSSQ", "TTSQ", "TTQQ", "TTTT"]
    model, images = with_tier(), tiny_images("vit")
    model.set_schedule(masks)
    model.save_pretrained(tmp_path / "whole")
    found = load(tmp_path / "whole")
    assert found.schedule == tuple(masks)
    with torch.no_grad():
        for stage, mask in enumerate(masks):
            found.set_stage(stage)
            model.set_sources(mask)
            assert torch.equal(found(images).logits, model(images).logits)


@pytest.mark.parametrize(
    "masks",
    [["SS", "QS", "SS", "TT"], ["SS", "TS", "QS", "TT"], ["SS", "QQ"], ["QQ", "TT"], ["SS", "QS", "QS", "TT"]],
)
def test_no_rung_gives_up_a_block_for_a_worse_one(masks):
    model = tiny_model("vit", 2)
    model.add_tier()
    with pytest.raises(ValueError, match=r"better ones|leads from the student"):
        model.set_schedule(masks)
    assert model.schedule == ("SS", "QS", "QQ", "TQ", "TT")


def test_without_a_tier_low_precision_is_refused_by_what_to_do():
    model = tiny_model("vit")
    with pytest.raises(StageError, match="add_tier"):
        model.set_sources("QSSS")
    with pytest.raises(ValueError, match="add_tier"):
        model.set_schedule(LADDER)
    assert (model.sources, model.schedule) == ("SSSS", ("SSSS", "TSSS", "TTSS", "TTTS", "TTTT"))


@pytest.mark.parametrize("bits", [0, 2, 16, True, "8"])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match="bits must be 8 or 4"):
        tiny_model("vit").add_tier(bits)


def test_a_dtype_that_is_not_split_is_refused():
    with pytest.raises(ValueError, match="float32, bfloat16, float16, the model is float64"):
        tiny_model("vit").double().add_tier()


# --- Nothing is lost ------------------------------------------------------------------------------------------


def test_a_changed_block_of_low_precision_is_neither_released_nor_saved_over(saved, tmp_path):
    model = load(saved(), stage=4)
    with torch.no_grad():
        next(model.quantised.parameters()).add_(1)
    with pytest.raises(StageError, match=r"teacher block 1 in low precision was changed .* sources 'QQQQ'"):
        model.load_next_stage()
    with pytest.raises(SaveError, match=r"teacher block 1 in low precision was changed"):
        model.save_pretrained(tmp_path)
    assert model.sources == "QQQQ"


def test_a_module_put_into_low_precision_is_seen_and_protected(saved):
    model, images = load(saved(), stage=4), tiny_images("vit")
    model(images)
    replaced = next(name for name, _ in model.quantised.named_modules() if name.endswith("mlp"))
    with torch.no_grad():
        before = model(images).logits
        model.quantised.set_submodule(replaced, torch.nn.Identity())
        assert not torch.equal(model(images).logits, before)
    with pytest.raises(StageError, match="in low precision was changed"):
        model.load_next_stage()


def test_a_changed_teacher_drops_the_tier_and_says_so(saved, tmp_path, caplog):
    model = load(saved(), keep_all=True)
    with torch.no_grad():
        next(model.teacher.parameters()).add_(1)
    with caplog.at_level(logging.WARNING, "transformers"):
        model.save_pretrained(tmp_path)
    assert "saved without the tier of low precision" in caplog.text
    found = load(tmp_path)
    assert (found.tier, found.schedule) == (None, ("SSSS", "TSSS", "TTSS", "TTTS", "TTTT"))
    assert not (tmp_path / "quantised").exists()


def test_a_cast_drops_the_tier_and_a_new_one_is_of_the_cast(saved, tmp_path, caplog):
    model = load(saved(), dtype=torch.bfloat16)
    with caplog.at_level(logging.WARNING, "transformers"):
        model.save_pretrained(tmp_path / "cast")
    assert load(tmp_path / "cast").tier is None
    again = load(tmp_path / "cast")
    again.add_tier()
    again.save_pretrained(tmp_path / "tier")
    merged = load(without_shards(tmp_path / "tier", tmp_path / "without"))
    for stage in range(1, 9):
        merged.set_stage(stage)
    expected = load(tmp_path / "tier", stage="teacher").teacher.state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in merged.teacher.state_dict().items())


def in_memory(saved, tmp_path) -> PWLForImageClassification:
    return with_tier()


def just_added(saved, tmp_path) -> PWLForImageClassification:
    tiny_model("vit").save_pretrained(tmp_path / "plain")
    model = load(tmp_path / "plain")
    model.add_tier()
    return model


def stored(saved, tmp_path) -> PWLForImageClassification:
    return load(saved())


def stored_and_kept(saved, tmp_path) -> PWLForImageClassification:
    return load(saved(), keep_all=True)


def stored_and_added_again(saved, tmp_path) -> PWLForImageClassification:
    model = load(saved(), keep=("teacher",))
    model.add_tier()
    return model


def saved_over_its_folder(saved, tmp_path) -> PWLForImageClassification:
    model = just_added(saved, tmp_path)
    model.set_sources("QQQQ")
    model.save_pretrained(tmp_path / "plain")
    return model


ORIGINS = [in_memory, just_added, stored, stored_and_kept, stored_and_added_again, saved_over_its_folder]


@torch.no_grad()
def add_one(model) -> None:
    next(model.quantised.parameters()).add_(1)


@torch.no_grad()
def past_autograd(model) -> None:
    next(model.quantised.parameters()).data[0] = 7


def put_identity(model) -> None:
    name = next(name for name, _ in model.quantised.named_modules() if name.endswith("mlp"))
    model.quantised.set_submodule(name, torch.nn.Identity())


def load_other_values(model) -> None:
    found = model.state_dict()
    name = next(name for name in found if name.startswith("quantised."))
    model.load_state_dict({name: found[name] + 1}, strict=False)


CHANGES = [add_one, past_autograd, put_identity, load_other_values]


@pytest.mark.parametrize(
    ("origin", "change"),
    [*((origin, add_one) for origin in ORIGINS), *((in_memory, change) for change in CHANGES), (stored, put_identity)],
)
def test_a_changed_block_in_low_precision_is_lost_by_no_save_and_no_change_of_stage(saved, tmp_path, origin, change):
    model, images = origin(saved, tmp_path), tiny_images("vit")
    model.set_sources("QQQQ")
    change(model)
    with torch.no_grad():
        before = model(images).logits
    for found in (model, copy.deepcopy(model)):
        with pytest.raises(SaveError, match=r"teacher block 1 in low precision"):
            found.save_pretrained(tmp_path / "changed")
        with pytest.raises(StageError, match=r"teacher block 1 in low precision was changed .* load the model again"):
            found.set_sources("TTTT")
        with torch.no_grad():
            assert torch.equal(found(images).logits, before)
    assert not (tmp_path / "changed").exists()


@pytest.mark.parametrize("origin", [just_added, stored])
def test_a_changed_block_in_low_precision_is_not_pushed(hub, repo_id, saved, tmp_path, origin):
    model = origin(saved, tmp_path)
    model.set_sources("QQQQ")
    add_one(model)
    with pytest.raises(SaveError, match="in low precision was changed"):
        model.push_to_hub(repo_id)
    assert repo_id not in hub.store.repositories()


@pytest.mark.parametrize("origin", [in_memory, stored])
def test_other_values_of_low_precision_given_to_a_save_are_refused(saved, tmp_path, origin):
    model = origin(saved, tmp_path)
    model.set_sources("QQQQ")
    values = dict(model.state_dict())
    model.save_pretrained(tmp_path / "same", state_dict=values)  # those that it has are saved as ever
    assert weights(tmp_path / "same") == weights(saved())
    name = next(name for name in values if name.startswith("quantised."))
    with pytest.raises(SaveError, match="in low precision was changed"):
        model.save_pretrained(tmp_path / "other", state_dict={**values, name: values[name] + 1})
    assert not (tmp_path / "other").exists()


@torch.no_grad()
@pytest.mark.parametrize("origin", [in_memory, stored_and_kept, stored_and_added_again])
def test_a_teacher_that_changes_while_its_low_precision_is_there_does_not_change_that(saved, tmp_path, origin, caplog):
    model, images = origin(saved, tmp_path), tiny_images("vit")
    model.set_sources("QQQQ")
    for parameter in model.teacher.parameters():
        parameter.mul_(1.5)
    with caplog.at_level(logging.WARNING, "transformers"):
        model.save_pretrained(tmp_path / "changed")
    # A tier that was added follows its teacher; one that was loaded is of another, and is dropped aloud.
    dropped = origin is stored_and_kept
    assert ("saved without the tier of low precision" in caplog.text) == dropped
    found = load(tmp_path / "changed", stage="teacher")
    assert found.tier == (None if dropped else 8)
    assert torch.equal(found(images).logits, model.teacher(images).logits)
    model.set_sources("TTTT")
    model.set_sources("QQQQ")
    assert torch.allclose(model(images).logits, model.teacher(images).logits, rtol=0.1, atol=0.1)
    if not dropped:
        low = load(tmp_path / "changed", stage=4)(images).logits
        assert torch.equal(low, model(images).logits)


@torch.no_grad()
@pytest.mark.parametrize("origin", [in_memory, stored, stored_and_added_again])
def test_a_cast_is_no_change_of_low_precision(saved, tmp_path, origin):
    model = origin(saved, tmp_path)
    model.set_sources("QQQQ")
    model.to(torch.bfloat16)
    copy.deepcopy(model).save_pretrained(tmp_path / "cast")
    assert load(tmp_path / "cast").dtype == torch.bfloat16
    model.set_sources("TTTT")
    assert not any(part.is_low for part in model.parts.resident())
    model.set_sources("QQQQ")
    add_one(model)
    model.to(torch.float32)
    with pytest.raises(StageError, match="in low precision was changed"):
        model.set_sources("TTTT")


@pytest.mark.parametrize("origin", [in_memory, stored_and_kept])
def test_low_precision_shares_no_memory_with_the_teacher(saved, tmp_path, origin):
    model = origin(saved, tmp_path)
    model.set_sources("QQQQ")
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    with torch.no_grad():
        for tensor in (*model.quantised.parameters(), *model.quantised.buffers()):
            tensor.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.teacher.state_dict().items())


def test_the_advice_to_add_a_tier_of_a_changed_teacher_works(saved, tmp_path):
    model = load(saved(), keep_all=True, stage="teacher")
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.mul_(1.5)
    model.add_tier()
    model.save_pretrained(tmp_path / "again")
    merged = load(without_shards(tmp_path / "again", tmp_path / "repo"))
    assert merged.schedule == LADDER
    for stage in range(1, 9):
        merged.set_stage(stage)
    expected = model.teacher.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.teacher.state_dict().items())


def test_a_tier_added_over_the_same_one_changes_no_byte(saved, tmp_path):
    for stage in (0, 3, "teacher"):
        model = load(saved(), stage=stage)
        model.add_tier()
        model.save_pretrained(tmp_path / str(stage))
        assert weights(tmp_path / str(stage)) == weights(saved())
    model = load(saved(), stage=3)
    with pytest.raises(StageError, match="another tier"):
        model.add_tier(4)
    model.set_stage(0)
    model.add_tier(4)
    model.save_pretrained(tmp_path / "four")
    assert weights(tmp_path / "four") == weights(saved(bits=4))


@pytest.mark.parametrize("keep", [("teacher",), ()])
def test_a_save_over_its_own_folder_that_drops_the_tier_leaves_the_stages_that_there_are(saved, tmp_path, keep):
    shutil.copytree(saved(), tmp_path / "repo")
    model = load(tmp_path / "repo", stage=5, keep=keep)
    with torch.no_grad():
        next(model.teacher.parameters()).add_(1)
    model.save_pretrained(tmp_path / "repo")
    assert (model.tier, model.schedule, model.sources) == (None, load(tmp_path / "repo").schedule, "TQQQ")
    assert model.schedule == ("SSSS", "TSSS", "TTSS", "TTTS", "TTTT")
    images = tiny_images("vit")
    for stage in (4, 0, 1):
        model.set_stage(stage)
        with torch.no_grad():
            assert torch.equal(model(images).logits, load(tmp_path / "repo", stage=stage)(images).logits)
    assert not any(part.is_low for part in model.parts.resident())


def test_weights_given_to_a_save_that_are_the_models_own_keep_the_tier(saved, tmp_path):
    model = load(saved(), keep_all=True)
    model.save_pretrained(tmp_path, state_dict=model.state_dict())  # as transformers' Trainer does
    assert weights(tmp_path) == weights(saved())


@pytest.mark.parametrize("origin", [in_memory, just_added, stored])
def test_an_adapter_is_not_put_on_low_precision(saved, tmp_path, origin):
    peft = pytest.importorskip("peft")
    model, images = origin(saved, tmp_path), tiny_images("vit")
    model.set_sources("QQSS")
    with torch.no_grad():
        before = model(images).logits
    with pytest.raises(StageError, match="teacher block 1 in low precision, which is passing by"):
        model.add_adapter(peft.LoraConfig(target_modules=["q_proj", "query"]))
    with torch.no_grad():
        assert torch.equal(model(images).logits, before)
    model.set_sources("TTTT")


def test_low_precision_of_a_model_in_memory_follows_its_teacher():
    model, images = with_tier(), tiny_images("vit")
    with torch.no_grad():
        model.set_sources("QQQQ")
        before = model(images).logits
        model.set_sources("TTTT")
        for parameter in model.teacher.parameters():
            parameter.mul_(1.5)
        model.set_sources("QQQQ")
        assert (model(images).logits - model.teacher(images).logits).abs().max() < (
            before - model(images).logits
        ).abs().max()


# --- What else is done with a model -----------------------------------------------------------------------------


@torch.no_grad()
def test_statistics_of_the_exact_mask_serve_for_low_precision(saved):
    images = tiny_images("resnet")
    model = load(saved("resnet"), stage=1)
    assert (model.sources, set(model.statistics)) == ("QSSS", {"TSSS"})
    with_own = model(images).logits
    model.discard_statistics()
    assert not torch.equal(model(images).logits, with_own)
    with pytest.raises(ValueError, match="QSSS"):
        model.estimate_statistics(images)


@torch.no_grad()
def test_copies_pickles_and_moves_take_low_precision_along(saved):
    model, images = load(saved(), stage=3), tiny_images("vit")
    expected = model(images).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images).logits, expected)
        other.set_stage(8)
        assert torch.equal(other(images).logits, load(saved(), stage="teacher")(images).logits)
    assert model.sources == "QQQS"
    model.to(torch.bfloat16)
    assert {p.dtype for p in model.quantised.parameters()} == {torch.bfloat16}
    model.train()
    assert not any(m.training for m in model.quantised.modules())
    assert not any(p.requires_grad for p in model.requires_grad_().quantised.parameters())


@torch.no_grad()
def test_what_is_kept_is_the_teacher_and_not_its_low_precision(saved):
    model = load(saved(), keep=("student", "teacher"))
    model.set_stage(2)
    assert sorted(str(part) for part in model.parts.resident() if part.is_low) == [
        f"teacher block {k} in low precision" for k in (1, 2)
    ]
    model.set_stage(0)
    assert not any(part.is_low for part in model.parts.resident())


def test_masks_of_low_precision_are_evaluated_beside_others():
    model, images = with_tier(), tiny_images("vit", 8)
    data = Images(images, [0, 1, 2, 3, 4, 0, 1, 2])
    found = evaluate_masks(model, data, [*LADDER, "QSQS"])
    assert model.sources == "SSSS"
    for mask in ("QQQS", "QSQS", "TTQQ"):
        model.set_sources(mask)
        with torch.no_grad():
            right = int((model(images).logits.argmax(-1) == torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])).sum())
        assert found[mask].correct == right
