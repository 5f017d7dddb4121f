"""Networks without values: what is built in a short way is what transformers builds."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, SwinConfig, ViTConfig

from pwl_hf.modeling.families.registry import FAMILIES, family_of
from pwl_hf.modeling.parts.skeletons import Unfilled, build_skeleton
from tests.tiny import FAMILIES as MODEL_TYPES
from tests.tiny import tiny_pair

BUILT_ALIKE = [name for name, family in FAMILIES.items() if family.layers is not None]


def skeleton_of(config: PreTrainedConfig) -> PreTrainedModel:
    family = family_of(config)
    return build_skeleton(family.model_class(), config, family.layers)


def _settings(module: nn.Module) -> dict:
    """All that a module holds but tensors and modules."""
    return {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")}


def _shapes(network: nn.Module) -> dict:
    parameters = network.named_parameters(remove_duplicate=False)
    tensors = {**dict(parameters), **dict(network.named_buffers(remove_duplicate=False))}
    return {name: (t.shape, t.dtype, t.device, type(t)) for name, t in tensors.items()}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_skeleton_is_the_network_that_its_class_builds(model_type):
    one, other = tiny_pair(model_type)[0], tiny_pair(model_type)[0]
    found = skeleton_of(one)
    with torch.device("meta"):
        expected = family_of(other).model_class()(other)
    assert repr(found) == repr(expected)
    assert list(found.state_dict()) == list(expected.state_dict())
    assert _shapes(found) == _shapes(expected)
    parts = dict(expected.named_modules())
    for name, part in found.named_modules():
        assert type(part) is type(parts[name])
        mine, theirs = _settings(part), _settings(parts[name])
        assert mine.keys() == theirs.keys(), name
        assert ("config" not in mine) or mine["config"] is one, name
        for key in mine.keys() - {"config"}:
            same = mine[key] is theirs[key] or repr(mine[key]) == repr(theirs[key])
            assert same, f"{name}: {key} is {mine[key]!r}, transformers builds {theirs[key]!r}"
    assert one.to_dict() == other.to_dict()
    assert one._attn_implementation == other._attn_implementation


@pytest.mark.parametrize("model_type", BUILT_ALIKE)
def test_layers_that_are_alike_share_nothing_that_can_be_changed(model_type):
    config = tiny_pair(model_type)[0]
    family = family_of(config)
    layers = skeleton_of(config).get_submodule(family.layers)
    assert len(layers) == config.num_hidden_layers > 1
    first, second = layers[0], layers[1]
    for (name, one), other in zip(first.named_modules(), second.modules(), strict=True):
        assert one is not other
        shared = [k for k, v in vars(one).items() if isinstance(v, dict | list | set) and v is vars(other)[k]]
        assert shared == [], f"{name}: {shared}"


def test_config_that_asks_for_an_attention_keeps_it():
    config = tiny_pair("vit")[0]
    config._attn_implementation = "eager"
    network = skeleton_of(config)
    assert config._attn_implementation == "eager"
    assert all(part.config is config for part in network.modules() if hasattr(part, "config"))


@pytest.mark.parametrize("layers", [1, 2])
def test_depth_of_the_config_is_the_networks(layers):
    config = ViTConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=layers)
    network = skeleton_of(config)
    assert config.num_hidden_layers == layers == len(network.vit.layers)


def test_layers_of_different_settings_are_each_built():
    widths = {1: {"intermediate_size": 24}}
    config = ViTConfig(
        hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2, per_layer_config=widths
    )
    with torch.device("meta"):
        try:
            expected = family_of(config).model_class()(config)
        except Exception as error:
            with pytest.raises(type(error)):
                skeleton_of(config)
            return
    assert _shapes(skeleton_of(config)) == _shapes(expected)


def test_only_tensors_without_values_are_left_unfilled():
    with Unfilled():
        real = nn.Linear(2, 2)
        assert torch.equal(torch.empty(3).fill_(2.0), torch.full((3,), 2.0))
        assert nn.init.zeros_(torch.empty(2)).tolist() == [0.0, 0.0]
        torch.manual_seed(0)
        real.reset_parameters()
    torch.manual_seed(0)
    other = nn.Linear(2, 2)
    assert torch.equal(real.weight, other.weight)


def test_other_threads_fill_their_networks_meanwhile():
    found: list[torch.Tensor] = []

    def build() -> None:
        layer = nn.LayerNorm(4)
        found.append(layer.weight.detach())

    with torch.device("meta"), Unfilled():
        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
    assert found[0].tolist() == [1.0] * 4


def test_families_of_several_levels_are_built_whole():
    assert family_of(SwinConfig()).layers is None
    assert set(BUILT_ALIKE) == {"vit", "deit", "dinov2"}
