"""Adapters of PEFT on a PWL model: kept, saved and loaded as transformers does it, or refused by name; never lost."""

from __future__ import annotations

import copy
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTForImageClassification

from pwl_hf import OverwriteError, PWLForImageClassification, RepositoryError, SaveError, StageError
from tests.hub import HubServer
from tests.tiny import tiny_images, tiny_model, tiny_pair

Model = PWLForImageClassification
Load = Callable[..., Model]

LOADERS = [PWLForImageClassification, AutoModelForImageClassification]


def lora(target: object = ("q_proj", "v_proj"), **kwargs: object) -> LoraConfig:
    """A LoRA that changes the answer from the start."""
    target = list(target) if isinstance(target, tuple) else target
    return LoraConfig(r=2, target_modules=target, init_lora_weights=False, **kwargs)


OF_THE_STUDENT = r"student\..*(q_proj|classifier)"


def answers(model: Model) -> list[torch.Tensor]:
    return [model(tiny_images("vit"), sources=mask).logits for mask in ("SSSS", "TTSS", "STTT", "TTTT")]


@pytest.fixture
def adapted(load: Load, tmp_path: Path) -> tuple[Model, Path]:
    """A fully resident model with an adapter on both networks, and the adapter's folder."""
    model = load("vit", keep_all=True)
    model.add_adapter(lora())
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


@pytest.mark.parametrize("loader", LOADERS)
def test_an_adapter_is_saved_and_loaded_as_in_transformers(adapted: tuple[Model, Path], loader: type) -> None:
    model, folder = adapted
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    saved = load_file(folder / "adapter_model.safetensors").values()
    assert sum(tensor.numel() for tensor in saved) < 0.2 * model.num_parameters()
    again = loader.from_pretrained(folder, keep_all=True)
    assert type(again) is PWLForImageClassification
    assert all(map(torch.equal, answers(again), answers(model)))


def test_an_adapter_lies_beside_the_model_that_it_is_for(load: Load, tmp_path: Path) -> None:
    tiny_model("vit").save_pretrained(tmp_path)
    model = Model.from_pretrained(tmp_path, keep_all=True)
    plain = answers(model)
    model.add_adapter(lora())
    model.save_pretrained(tmp_path)
    for loader in LOADERS:
        again = loader.from_pretrained(tmp_path, keep_all=True)
        assert all(map(torch.equal, answers(again), answers(model)))
    again.delete_adapter("default")
    assert all(map(torch.equal, answers(again), plain))


@pytest.mark.parametrize("loader", LOADERS)
def test_an_adapter_of_the_hub_brings_its_model(hub: HubServer, repo_id: str, tmp_path: Path, loader: type) -> None:
    tiny_model("vit").save_pretrained(tmp_path / "pwl")
    Model.from_pretrained(tmp_path / "pwl").push_to_hub(repo_id)
    model = Model.from_pretrained(repo_id, keep_all=True)
    model.add_adapter(lora())
    model.push_to_hub(f"{repo_id}-lora")
    again = loader.from_pretrained(f"{repo_id}-lora", keep_all=True)
    assert all(map(torch.equal, answers(again), answers(model)))
    with pytest.raises(ValueError, match="is a PWL repository, and only the adapter"):
        model.push_to_hub(repo_id)
    assert Model.from_pretrained(repo_id).stage == 0


def test_an_adapter_for_blocks_that_are_not_resident_is_refused(adapted: tuple[Model, Path], load: Load) -> None:
    _, folder = adapted
    for loader in LOADERS:
        with pytest.raises(StageError, match=r"'base_model.model.teacher.*block 1 of the teacher.*keep_all=True"):
            loader.from_pretrained(folder)
    with pytest.raises(StageError, match=r"block 1 of the student"):
        Model.from_pretrained(folder, stage="teacher")
    model = load("vit", stage=2)
    expected, names = model(tiny_images("vit")).logits, list(model.state_dict())
    with pytest.raises(StageError, match="which is not resident"):
        model.load_adapter(str(folder))
    assert list(model.state_dict()) == names
    assert torch.equal(model(tiny_images("vit")).logits, expected)
    with pytest.raises(ValueError, match="stream=True does not go with an adapter"):
        Model.from_pretrained(folder, stream=True)


