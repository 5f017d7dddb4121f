"""The plan of a network: its blocks' modules, made and attached and released."""

from __future__ import annotations

import pytest
import torch

from pwl_hf.modeling.families.registry import FAMILIES as REGISTERED
from pwl_hf.modeling.families.registry import family_of
from pwl_hf.modeling.parts.blueprint import Blueprint, Vacant
from pwl_hf.modeling.routes.cuts import default_cuts
from tests.tiny import EACH_FAMILY, tiny_images, tiny_pair

CPU, TASK = torch.device("cpu"), "AutoModelForImageClassification"


def plan_of(model_type: str) -> Blueprint:
    config = tiny_pair(model_type)[0]
    return Blueprint("teacher", config, default_cuts(REGISTERED[model_type].depths(config), 4), TASK)


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_specs_are_the_networks_state_dict_in_blocks(model_type: str) -> None:
    plan = plan_of(model_type)
    network = plan.build()
    state, parameters = network.state_dict(), dict(network.named_parameters())
    found = {name: spec for block in range(1, 5) for name, spec in plan.specs(block).items()}
    assert sum(len(plan.specs(block)) for block in range(1, 5)) == len(found)
    assert found.keys() == state.keys()
    for name, spec in found.items():
        assert spec.shape == tuple(state[name].shape)
        assert spec.is_floating == state[name].is_floating_point()
        assert spec.is_parameter == (name in parameters)


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@torch.no_grad()
def test_made_and_attached_blocks_are_the_network(model_type: str) -> None:
    plan, images = plan_of(model_type), tiny_images(model_type)
    original = plan.build().eval()
    vacant = plan.build_vacant().eval()
    assert not [*vacant.parameters(), *vacant.buffers()]
    state = original.state_dict()
    for block in (3, 1, 4, 2):
        assert not plan.is_resident(vacant, block)
        modules = plan.make(vacant, block, {name: state[name] for name in plan.specs(block)}, CPU)
        assert not plan.is_resident(vacant, block), "making touches no network"
        plan.attach(vacant, modules)
        assert plan.is_resident(vacant, block)
    assert torch.equal(vacant(images).logits, original(images).logits)
    assert list(vacant.state_dict()) == list(state)
    assert [name for name, _ in vacant.named_modules()] == [name for name, _ in original.named_modules()]


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_attach_and_release_are_exact_inverses(model_type: str) -> None:
    plan = plan_of(model_type)
    network = plan.build_vacant()
    before = [(name, type(m)) for name, m in network.named_modules()]
    state = plan.build().state_dict()
    for block in range(1, 5):
        for _ in range(2):
            plan.attach(network, plan.make(network, block, {n: state[n] for n in plan.specs(block)}, CPU))
            plan.release(network, block)
            assert [(name, type(m)) for name, m in network.named_modules()] == before


def test_tensors_are_used_and_not_copied() -> None:
    plan = plan_of("vit")
    state = plan.build().state_dict()
    modules = plan.make(plan.build_vacant(), 2, {n: state[n] for n in plan.specs(2)}, CPU)
    for path, module in modules.items():
        for name, tensor in module.state_dict().items():
            assert tensor.data_ptr() == state[f"{path}.{name}"].data_ptr()


def test_releasing_keeps_the_mode_of_its_place() -> None:
    plan = plan_of("vit")
    for training in (True, False):
        network = plan.build().train(training)
        plan.release(network, 2)
        assert all(m.training is training for m in network.modules())


def test_a_vacant_module_names_its_place() -> None:
    vacant = Vacant("student", 3, "vit.layers.2")
    with pytest.raises(RuntimeError, match="block 3 of the student is not resident: call the PWL model"):
        vacant(torch.zeros(1))
    with pytest.raises(AttributeError, match=r"block 3 of the student is not resident.*'attention' was asked for"):
        _ = vacant.attention
    with pytest.raises(RuntimeError, match="student alone has no complete state dict"):
        vacant.state_dict()


def test_a_family_that_leaves_tensors_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(REGISTERED["vit"]), "head_paths", lambda self, config: ("vit.layernorm",))
    plan = plan_of("vit")
    with pytest.raises(ValueError, match=r"paths of family 'vit' do not cover tensor 'classifier\.bias'"):
        plan.specs(1)


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    config = tiny_pair("vit")[0]
    config.model_type = "vilt"
    with pytest.raises(
        ValueError, match="'vilt' cannot be cut into blocks; the supported ones are audio-spectrogram-tr"
    ):
        family_of(config)


def test_on_the_way_to_the_first_stage_each_network_is_built_once(load, monkeypatch) -> None:
    load("vit")  # Saved before any count.
    built, plain = [], Blueprint._build_meta

    def build(self: Blueprint):
        built.append(self.role)
        return plain(self)

    monkeypatch.setattr(Blueprint, "_build_meta", build)
    model = load("vit")
    assert built == ["student"]
    model.load_next_stage()
    assert built == ["student", "teacher"]
