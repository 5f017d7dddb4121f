"""Blocks in low precision, or a teacher, that were changed: nothing of them is lost in silence."""

from __future__ import annotations

import copy
import logging
import shutil

import pytest
import torch

from pwl_hf import PWLForImageClassification, SaveError, StageError
from tests.modeling.tiers import LADDER, with_tier, without_shards
from tests.repository.helpers import load, weights
from tests.tiny import tiny_images, tiny_model


def test_a_changed_block_of_low_precision_is_neither_released_nor_saved_over(saved_tier, tmp_path):
    model = load(saved_tier(), stage=4)
    with torch.no_grad():
        next(model.quantised.parameters()).add_(1)
    with pytest.raises(StageError, match=r"teacher block 1 in low precision was changed .* sources 'QQQQ'"):
        model.load_next_stage()
    with pytest.raises(SaveError, match=r"teacher block 1 in low precision was changed"):
        model.save_pretrained(tmp_path)
    assert model.sources == "QQQQ"


def test_a_module_put_into_low_precision_is_seen_and_protected(saved_tier):
    model, images = load(saved_tier(), stage=4), tiny_images("vit")
    model(images)
    replaced = next(name for name, _ in model.quantised.named_modules() if name.endswith("mlp"))
    with torch.no_grad():
        before = model(images).logits
        model.quantised.set_submodule(replaced, torch.nn.Identity())
        assert not torch.equal(model(images).logits, before)
    with pytest.raises(StageError, match="in low precision was changed"):
        model.load_next_stage()


def test_a_changed_teacher_drops_the_tier_and_says_so(saved_tier, tmp_path, caplog):
    model = load(saved_tier(), keep_all=True)
    with torch.no_grad():
        next(model.teacher.parameters()).add_(1)
    with caplog.at_level(logging.WARNING, "transformers"):
        model.save_pretrained(tmp_path)
    assert "saved without the tier of low precision" in caplog.text
    found = load(tmp_path)
    assert (found.tier, found.schedule) == (None, ("SSSS", "TSSS", "TTSS", "TTTS", "TTTT"))
    assert not (tmp_path / "quantised").exists()


def test_a_cast_drops_the_tier_and_a_new_one_is_of_the_cast(saved_tier, tmp_path, caplog):
    model = load(saved_tier(), dtype=torch.bfloat16)
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


def in_memory(saved_tier, tmp_path) -> PWLForImageClassification:
    return with_tier()


def just_added(saved_tier, tmp_path) -> PWLForImageClassification:
    tiny_model("vit").save_pretrained(tmp_path / "plain")
    model = load(tmp_path / "plain")
    model.add_tier()
    return model


def stored(saved_tier, tmp_path) -> PWLForImageClassification:
    return load(saved_tier())


def stored_and_kept(saved_tier, tmp_path) -> PWLForImageClassification:
    return load(saved_tier(), keep_all=True)


def stored_and_added_again(saved_tier, tmp_path) -> PWLForImageClassification:
    model = load(saved_tier(), keep=("teacher",))
    model.add_tier()
    return model


def saved_over_its_folder(saved_tier, tmp_path) -> PWLForImageClassification:
    model = just_added(saved_tier, tmp_path)
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
def test_a_changed_block_in_low_precision_is_lost_in_no_way(saved_tier, tmp_path, origin, change):
    model, images = origin(saved_tier, tmp_path), tiny_images("vit")
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
def test_a_changed_block_in_low_precision_is_not_pushed(hub, repo_id, saved_tier, tmp_path, origin):
    model = origin(saved_tier, tmp_path)
    model.set_sources("QQQQ")
    add_one(model)
    with pytest.raises(SaveError, match="in low precision was changed"):
        model.push_to_hub(repo_id)
    assert repo_id not in hub.store.repositories()


@pytest.mark.parametrize("origin", [in_memory, stored])
def test_other_values_of_low_precision_given_to_a_save_are_refused(saved_tier, tmp_path, origin):
    model = origin(saved_tier, tmp_path)
    model.set_sources("QQQQ")
    values = dict(model.state_dict())
    model.save_pretrained(tmp_path / "same", state_dict=values)  # those that it has are saved as ever
    assert weights(tmp_path / "same") == weights(saved_tier())
    name = next(name for name in values if name.startswith("quantised."))
    with pytest.raises(SaveError, match="in low precision was changed"):
        model.save_pretrained(tmp_path / "other", state_dict={**values, name: values[name] + 1})
    assert not (tmp_path / "other").exists()


@torch.no_grad()
@pytest.mark.parametrize("origin", [in_memory, stored_and_kept, stored_and_added_again])
def test_a_teacher_that_changes_does_not_change_its_low_precision(saved_tier, tmp_path, origin, caplog):
    model, images = origin(saved_tier, tmp_path), tiny_images("vit")
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
def test_a_cast_is_no_change_of_low_precision(saved_tier, tmp_path, origin):
    model = origin(saved_tier, tmp_path)
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
def test_low_precision_shares_no_memory_with_the_teacher(saved_tier, tmp_path, origin):
    model = origin(saved_tier, tmp_path)
    model.set_sources("QQQQ")
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    with torch.no_grad():
        for tensor in (*model.quantised.parameters(), *model.quantised.buffers()):
            tensor.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.teacher.state_dict().items())


def test_the_advice_to_add_a_tier_of_a_changed_teacher_works(saved_tier, tmp_path):
    model = load(saved_tier(), keep_all=True, stage="teacher")
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


@torch.no_grad()
def test_low_precision_of_files_is_no_change_where_a_tier_of_a_changed_teacher_is_added(saved_tier, tmp_path):
    model = load(saved_tier(), stage=4, keep=("teacher",))
    for parameter in model.teacher.parameters():
        parameter.mul_(1.5)
    model.add_tier()
    model.save_pretrained(tmp_path)
    model.set_sources("TTTT")
    assert torch.equal(load(tmp_path, stage="teacher")(tiny_images("vit")).logits, model(tiny_images("vit")).logits)


def test_a_tier_added_over_the_same_one_changes_no_byte(saved_tier, tmp_path):
    for stage in (0, 3, "teacher"):
        model = load(saved_tier(), stage=stage)
        model.add_tier()
        model.save_pretrained(tmp_path / str(stage))
        assert weights(tmp_path / str(stage)) == weights(saved_tier())
    model = load(saved_tier(), stage=3)
    with pytest.raises(StageError, match="another tier"):
        model.add_tier(4)
    model.set_stage(0)
    model.add_tier(4)
    model.save_pretrained(tmp_path / "four")
    assert weights(tmp_path / "four") == weights(saved_tier(bits=4))


@pytest.mark.parametrize("keep", [("teacher",), ()])
def test_a_save_over_its_own_folder_that_drops_the_tier_leaves_the_stages_that_there_are(saved_tier, tmp_path, keep):
    shutil.copytree(saved_tier(), tmp_path / "repo")
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


def test_weights_given_to_a_save_that_are_the_models_own_keep_the_tier(saved_tier, tmp_path):
    model = load(saved_tier(), keep_all=True)
    model.save_pretrained(tmp_path, state_dict=model.state_dict())  # as transformers' Trainer does
    assert weights(tmp_path) == weights(saved_tier())


@pytest.mark.parametrize("origin", [in_memory, just_added, stored])
def test_an_adapter_is_not_put_on_low_precision(saved_tier, tmp_path, origin):
    peft = pytest.importorskip("peft")
    model, images = origin(saved_tier, tmp_path), tiny_images("vit")
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