def test_an_adapter_of_resident_blocks_alone_needs_nothing_else(load: Load, tmp_path: Path) -> None:
    model = load("vit")
    plain = model(tiny_images("vit")).logits
    model.add_adapter(lora(OF_THE_STUDENT))
    expected = model(tiny_images("vit")).logits
    assert not torch.equal(expected, plain)
    model.save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path)
    assert torch.equal(again(tiny_images("vit")).logits, expected)


def test_an_adapter_is_never_released(load: Load) -> None:
    model = load("vit")
    model.add_adapter(lora(OF_THE_STUDENT))
    expected, names = model(tiny_images("vit")).logits, list(model.state_dict())
    for move in (model.load_next_stage, model.stream_stages, lambda: model.set_sources("STTT")):
        with pytest.raises(StageError, match=r"student block \d was changed .*\bq_proj\b.*would be lost"):
            move()
        assert (model.stage, list(model.state_dict())) == (0, names)
        assert model.stream is None
    assert torch.equal(model(tiny_images("vit")).logits, expected)


def test_an_adapter_that_comes_while_a_stream_runs_ends_it(load: Load) -> None:
    model = load("vit")

    def adapt(model: Model, stage: int) -> None:
        if stage == 1:
            get_peft_model(model, lora(r"student\.vit\.layers\.[12]\..*q_proj"))

    with pytest.raises(StageError, match="student block 2 was changed"), model.stream_stages(on_stage=adapt):
        pass
    assert model.stage == 1


def test_a_head_that_is_adapted_answers_at_once(load: Load) -> None:
    model = load("vit")
    plain = model(tiny_images("vit")).logits
    adapted = get_peft_model(model, lora(("classifier",)))
    expected = adapted(tiny_images("vit")).logits
    assert not torch.equal(expected, plain)
    assert torch.equal(adapted.eval()(tiny_images("vit")).logits, expected)
    torch.testing.assert_close(adapted.merge_and_unload()(tiny_images("vit")).logits, expected)


def test_an_adapter_of_peft_itself_is_no_part_of_the_repository(load: Load, hub: HubServer, tmp_path: Path) -> None:
    model = load("vit", keep_all=True)
    adapted = get_peft_model(model, lora())
    for save in (lambda: model.save_pretrained(tmp_path / "new"), lambda: model.push_to_hub("tester/nothing")):
        with pytest.raises(SaveError, match=r"not be saved whole: of the (student|teacher), it holds.*q_proj.*merge"):
            save()
    assert not (tmp_path / "new").exists()
    assert not hub.requests
    expected = answers(model)
    adapted.save_pretrained(tmp_path / "adapter")
    again = Model.from_pretrained(tmp_path / "adapter", keep_all=True)
    assert all(map(torch.equal, answers(again), expected))
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert all(map(torch.equal, answers(Model.from_pretrained(tmp_path / "merged", keep_all=True)), answers(merged)))


