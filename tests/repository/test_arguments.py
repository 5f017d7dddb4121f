"""What `from_pretrained` takes, and what it refuses by name before it asks the Hub for anything."""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap

import pytest
import torch
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging

from pwl_hf import PWLConfig, PWLForImageClassification, RepositoryError
from pwl_hf.modeling.loading import _IGNORED, _REFUSED, check_arguments, device_of, dtype_of
from tests.repository.helpers import edit_json, load, logits, publish
from tests.tiny import tiny_images

REFUSED = {
    "quantization_config": BitsAndBytesConfig(load_in_8bit=True),
    "tp_plan": "auto",
    "num_blocks": 2,
    "num_stages": 2,
    "teacher_cuts": [2, 8],
    "tp_size": 2,
    "device_mesh": object(),
    "distributed_config": object(),
    "max_memory": {0: "1GB"},
    "offload_folder": "folder",
    "offload_buffers": True,
    "variant": "fp16",
    "gguf_file": "model.gguf",
    "state_dict": {"a": 1},
    "key_mapping": {"a": "b"},
    "fusion_config": {"a": True},
    "kernel_config": object(),
    "use_kernels": True,
    "proxies": {"http": "elsewhere"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_argument_that_does_not_apply_is_refused_by_name_without_a_request(hub, repo_id, name):
    with (
        hub.record() as requests,
        pytest.raises(ValueError, match=f"^{name} does not apply to a PWL model: .*leave it out"),
    ):
        load(repo_id, **{name: REFUSED[name]})
    assert requests == []


def test_pickled_weights_are_refused_without_a_request(hub, repo_id):
    with hub.record() as requests, pytest.raises(ValueError, match="use_safetensors=False does not apply"):
        load(repo_id, use_safetensors=False)
    assert requests == []


@pytest.mark.parametrize(
    "device_map",
    [{"teacher": "cpu", "student": "cuda:0"}, {"a": 0, "b": 1}, {"a": "cpu", "b": "disk"}, {}, {"": "disk"}, "disk"],
)
def test_device_map_of_several_devices_or_disk_is_refused_without_a_request(hub, repo_id, device_map):
    with hub.record() as requests, pytest.raises(ValueError, match="device_map"):
        load(repo_id, device_map=device_map)
    assert requests == []


def test_ignore_mismatched_sizes_without_keep_all_is_refused_without_a_request(hub, repo_id):
    with hub.record() as requests, pytest.raises(ValueError, match="load with keep_all=True as well"):
        load(repo_id, ignore_mismatched_sizes=True)
    assert requests == []


@pytest.mark.parametrize("name", ["use_kernels", "offload_buffers", "variant", "quantization_config", "gguf_file"])
def test_refused_argument_that_is_off_is_accepted(saved, name):
    value = False if name in ("use_kernels", "offload_buffers") else None
    assert load(saved("vit"), **{name: value}).stage == 0


def test_every_argument_of_transformers_is_taken_refused_or_ignored_by_name():
    """A new version of transformers may bring another: it must not end up as a change to the config."""
    source = ast.parse(textwrap.dedent(inspect.getsource(PreTrainedModel.from_pretrained)))
    popped = {
        node.args[0].value
        for node in ast.walk(source)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "pop"
        and getattr(node.func.value, "id", "") == "kwargs"
        and isinstance(node.args[0], ast.Constant)
    }
    theirs = {*inspect.signature(PreTrainedModel.from_pretrained).parameters, *popped} - {"model_args", "kwargs", "cls"}
    ours = set(inspect.signature(PWLForImageClassification.from_pretrained).parameters) | {"use_safetensors"}
    unknown = theirs - ours - _REFUSED.keys() - set(_IGNORED)
    # Of no meaning to an image classifier: unknown arguments, which is a TypeError that names them.
    assert unknown <= {"adapter_name", "allow_all_kernels", "experts_implementation", "generation_config"}, unknown
    assert not check_arguments(dict.fromkeys(_IGNORED))


@pytest.mark.parametrize("given", [{"banana": 1}, {"num_stage": 2}, {"stages": 2}, {"sources": "TTSS"}])
def test_unknown_argument_raises_type_error_with_its_name(saved, given):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(given))}'"):
        load(saved("vit"), **given)
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(given))}'"):
        load(saved("vit"), config=PWLConfig.from_pretrained(saved("vit")), **given)


