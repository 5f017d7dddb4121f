"""Every use of what transformers and torch do not promise, pinned: a failure says what to look at.

The uses are in `modeling/transformers_internals.py`, and those of torch.nn in `blueprint.py` and `batchnorm.py`.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, SwinForImageClassification

from pwl_hf import PWLConfig, PWLForImageClassification, modeling
from pwl_hf.modeling import transformers_internals as internals
from pwl_hf.modeling.families.registry import FAMILIES as REGISTERED
from tests.tiny import EACH_FAMILY, WITH_ATTENTION, tiny_images, tiny_model, tiny_pair

FOLDER = Path(modeling.__file__).parent
VERSION = f"transformers {transformers.__version__}, torch {torch.__version__}"


def look_at(what: str) -> str:
    return f"{VERSION} does this in another way now: {what}"


def teacher_of(model_type: str) -> PreTrainedModel:
    return REGISTERED[model_type].model_class()(tiny_pair(model_type)[0])


# --- Where it may be used ---------------------------------------------------------------------------------------

# Modules of transformers that its documentation names as public.
PUBLIC = ("transformers", "transformers.modeling_outputs", "transformers.utils", "transformers.activations")


def imports(path: Path) -> set[tuple[str, str]]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.name)
def test_private_names_of_transformers_are_imported_in_one_file_only(path: Path) -> None:
    if path.name == "transformers_internals.py":
        return
    for module, name in imports(path):
        if module.split(".")[0] == "transformers":
            assert module in PUBLIC, f"{path.name} imports {name!r} from {module}: move it to transformers_internals.py"
            assert not name.startswith("_"), f"{path.name} imports the private name {name!r}"


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.name)
def test_private_attributes_of_configs_are_used_in_one_file_only(path: Path) -> None:
    names = {
        node.attr for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)
    }
    private = {name for name in names if name.startswith("_") and hasattr(PreTrainedConfig, name) and "__" not in name}
    assert path.name == "transformers_internals.py" or not private


# --- Names on disk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_checkpoint_names_are_those_that_save_pretrained_writes(tmp_path: Path, model_type: str) -> None:
    network = teacher_of(model_type)
    network.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    names = internals.checkpoint_names(network)
    hint = look_at(
        "core_model_loading.revert_weight_conversion; PreTrainedModel.save_pretrained has the call to follow"
    )
    assert sorted(names.values()) == sorted(stored), hint
    for name, tensor in network.state_dict().items():
        assert torch.equal(stored[names[name]], tensor), f"{name} -> {names[name]}: {hint}"


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_checkpoint_names_need_no_weights(model_type: str) -> None:
    with torch.device("meta"):
        on_meta = teacher_of(model_type)
    assert internals.checkpoint_names(on_meta) == internals.checkpoint_names(teacher_of(model_type)), look_at(
        "revert_weight_conversion reads tensors, or makes new ones, on the meta device"
    )


def test_names_on_disk_still_differ_from_those_in_memory() -> None:
    names = internals.checkpoint_names(teacher_of("vit"))
    assert names["vit.layers.0.attention.q_proj.weight"] == "vit.encoder.layer.0.attention.attention.query.weight", (
        look_at("conversion_mapping.py of ViT: repositories that exist have the name on the right")
    )


def test_a_conversion_that_does_more_than_rename_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def merge(model: PreTrainedModel, state: dict) -> dict:
        name, tensor = next(iter(state.items()))
        return state | {name: tensor.clone()}

    monkeypatch.setattr(internals, "revert_weight_conversion", merge)
    with pytest.raises(NotImplementedError, match="ViTForImageClassification is saved with more than renamed tensors"):
        internals.checkpoint_names(teacher_of("vit"))


# --- Initialisation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_marked_tensors_are_left_alone_and_others_are_filled(model_type: str) -> None:
    network = teacher_of(model_type)
    hint = look_at("transformers/initialization.py: its functions skip tensors with `_is_hf_initialized`")
    for tensor in network.state_dict(keep_vars=True).values():
        tensor.data.fill_(9)
        internals.mark_initialized(tensor)
    head = list(network.classifier.parameters())
    for tensor in head:
        del tensor._is_hf_initialized
    internals.fill_missing(network, network)
    for name, tensor in network.state_dict().items():
        if name.startswith("classifier"):
            assert not (tensor == 9).any(), f"{name} was not filled: {look_at('PreTrainedModel._init_weights')}"
        else:
            assert (tensor == 9).all(), f"{name} was changed: {hint}"


def test_buffers_that_are_not_saved_are_computed_by_the_initialisation() -> None:
    network = SwinForImageClassification(tiny_pair("swin")[0])
    buffers = {name: b for name, b in network.named_buffers() if name not in network.state_dict()}
    hint = look_at("SwinPreTrainedModel._init_weights fills relative_position_index; see Blueprint.make")
    assert buffers, hint
    expected = {name: b.clone() for name, b in buffers.items()}
    for buffer in buffers.values():
        buffer.zero_()
    internals.fill_missing(network, network)
    for name, buffer in network.named_buffers():
        if name in expected:
            assert torch.equal(buffer, expected[name]), f"{name}: {hint}"


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_every_buffer_of_a_family_is_saved_or_computed(model_type: str) -> None:
    # A buffer of another kind would come back from the repository as uninitialised memory.
    network = teacher_of(model_type)
    unsaved = {name.rpartition(".")[2] for name, _ in network.named_buffers()} - {
        name.rpartition(".")[2] for name in network.state_dict()
    }
    assert unsaved <= {"relative_position_index"}, look_at(f"{model_type} has new non-persistent buffers: {unsaved}")


@pytest.mark.parametrize("name", ["kaiming_normal_", "kaiming_uniform_", "uniform_", "ones_", "zeros_"])
def test_initialisation_functions_fill_and_respect_the_mark(name: str) -> None:
    fill: Callable = getattr(internals, name)
    free, marked = torch.full((3, 3), 9.0), torch.full((3, 3), 9.0)
    internals.mark_initialized(marked)
    fill(free)
    fill(marked)
    assert not (free == 9).any(), look_at(f"initialization.{name}")
    assert (marked == 9).all(), look_at(f"initialization.{name} ignores `_is_hf_initialized`")


def test_a_given_network_is_not_initialised_anew_by_post_init() -> None:
    teacher, student = (REGISTERED["vit"].model_class()(config) for config in tiny_pair("vit"))
    for parameter in (*teacher.parameters(), *student.parameters()):
        parameter.data.fill_(9)
    model = PWLForImageClassification.from_teacher_student(teacher, student)
    for name, tensor in (*model.teacher.state_dict().items(), *model.student.state_dict().items()):
        assert (tensor == 9).all(), f"{name}: {look_at('PreTrainedModel.post_init initialises sub-models again')}"


# --- Configs ----------------------------------------------------------------------------------------------------


def test_sub_config_specs_resolve_nested_configs() -> None:
    spec = internals.SubConfigSpec(config_class=AutoConfig, model_type="vit", init_kwargs={"hidden_size": 192})
    assert (spec.config_class, spec.model_type, spec.init_kwargs) == (AutoConfig, "vit", {"hidden_size": 192}), look_at(
        "configuration_utils.SubConfigSpec"
    )
    config = PWLConfig(teacher_config={"model_type": "deit"}, student_config={"model_type": "deit"})
    assert config.teacher_config.model_type == "deit", look_at(
        "PreTrainedConfig.__post_init__ and sub_configs_defaults"
    )
    assert set(config.sub_configs) == {"teacher_config", "student_config"}, look_at("PreTrainedConfig.sub_configs")


@pytest.mark.parametrize("model_type", WITH_ATTENTION)
def test_layers_share_their_networks_config_object(model_type: str) -> None:
    network = teacher_of(model_type)
    found = [m.config for m in network.modules() if isinstance(getattr(m, "config", None), PreTrainedConfig)]
    assert len(found) > 3, look_at(f"layers of {model_type} no longer hold a config")
    assert all(config is network.config for config in found), look_at(
        f"layers of {model_type} hold a copy of the config: set_attn_implementation cannot reach later blocks"
    )


def test_the_attention_of_a_config_reaches_its_sub_configs() -> None:
    config = PWLConfig(**dict(zip(("teacher_config", "student_config"), tiny_pair("vit"), strict=True)))
    internals.choose_attention(config, "eager")
    for part in (config.teacher_config, config.student_config):
        assert internals.attention_of(part) == "eager", look_at("PreTrainedConfig._attn_implementation, its setter")


# --- Activation checkpointing -----------------------------------------------------------------------------------


def test_checkpointing_is_two_attributes_of_a_layer() -> None:
    network = teacher_of("vit").train()
    network.activation_checkpointing_enable()
    layer, other = network.vit.layers[0], copy.deepcopy(tiny_model("vit").teacher.vit.layers[0]).train()
    hint = look_at("modeling_layers.GradientCheckpointingLayer; transformers_internals.copy_checkpointing copies these")
    assert layer.gradient_checkpointing is True, hint
    assert callable(layer._gradient_checkpointing_func), hint
    assert other.gradient_checkpointing is False, hint
    internals.copy_checkpointing(network, [other])
    assert other.gradient_checkpointing is True
    calls = []
    other.attention.register_forward_hook(lambda *_: calls.append(1))
    other(torch.randn(1, 17, 24, requires_grad=True), None).sum().backward()
    assert len(calls) == 2, hint


def test_nothing_is_copied_from_a_model_that_never_had_checkpointing() -> None:
    layer = teacher_of("vit").vit.layers[0]
    internals.copy_checkpointing(teacher_of("resnet"), [layer])
    internals.copy_checkpointing(teacher_of("vit"), [layer])
    assert not layer.gradient_checkpointing


# --- Calling parts of a network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@torch.no_grad()
def test_a_networks_parts_in_a_row_are_the_network(model_type: str) -> None:
    network, images = teacher_of(model_type).eval(), tiny_images(model_type)
    family, config = REGISTERED[model_type], network.config
    get = network.get_submodule
    features = family.embedder(config, get)({"pixel_values": images})
    for unit in range(family.num_units(config)):
        features = family.unit(config, unit, get)(features)
        boundary = family.boundary(config, unit + 1)
        assert features.tensor.shape[1 if boundary.channels_first else -1] == boundary.width
    assert torch.equal(family.head(config, get)(features), network(images).logits), look_at(
        f"forward of {type(network).__name__} and of its base model; compare with {type(family).__module__}"
    )


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_a_familys_paths_are_all_tensors_once(model_type: str) -> None:
    network = teacher_of(model_type)
    family, config = REGISTERED[model_type], network.config
    paths = [*family.embedder_paths(config), *family.head_paths(config)]
    paths += [path for unit in range(family.num_units(config)) for path in family.unit_paths(config, unit)]
    assert len(set(paths)) == len(paths)
    for name in network.state_dict():
        owners = [path for path in paths if name.startswith(f"{path}.")]
        assert len(owners) == 1, look_at(f"{type(network).__name__}: tensor {name} belongs to {owners or 'no path'}")


# --- torch.nn ---------------------------------------------------------------------------------------------------


def test_modules_are_found_through_the_dict_of_their_parent() -> None:
    hint = look_at("torch.nn.Module._modules, which Blueprint.attach and batchnorm.twin write to")
    network = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    network._modules["0"] = replacement = nn.Linear(2, 2)
    assert network.get_submodule("0") is replacement, hint
    assert network[0] is replacement, hint
    assert next(iter(network.parameters())) is replacement.weight, hint
    torch.testing.assert_close(network(torch.ones(1, 2)), replacement(torch.ones(1, 2)))


def test_a_shallow_copy_of_a_module_shares_the_dict_of_parameters() -> None:
    hint = look_at("copy.copy of an nn.Module: batchnorm.twin relies on its sharing `_parameters`")
    norm = nn.BatchNorm2d(2)
    twin = copy.copy(norm)
    assert twin._parameters is norm._parameters, hint
    norm.to(torch.float64)
    assert twin.weight.dtype == torch.float64, hint
    norm.weight = nn.Parameter(torch.full((2,), 5.0))
    assert twin.weight is norm.weight, hint


def test_assigning_a_state_dict_keeps_the_tensors_memory() -> None:
    with torch.device("meta"):
        layer = nn.Linear(2, 2)
    state = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    layer.load_state_dict(state, assign=True)
    assert layer.weight.data_ptr() == state["weight"].data_ptr(), look_at(
        "nn.Module.load_state_dict(assign=True) copies: a stage would no longer stay a mapped file"
    )
