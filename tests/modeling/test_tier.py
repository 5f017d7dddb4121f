"""The teacher in low precision as stages on the way: each rung is what it should be, and the last one the teacher."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from pwl_hf import StageError
from pwl_hf.evaluation import evaluate_masks
from tests.evaluation.helpers import Images
from tests.modeling.tiers import LADDER, with_tier, without_shards
from tests.repository.helpers import load, weights
from tests.tiny import EACH_FAMILY, tiny_images, tiny_model

every_family = pytest.mark.parametrize("family", EACH_FAMILY)


@torch.no_grad()
@every_family
def test_every_rung_is_the_same_path_in_memory_and_of_files(saved_tier, family):
    original, images = with_tier(family), tiny_images(family)
    model = load(saved_tier(family))
    assert (model.schedule, model.num_stages, model.num_blocks, model.tier) == (LADDER, 8, 4, 8)
    for stage, mask in enumerate(LADDER):
        assert (model.stage, model.sources) == (stage, mask)
        original.set_sources(mask)
        assert torch.equal(model(images).logits, original(images).logits), mask
        assert torch.equal(load(saved_tier(family), stage=stage)(images).logits, original(images).logits), mask
        if stage < model.num_stages:
            model.load_next_stage()
    assert torch.equal(model(images).logits, original.teacher(images).logits)
    for stage in (6, 4, 2, 0):  # and down again
        model.set_stage(stage)
        original.set_sources(LADDER[stage])
        assert torch.equal(model(images).logits, original(images).logits)


@torch.no_grad()
@every_family
def test_low_precision_is_near_the_teacher_and_is_not_the_teacher(saved_tier, family):
    images = tiny_images(family, 8)
    low, exact, student = (load(saved_tier(family), stage=stage)(images).logits for stage in (4, 8, 0))
    assert 0 < (low - exact).abs().max() < 0.1 * (exact - student).abs().max()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bits", [8, 4])
def test_the_last_stage_is_the_teacher_without_its_shards(saved_tier, tmp_path, dtype, bits):
    folder = saved_tier("vit", bits, dtype)
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
def test_a_stream_passes_through_the_rungs(saved_tier, tmp_path, family):
    model, seen = load(without_shards(saved_tier(family), tmp_path / "repo")), []
    images = tiny_images(family)
    model(images)
    with model.stream_stages(on_stage=lambda found, stage: seen.append((stage, found.sources))):
        pass
    assert seen == list(enumerate(LADDER))[1:]
    assert torch.equal(model(images).logits, load(saved_tier(family), stage="teacher")(images).logits)


def test_a_stream_passes_low_precision_over_where_the_shards_are_unless_asked(saved_tier):
    for asked, expected in ((None, [8]), (False, [8]), (True, list(range(1, 9)))):
        model, seen = load(saved_tier()), []
        with model.stream_stages(on_stage=lambda _, stage, seen=seen: seen.append(stage), low_precision=asked):
            pass
        assert (seen, model.sources) == (expected, "TTTT")
    model, seen = load(saved_tier(), stage=2), []
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
def test_a_save_from_any_rung_gives_the_same_bytes(saved_tier, tmp_path, family, dtype, stage):
    load(saved_tier(family, 8, dtype), stage=stage).save_pretrained(tmp_path)
    assert weights(tmp_path) == weights(saved_tier(family, 8, dtype))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_computes_in_the_dtype_of_the_model(saved_tier, dtype):
    images = tiny_images("vit").to(dtype)
    for model in (load(saved_tier(), stage=4, dtype=dtype), load(saved_tier("vit", 8, dtype), stage=4)):
        assert {tensor.dtype for tensor in model.quantised.state_dict().values()} == {dtype}
        assert model(images).logits.dtype == dtype


def test_a_tier_can_be_added_to_a_repository_at_any_stage(saved_tier, tmp_path):
    plain = tmp_path / "plain"
    tiny_model("vit").save_pretrained(plain)
    before = weights(plain)
    for stage in (0, 2, "teacher"):
        model = load(plain, stage=stage)
        model.add_tier()
        model.save_pretrained(tmp_path / str(stage))
        assert weights(tmp_path / str(stage)) == weights(saved_tier())
    model = load(plain)
    model.add_tier()
    model.save_pretrained(plain)  # over its own folder
    found = weights(plain)
    assert found == weights(saved_tier())
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


# --- What else is done with a model -----------------------------------------------------------------------------


@torch.no_grad()
def test_statistics_of_the_exact_mask_serve_for_low_precision(saved_tier):
    images = tiny_images("resnet")
    model = load(saved_tier("resnet"), stage=1)
    assert (model.sources, set(model.statistics)) == ("QSSS", {"TSSS"})
    with_own = model(images).logits
    model.discard_statistics()
    assert not torch.equal(model(images).logits, with_own)
    with pytest.raises(ValueError, match="QSSS"):
        model.estimate_statistics(images)


@torch.no_grad()
def test_copies_pickles_and_moves_take_low_precision_along(saved_tier):
    model, images = load(saved_tier(), stage=3), tiny_images("vit")
    expected = model(images).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images).logits, expected)
        other.set_stage(8)
        assert torch.equal(other(images).logits, load(saved_tier(), stage="teacher")(images).logits)
    assert model.sources == "QQQS"
    model.to(torch.bfloat16)
    assert {p.dtype for p in model.quantised.parameters()} == {torch.bfloat16}
    model.train()
    assert not any(m.training for m in model.quantised.modules())
    assert not any(p.requires_grad for p in model.requires_grad_().quantised.parameters())


@torch.no_grad()
def test_what_is_kept_is_the_teacher_and_not_its_low_precision(saved_tier):
    model = load(saved_tier(), keep=("student", "teacher"))
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
