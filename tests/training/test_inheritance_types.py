"""Students of every type of text and sound begin as their teacher's layers; padding chooses no channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from pwl_hf.training.networks.inheritance import _pairs, inherit
from pwl_hf.training.networks.slices.axes import axes_of
from pwl_hf.training.networks.slices.moments import observe
from tests.modeling.types import AUDIO, TEXT, batch, model_class, network_config

_LAYERS = {"whisper": "encoder_layers", "distilbert": "n_layers"}


def joined(model_type: str, **student: Any) -> Any:
    """A pair of which the student's config differs from its teacher's in some fields."""
    configs = [network_config(model_type, "teacher"), network_config(model_type, "teacher", **student)]
    kind = model_class(model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [getattr(transformers, kind.task).from_config(config).eval() for config in configs]
        return kind.from_teacher_student(*networks, num_blocks=2)


@pytest.mark.parametrize("model_type", [*TEXT, *AUDIO])
def test_a_student_of_fewer_layers_begins_as_its_teacher_s(model_type: str) -> None:
    model = joined(model_type, **{_LAYERS.get(model_type, "num_hidden_layers"): 2})
    found = inherit(model)
    assert (len(found.copied) > 2, found.sliced) == (True, {})
    given = model.teacher.state_dict()
    for name, tensor in model.student.state_dict().items():
        (path,) = {of + name[len(own) :] for own, of in found.copied.items() if name.startswith(f"{own}.")} or {name}
        # What no module of a block has, as the mask of SpecAugment, is drawn.
        assert torch.equal(tensor, given[path]) or "masked_spec_embed" in name, name


@pytest.mark.parametrize("model_type", ["deberta-v2", "gpt2", "phi3", "modernbert"])
def test_heads_that_no_name_tells_are_as_many_as_the_teacher_s(model_type: str) -> None:
    model = joined(model_type, num_attention_heads=2)
    before = {name: tensor.clone() for name, tensor in model.student.state_dict().items()}
    with pytest.raises(ValueError, match="attentions of 4 heads in the teacher and 2 in the student, and the names in"):
        inherit(model, batches=[batch(model_type)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.student.state_dict().items())


def frames(model: Any, model_type: str, inputs: dict[str, torch.Tensor], length: int) -> torch.Tensor:
    """(B, length), bool: which rows of features are of samples, by transformers' own count."""
    if model_type == "siglip2":
        return inputs["pixel_attention_mask"].bool()
    mask = inputs["attention_mask"]
    if mask.shape[1] == length:
        return mask.bool()
    counts = model.teacher._get_feat_extract_output_lengths(mask.sum(-1))
    # SEW's layers see two frames as one.
    squeeze = getattr(model.config.teacher_config, "squeeze_factor", 1)
    return squeeze * torch.arange(length) < counts[:, None]


@pytest.mark.parametrize("model_type", ["bert", "wav2vec2", "wav2vec2-conformer", "sew", "wav2vec2-bert", "siglip2"])
@torch.no_grad()
def test_padding_does_not_count_where_channels_are_chosen(model_type: str) -> None:
    model = joined(model_type, intermediate_size=12)
    inputs = batch(model_type)
    axes = axes_of(model, _pairs(model, "spread"))
    assert axes.narrower
    read = {
        dim.layout: axes.sources[path] for path, dims in axes.tensors.items() for dim in dims if dim.role == "reads"
    }
    seen = observe(model, axes, [inputs]).read
    for axis in axes.narrower:
        features: list[torch.Tensor] = []
        module = model.teacher.get_submodule(read[axis,].rpartition(".")[0])
        handle = module.register_forward_pre_hook(lambda _, given, into=features: into.append(given[0]))
        model.teacher(**inputs)
        handle.remove()
        (found,) = features
        # What SigLIP 2 pools is one row an image.
        if found.ndim == 3 and found.shape[1] > 1:
            kept = frames(model, model_type, inputs, found.shape[1])
            assert not kept.all()
            found = found[kept]
        rows = found.reshape(-1, found.shape[-1]).double()
        torch.testing.assert_close(seen[axis,], rows.T @ rows / len(rows))
    inherit(model, batches=[inputs])