@pytest.mark.parametrize("stage", [-1, 5, 1.0, True, None, "4", "student", "Teacher", [1]])
def test_stage_that_does_not_exist_raises_value_error(saved, stage):
    with pytest.raises(ValueError, match="stage must be a whole number from 0 to 4"):
        load(saved("vit"), stage=stage)
    model = load(saved("vit"))
    with pytest.raises(ValueError, match="stage must be a whole number from 0 to 4"):
        model.set_stage(stage)
    assert model.stage == 0


@pytest.mark.parametrize(("stage", "found"), [(0, 0), (2, 2), (4, 4), ("teacher", 4)])
def test_stage_is_where_the_model_starts(saved, stage, found):
    assert load(saved("vit"), stage=stage).stage == found


@pytest.mark.parametrize(
    "device_map",
    [None, "cpu", "auto", "balanced", "sequential", torch.device("cpu"), {"": "cpu"}, {"a": "cpu", "b": "cpu"}],
)
def test_device_map_of_one_device_is_accepted(saved, device_map):
    if device_map in ("auto", "balanced", "sequential") and torch.accelerator.is_available():
        pytest.skip("these mean the accelerator here")
    model = load(saved("resnet"), device_map=device_map, stage=1)
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"cpu"}


@pytest.mark.parametrize("device_map", ["auto", "balanced", "balanced_low_0", "sequential"])
def test_device_map_of_a_build_for_an_accelerator_that_is_not_there_means_the_cpu(device_map, monkeypatch):
    def of_a_build_for_cuda(check_available=False):
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", of_a_build_for_cuda)
    assert device_of(device_map) == torch.device("cpu")


def test_device_of_understands_indices_and_the_default_device():
    assert device_of("cuda:1") == torch.device("cuda", 1)
    assert device_of({"": "cuda:0"}) == torch.device("cuda", 0)
    with torch.device("cuda", 1):
        assert device_of(None) == torch.device("cuda", 1)


def test_from_pretrained_within_the_meta_device_is_refused_as_in_transformers(saved):
    folder = saved("vit")
    with torch.device("meta"), pytest.raises(RuntimeError, match=r"torch.device\('meta'\).*leave the block"):
        load(folder)
    with torch.device("meta"):
        assert {t.device.type for t in load(folder, device_map="cpu").parameters()} == {"cpu"}


def test_attention_maps_are_refused_rather_than_left_out(saved):
    with pytest.raises(ValueError, match="output_attentions=True does not apply"):
        load(saved("vit"), output_attentions=True)
    model = load(saved("vit"), attn_implementation="eager")
    config = copy.deepcopy(model.config)
    config.output_attentions = True
    with pytest.raises(ValueError, match="output_attentions=True does not apply"):
        load(saved("vit"), config=config)
    model.config.output_attentions = True
    with pytest.raises(ValueError, match="output_attentions=True does not apply"):
        model(tiny_images("vit"))
    model.config.output_attentions = False
    assert model(tiny_images("vit")).logits.shape == (2, 5)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtype_is_that_of_every_stage_and_of_the_config(saved, dtype, name):
    model = load(saved("resnet"), **{name: dtype})
    for _ in range(4):
        model.load_next_stage()
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert {t.dtype for found in model.statistics.values() for t in found.values()} == {torch.bfloat16}
    assert model.config.dtype == model.config.teacher_config.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [None, "auto"])