def test_only_the_adapter_of_a_model_that_is_saved_is_saved(load: Load, tmp_path: Path) -> None:
    joined = tiny_model("vit")
    joined.add_adapter(lora())
    with pytest.raises(SaveError, match="the model under it is in no repository"):
        joined.save_pretrained(tmp_path / "new")
    model = load("vit", keep_all=True)
    model.student.vit.layers[0].mlp.fc1.bias.data += 1
    model.add_adapter(lora())
    with pytest.raises(SaveError, match=r"student.vit.layers.0.mlp.fc1.bias was changed since it was loaded"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_network_with_an_adapter_is_refused_when_joining(tmp_path: Path, role: str) -> None:
    configs = dict(zip(("teacher", "student"), tiny_pair("vit"), strict=True))
    pair = {name: ViTForImageClassification(config) for name, config in configs.items()}
    pair[role].save_pretrained(tmp_path / "base")
    adapted = ViTForImageClassification.from_pretrained(tmp_path / "base")
    adapted.add_adapter(lora())
    adapted.save_pretrained(tmp_path / "adapter")
    for given in (adapted, tmp_path / "adapter"):
        with pytest.raises(ValueError, match=f"the {role} is not what its config describes.*q_proj.*merge_and_unload"):
            Model.from_teacher_student(**{**pair, role: given})


def test_weights_of_an_adapter_are_read_from_safetensors_alone(adapted: tuple[Model, Path], tmp_path: Path) -> None:
    _, folder = adapted
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    with pytest.raises(RepositoryError, match=r"has no file 'adapter_model.safetensors'"):
        Model.from_pretrained(folder, keep_all=True)
    weights.write_bytes(b"no tensors")
    with pytest.raises(RepositoryError, match="is not an adapter that PEFT can read"):
        Model.from_pretrained(folder, keep_all=True)
    save_file(tensors, weights)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(RepositoryError, match="names no model, base_model_name_or_path is None"):
        Model.from_pretrained(folder, keep_all=True)


def test_copies_of_a_wrapper_are_wrappers(load: Load) -> None:
    model = load("vit", stage=2)
    adapted = get_peft_model(model, lora())
    other = copy.deepcopy(adapted)
    assert type(other) is type(adapted)
    expected = adapted(tiny_images("vit")).logits
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(1)
    assert torch.equal(other(tiny_images("vit")).logits, expected)
    compiled = torch.compile(load("vit"), backend="eager")
    assert type(copy.deepcopy(compiled)) is type(compiled)


# --- What is trained besides, and what is in the way ----------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"bias": "all"}, {"bias": "lora_only"}, {"init_lora_weights": "pissa"}], ids=str
)
@torch.no_grad()
def test_all_that_an_adapter_trains_is_saved_and_loaded(load: Load, tmp_path: Path, options: dict) -> None:
    model = load("vit", keep_all=True)
    plain = answers(model)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **options))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    expected = answers(model)
    assert not torch.equal(expected[0], plain[0])
    model.save_pretrained(tmp_path)
    assert all(map(torch.equal, answers(Model.from_pretrained(tmp_path, keep_all=True)), expected))


def test_a_tensor_of_an_adapter_without_a_place_is_refused(adapted: tuple[Model, Path], load: Load) -> None:
    _, folder = adapted
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = min(tensors)
    save_file(tensors | {name.replace("lora_A", "lora_C"): tensors[name].clone()}, weights)
    model = load("vit", keep_all=True)
    expected, names, trained = answers(model), list(model.state_dict()), [p.requires_grad for p in model.parameters()]
    for put in (lambda: Model.from_pretrained(folder, keep_all=True), lambda: model.load_adapter(str(folder))):
        with pytest.raises(RepositoryError, match=r"the adapter holds '.*lora_C.*', for which the model has no place"):
            put()
    assert all(map(torch.equal, answers(model), expected))
    assert (list(model.state_dict()), [p.requires_grad for p in model.parameters()]) == (names, trained)


def test_an_adapter_is_not_saved_over_files_of_others(load: Load, tmp_path: Path) -> None:
    model = load("vit", keep_all=True)
    model.add_adapter(lora())
    names = ("adapter_model.safetensors", "adapter_config.json")
    for given in ({names[0]}, {names[1]}, set(names)):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name in given:
            (folder / name).write_text('"mine"')
        with pytest.raises(OverwriteError, match=r"holds .*adapter_.*overwrite=True"):
            model.save_pretrained(folder)
        assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(given, '"mine"')
        model.save_pretrained(folder, overwrite=True)
        model.save_pretrained(folder)  # an adapter takes the place of one
        assert all(map(torch.equal, answers(Model.from_pretrained(folder, keep_all=True)), answers(model)))


