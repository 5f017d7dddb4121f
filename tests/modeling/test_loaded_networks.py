"""Networks by folder or id: what transformers would draw at random, or leave out, with a line in a log is refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from pwl_hf import PWLForImageClassification, RepositoryError
from pwl_hf.modeling.families.registry import FAMILIES as REGISTERED
from tests.tiny import EACH_FAMILY, WITH_BATCH_NORM, tiny_pair

join = PWLForImageClassification.from_teacher_student
State = dict[str, torch.Tensor]
ROLES = ["teacher", "student"]


def network(model_type: str, role: str = "teacher") -> PreTrainedModel:
    return REGISTERED[model_type].model_class()(tiny_pair(model_type)[ROLES.index(role)]).eval()


def edit(folder: Path, change: Callable[[State], State]) -> None:
    file = folder / "model.safetensors"
    save_file({n: t.clone() for n, t in change(load_file(file)).items()}, file, metadata={"format": "pt"})


def pair(tmp_path: Path, model_type: str) -> dict[str, Path]:
    for role in ROLES:
        network(model_type, role).save_pretrained(tmp_path / role)
    return {role: tmp_path / role for role in ROLES}


def refused(folders: dict[str, Path], message: str, **kwargs: object) -> None:
    with pytest.raises(RepositoryError, match=message):
        join(*folders.values(), **kwargs)


# --- The head ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@pytest.mark.parametrize("role", ROLES)
def test_a_backbone_without_a_head_is_refused_by_name(model_type, role, tmp_path):
    folders = pair(tmp_path, model_type)
    network(model_type, role).base_model.save_pretrained(folders[role])
    message = rf"the {role} '.*{role}'.* lacks classifier\S*bias, classifier\S*weight, which would be random.*new_head"
    refused(folders, message)


@pytest.mark.parametrize("allowed", [{"allow_new_head": True}, {"student_allow_new_head": True}])
def test_a_new_head_is_made_if_it_is_allowed_and_said_aloud(allowed, tmp_path, caplog):
    folders = pair(tmp_path, "vit")
    backbone = network("vit", "student")
    backbone.base_model.save_pretrained(folders["student"])
    with caplog.at_level(logging.WARNING, "pwl_hf"):
        model = join(*folders.values(), **allowed)
    assert "the student" in caplog.text
    assert "drawn at random" in caplog.text
    assert "classifier.bias, classifier.weight" in caplog.text
    assert "the teacher" not in caplog.text
    assert torch.isfinite(model.student.classifier.weight).all()
    assert torch.equal(model.student.vit.layernorm.weight, backbone.vit.layernorm.weight)


def test_a_new_head_of_one_network_does_not_allow_that_of_the_other(tmp_path):
    folders = pair(tmp_path, "vit")
    network("vit").base_model.save_pretrained(folders["teacher"])
    refused(folders, "the teacher .* lacks classifier", student_allow_new_head=True)


def test_another_name_of_the_head_is_told(tmp_path):
    folders = pair(tmp_path, "vit")
    edit(folders["teacher"], lambda s: {n.replace("classifier", "cls_classifier"): t for n, t in s.items()})
    refused(folders, r"lacks classifier.*not used: cls_classifier\.bias, cls_classifier\.weight")


def test_half_a_head_is_refused(tmp_path):
    folders = pair(tmp_path, "resnet")
    edit(folders["teacher"], lambda s: {n: t for n, t in s.items() if n != "classifier.1.bias"})
    refused(folders, r"lacks classifier\.1\.bias, which")


def narrow(state: State) -> State:
    return {n: t[:3] if n.startswith("classifier") else t for n, t in state.items()}


def test_a_head_of_another_shape_is_refused_allowed_or_wished(tmp_path, caplog):
    folders = pair(tmp_path, "vit")
    edit(folders["student"], narrow)
    refused(folders, r"the student .*another shape of classifier\.bias \[3\], not \[5\], .*allow_new_head")
    for wish in ({"allow_new_head": True}, {"ignore_mismatched_sizes": True}):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "pwl_hf"):
            model = join(*folders.values(), **wish)
        assert model.student.classifier.weight.shape == (5, 16)
        assert "classifier.bias, classifier.weight" in caplog.text


def test_ignored_sizes_do_not_allow_a_missing_head(tmp_path):
    folders = pair(tmp_path, "vit")
    network("vit").base_model.save_pretrained(folders["teacher"])
    refused(folders, "lacks classifier", ignore_mismatched_sizes=True)


# --- The body ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@pytest.mark.parametrize("allow", [False, True])
def test_old_names_of_norms_are_refused_also_where_a_head_may_be_new(model_type, allow, tmp_path):
    folders = pair(tmp_path, model_type)
    made = network(model_type)
    norms = {n for n, m in made.named_modules() if "Norm" in type(m).__name__ and hasattr(m, "weight")}
    assert norms
    old = {"weight": "gamma", "bias": "beta"}

    def rename(state: State) -> State:
        # In memory and on disk, names of norms end alike: ...norm.weight, ...normalization.weight.
        return {
            f"{path}.{old[leaf]}" if re.search(r"norm[a-z_]*(\.\d)?$", path, re.I) and leaf in old else n: t
            for n, t in state.items()
            for path, _, leaf in [n.rpartition(".")]
        }

    edit(folders["teacher"], rename)
    assert any(name.endswith(".gamma") for name in load_file(folders["teacher"] / "model.safetensors"))
    refused(folders, r"the teacher .*lacks .*weight.*the network has no place for its .*\.beta", allow_new_head=allow)


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("role", ROLES)
def test_a_missing_tensor_of_the_body_is_always_refused(role, allow, tmp_path):
    folders = pair(tmp_path, "vit")
    edit(folders[role], lambda s: {n: t for n, t in s.items() if not n.endswith("layer.2.output.dense.bias")})
    refused(folders, rf"the {role} .*lacks vit\.layers\.2\.mlp\.fc2\.bias, which", allow_new_head=allow)


@pytest.mark.parametrize("model_type", WITH_BATCH_NORM)
def test_missing_running_statistics_are_refused_and_a_missing_count_of_batches_is_not(model_type, tmp_path):
    folders = pair(tmp_path, model_type)
    edit(folders["teacher"], lambda s: {n: t for n, t in s.items() if not n.endswith("num_batches_tracked")})
    join(*folders.values())
    edit(folders["teacher"], lambda s: {n: t for n, t in s.items() if not n.endswith("running_var")})
    refused(folders, "lacks .*running_var")


def test_another_shape_in_the_body_is_refused_unless_it_is_wished(tmp_path, caplog):
    folders = pair(tmp_path, "vit")
    edit(folders["teacher"], lambda s: {n: t[:, :9] if "position" in n else t for n, t in s.items()})
    message = r"another shape of vit\.embeddings\.position_embeddings \[1, 9, 24\], not \[1, 17, 24\]"
    refused(folders, message)
    refused(folders, message, allow_new_head=True)
    with caplog.at_level(logging.WARNING, "pwl_hf"):
        join(*folders.values(), ignore_mismatched_sizes=True)
    assert "drawn at random, not from the checkpoint" in caplog.text
    assert "vit.embeddings.position_embeddings" in caplog.text


# --- What a checkpoint has too much -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "vit.encoder.layer.0.attention.attention.query.weight_scale",
        "vit.encoder.layer.0.attention.attention.query.lora_A.default.weight",
        "vit.encoder.layer.1.adapter.down.weight",
        "vit.encoder.layer.8.output.dense.weight",
        "vit.embeddings.distillation_token",
        "vit.layernorm.gamma",
        "classifier.weight_scale",
    ],
)
@pytest.mark.parametrize("allow", [False, True])
def test_weights_of_parts_that_the_network_has_are_not_left_out(name, allow, tmp_path):
    folders = pair(tmp_path, "vit")
    edit(folders["teacher"], lambda s: s | {name: torch.ones(2)})
    refused(folders, r"the network has no place for its (vit|classifier)\.", allow_new_head=allow)


@pytest.mark.parametrize("name", ["vit.pooler.dense.weight", "vit.embeddings.mask_token", "decoder.mask_token"])
def test_weights_of_other_parts_are_left_out_as_in_transformers(name, tmp_path):
    folders = pair(tmp_path, "vit")
    edit(folders["teacher"], lambda s: s | {name: torch.ones(2)})
    assert join(*folders.values()).num_stages == 4


def test_what_a_network_makes_by_itself_may_be_stored(tmp_path):
    folders = pair(tmp_path, "swin")
    made = network("swin")
    stored = made.state_dict().keys()
    buffers = {n: t.clone() for n, t in made.named_buffers() if n not in stored}
    assert buffers
    edit(folders["teacher"], lambda s: s | buffers)
    assert join(*folders.values()).num_stages == 4


# --- NaN, and models that are given -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("role", ROLES)
def test_weights_that_are_not_finite_are_refused_by_name(role, dtype, value, tmp_path):
    folders = {}
    for name in ROLES:
        made = network("resnet", name).to(dtype)
        if name == role:
            made.resnet.embedder.embedder.normalization.running_mean[1] = value
        made.save_pretrained(tmp_path / name)
        folders[name] = tmp_path / name
    refused(folders, rf"the {role} .*'resnet\.embedder\.embedder\.normalization\.running_mean' holds NaN or infinity")


def test_a_model_that_is_given_is_taken_as_it_is():
    model = join(network("vit"), network("vit", "student"), allow_new_head=True)
    assert model.num_stages == 4