def test_no_dtype_means_the_stored_one(saved, tmp_path, dtype):
    load(saved("vit"), dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert load(tmp_path, dtype=dtype).dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("dtype", ["int8", torch.int64, "nothing", "nn", 16])
def test_dtype_that_is_not_floating_is_refused(saved, dtype):
    with pytest.raises(ValueError, match="dtype must be a floating torch dtype"):
        load(saved("vit"), dtype=dtype)
    assert dtype_of("float16", torch.float32) == torch.float16


def test_attn_implementation_reaches_every_stage(saved):
    model = load(saved("vit"), attn_implementation="eager")
    assert model.config.student_config._attn_implementation == "eager"
    model.set_stage("teacher")
    layer = model.teacher.vit.layers[0]
    assert {m.config._attn_implementation for m in layer.modules() if hasattr(m, "config")} == {"eager"}


def test_passed_config_is_used_and_not_changed(saved):
    config = PWLConfig.from_pretrained(saved("vit"), id2label={i: f"new {i}" for i in range(5)})
    before = config.to_dict()
    model = load(saved("vit"), config=config, dtype="bfloat16", attn_implementation="eager")
    assert model.config.id2label[3] == "new 3"
    assert config.to_dict() == before
    assert config._attn_implementation != "eager"


def test_passed_config_of_other_weights_is_refused(saved, tmp_path):
    config = PWLConfig.from_pretrained(saved("vit"))
    config.fingerprint = "0" * 64
    with pytest.raises(RepositoryError, match="of different saves"):
        load(saved("vit"), config=config)


def test_config_changes_are_taken_as_keywords(saved):
    model = load(saved("vit"), id2label={i: f"new {i}" for i in range(5)}, output_hidden_states=True)
    assert model.config.id2label[0] == "new 0"
    assert len(model(tiny_images("vit")).hidden_states) == 4


def test_other_number_of_labels_needs_the_heads_to_be_reset(saved):
    with pytest.raises(
        ValueError, match="num_labels=3, but the heads have 5 labels: give ignore_mismatched_sizes=True"
    ):
        load(saved("vit"), num_labels=3, keep_all=True)
    model, info = load(
        saved("vit"), num_labels=3, keep_all=True, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert logits(model).shape == (2, 3)
    assert {name for name, *_ in info["mismatched_keys"]} == {
        f"{role}classifier.{kind}" for role in ("student.", "teacher.") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("family", ["vit", "resnet", "pwl_vgg"])
@pytest.mark.parametrize("options", [{}, {"stage": 2}, {"keep_all": True}, {"stage": "teacher"}])
def test_loading_info_has_nothing_missing_or_unexpected(saved, family, options):
    model, info = load(saved(family), output_loading_info=True, **options)
    assert isinstance(model, PWLForImageClassification)
    assert info.keys() >= {"missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"}
    assert not any(info.values())


@pytest.mark.parametrize("options", [{}, {"stage": 3}, {"keep_all": True}])
def test_loaded_model_is_in_eval_mode_on_no_meta_device(saved, options):
    model = load(saved("swin"), **options)
    assert not any(module.training for module in model.modules())
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


def test_arguments_that_change_nothing_are_accepted(saved):
    load(
        saved("vit"),
        trust_remote_code=True,
        low_cpu_mem_usage=True,
        weights_only=True,
        use_safetensors=True,
        code_revision="main",
        _from_auto=True,
        _commit_hash=None,
    )


def test_path_may_be_a_path_or_a_string(saved):
    assert torch.equal(logits(load(saved("vit"))), logits(load(str(saved("vit")))))


def test_unknown_key_of_the_config_is_kept(copied, tmp_path):
    folder = copied("vit")
    edit_json(folder / "config.json", lambda config: config.update(of_a_later_version=[1, 2]))
    model = load(folder)
    assert model.config.of_a_later_version == [1, 2]
    model.save_pretrained(tmp_path / "out")
    assert PWLConfig.from_pretrained(tmp_path / "out").of_a_later_version == [1, 2]


def test_loading_says_nothing(hub, repo_id, saved, capfd, tmp_path):
    publish(hub, repo_id, saved("resnet"))
    logging.set_verbosity_info()
    try:
        load(repo_id, stage="teacher", cache_dir=tmp_path)
    finally:
        logging.set_verbosity_warning()
    out, err = capfd.readouterr()
    assert out == ""
    assert "warn" not in err.lower()