def test_an_adapter_is_not_pushed_over_files_of_others(hub: HubServer, repo_id: str, tmp_path: Path) -> None:
    tiny_model("vit").save_pretrained(tmp_path)
    model = Model.from_pretrained(tmp_path, keep_all=True)
    model.add_adapter(lora())
    api = HfApi()
    api.create_repo(repo_id)
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="adapter_model.safetensors", repo_id=repo_id)
    with pytest.raises(OverwriteError, match=f"{repo_id} holds adapter_model.safetensors.*overwrite=True"):
        model.push_to_hub(repo_id)
    assert Path(api.hf_hub_download(repo_id, "adapter_model.safetensors")).read_bytes() == b"mine"
    for option in ({"card_data": {"license": "mit"}}, {"inference_handler": True}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} does not apply to an adapter"):
            model.push_to_hub(repo_id, **option)
    for _ in range(2):
        model.push_to_hub(repo_id, overwrite=True)
    model.push_to_hub(repo_id)


def test_no_adapter_comes_while_a_stream_runs(load: Load) -> None:
    model, refused = load("vit"), []

    def adapt(model: Model, stage: int) -> None:
        go.wait(60)

    go = threading.Event()
    with model.stream_stages(on_stage=adapt):
        with pytest.raises(StageError, match="stages are being streamed") as refused:
            model.add_adapter(lora())
        go.set()
    assert refused
    assert model.stage == model.num_stages
    assert not any("lora" in name for name in model.state_dict())


def test_an_adapter_that_could_not_be_added_leaves_a_model_that_is_saved_whole(load: Load, tmp_path: Path) -> None:
    model = load("vit")
    with pytest.raises(ValueError, match=r"block 4 of the teacher is not resident"):
        _ = model.teacher, model.add_adapter(lora(("classifier",)))
    with pytest.raises(TypeError, match="PeftConfig"):
        model.add_adapter({"r": 2})
    model.save_pretrained(tmp_path)
    assert Model.from_pretrained(tmp_path).load_next_stage() == model.load_next_stage() == 1


def test_an_adapter_that_cannot_be_saved_is_warned_of_before_it_is_trained(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pwl_hf"):
        tiny_model("vit").add_adapter(lora())
    assert "the model is in no repository, so its adapter cannot be saved" in caplog.text


def test_embeddings_are_those_of_the_network_that_runs_the_first_block() -> None:
    model = tiny_model("vit")
    model.set_sources("STTT")
    assert model.get_input_embeddings() is model.student.get_input_embeddings()
    model.set_sources("TSSS")
    assert model.get_input_embeddings() is model.teacher.get_input_embeddings()
    model.add_tier()
    model.set_sources("QTTT")
    with pytest.raises(StageError, match="QTTT is in low precision"):
        model.get_input_embeddings()


@pytest.mark.parametrize("change", [lambda m: m.resize_token_embeddings(9), lambda m: m.set_input_embeddings(None)])
def test_embeddings_of_a_joined_model_are_not_exchanged(change: Callable[[Model], object]) -> None:
    with pytest.raises(ValueError, match="change those of both before they are joined"):
        change(tiny_model("vit"))


def test_an_adapter_learns_under_gradient_checkpointing() -> None:
    model = tiny_model("vit").train()
    model.set_sources("SSSS")
    model.gradient_checkpointing_enable()
    model.add_adapter(lora())
    model.enable_input_require_grads()
    model(tiny_images("vit"), labels=torch.tensor([0, 1])).loss.backward()
    learnt = [parameter.grad for name, parameter in model.named_parameters() if ".lora_" in name and "student" in name]
    assert learnt
    assert all(grad is not None and grad.abs().sum() > 0 for grad in learnt)
