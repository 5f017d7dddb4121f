"""What lies where in a saved repository, and that plain transformers reads its teacher."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, PreTrainedModel, ViTImageProcessor

from tests.repository.helpers import (
    INDEX,
    STUDENT,
    decoder,
    encoder,
    fingerprint_of,
    load,
    logits,
    read_json,
    run_python,
    shard,
    statistics,
    tree,
)
from tests.tiny import EACH_FAMILY, WITH_BATCH_NORM, tiny_model

MODELING = Path(__file__).resolve().parents[2] / "modeling"
MASKS = ("TSSS", "TTSS", "TTTS", "STST")


def plainly_saved(network: PreTrainedModel, folder: Path) -> dict[str, torch.Tensor]:
    PreTrainedModel.save_pretrained(network, folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_repository_holds_exactly_the_files_of_the_format(saved, family):
    expected = {"config.json", INDEX, STUDENT, "teacher/config.json", "teacher/model.safetensors.index.json"}
    if family == "pwl_vgg":
        expected |= {"modeling_vgg.py"}  # the teacher's own, which transformers lacks
    expected |= {shard(k) for k in (1, 2, 3, 4)}
    expected |= {encoder(i) for i in (1, 2, 3)} | {decoder(i) for i in (1, 2, 3)}
    if family in WITH_BATCH_NORM:
        expected |= {statistics(mask) for mask in MASKS}
    assert set(tree(saved(family))) == expected


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_root_file_is_what_transformers_saves_for_the_student_with_a_prefix(saved, family, tmp_path):
    plain = plainly_saved(tiny_model(family).student, tmp_path)
    stored = load_file(saved(family) / STUDENT)
    assert stored.keys() == {f"student.{name}" for name in plain}
    assert all(torch.equal(stored[f"student.{name}"], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_teacher_shards_hold_each_tensor_of_a_plain_checkpoint_once(saved, family, tmp_path):
    plain = plainly_saved(tiny_model(family).teacher, tmp_path)
    index = read_json(saved(family) / "teacher" / "model.safetensors.index.json")
    shards = {k: load_file(saved(family) / shard(k)) for k in (1, 2, 3, 4)}
    assert sum(map(len, shards.values())) == len(plain)
    assert index["weight_map"] == {name: Path(shard(k)).name for k, found in shards.items() for name in found}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in plain.values())
    together = {name: tensor for found in shards.values() for name, tensor in found.items()}
    assert together.keys() == plain.keys()
    assert all(torch.equal(together[name], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_embedder_is_in_first_shard_and_head_in_last(saved, family):
    first, last = load_file(saved(family) / shard(1)), load_file(saved(family) / shard(4))
    assert {"classifier.weight", "classifier.bias"} <= {name.replace("classifier.1.", "classifier.") for name in last}
    # Swin has `layers.2.downsample` inside its layers; everything else that is no layer is embedder or head.
    inside = (".layer", "stages", "layers.")
    assert all(any(part in name for part in inside) or "embed" in name for name in first)
    for k in (2, 3):
        assert all(any(part in name for part in inside) for name in load_file(saved(family) / shard(k)))
    if family != "pwl_vgg":
        assert any("embed" in name for name in first)


def test_teacher_index_of_a_plain_save_has_the_same_fields(saved, tmp_path):
    PreTrainedModel.save_pretrained(tiny_model("vit").teacher, tmp_path, max_shard_size="20KB")
    plain = read_json(tmp_path / "model.safetensors.index.json")
    ours = read_json(saved("vit") / "teacher" / "model.safetensors.index.json")
    assert ours.keys() == plain.keys()
    assert ours["metadata"] == plain["metadata"]
    assert ours["weight_map"].keys() == plain["weight_map"].keys()


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_teacher_config_is_the_plain_one(saved, family, tmp_path):
    teacher = tiny_model(family).teacher
    PreTrainedModel.save_pretrained(teacher, tmp_path)
    plain, ours = read_json(tmp_path / "config.json"), read_json(saved(family) / "teacher" / "config.json")
    assert ours["architectures"] == [type(teacher).__name__]
    allowed = {"auto_map"} if family == "pwl_vgg" else set()
    assert ours.keys() - plain.keys() <= allowed
    assert {key: ours[key] for key in plain} == plain


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_safetensors_headers_are_transformers_own(saved, family):
    for path in tree(saved(family)):
        if path.endswith(".safetensors"):
            with safe_open(saved(family) / path, framework="pt") as file:
                assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_manifest_describes_every_weight_file(saved, family):
    folder, model = saved(family), tiny_model(family)
    index = read_json(folder / INDEX)
    assert list(index)[:3] == ["format_version", "min_reader", "fingerprint"]
    assert (index["format_version"], index["min_reader"], index["dtype"]) == (1, 1, "float32")
    assert index["fingerprint"] == fingerprint_of(index) == read_json(folder / "config.json")["fingerprint"]
    entries = [e for stage in index["stages"] for e in stage["files"]] + index["other_files"]
    assert {e["path"] for e in entries} == {path for path in tree(folder) if path.endswith(".safetensors")}
    for entry in entries:
        content = (folder / entry["path"]).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    count = {e["path"]: e["parameters"] for e in entries}
    assert count[STUDENT] == model.student.num_parameters()
    assert sum(count[shard(k)] for k in (1, 2, 3, 4)) == model.teacher.num_parameters()
    assert count[encoder(1)] == sum(p.numel() for p in model.encoders["1"].parameters())
    assert sum(count.values()) == model.num_parameters()


def test_manifest_lists_at_each_stage_what_it_adds(saved):
    index = read_json(saved("resnet") / INDEX)
    found = [sorted(e["path"] for e in stage["files"]) for stage in index["stages"]]
    assert found == [
        [STUDENT],
        [encoder(1), statistics("TSSS"), shard(1)],
        [encoder(2), statistics("TTSS"), shard(2)],
        [encoder(3), statistics("TTTS"), shard(3)],
        [shard(4)],
    ]
    others = sorted(e["path"] for e in index["other_files"])
    assert others == [decoder(1), decoder(2), decoder(3), statistics("STST")]


def test_statistics_files_are_small(saved):
    for mask in MASKS:
        path = saved("resnet") / statistics(mask)
        assert path.stat().st_size < 16_000
        names = load_file(path).keys()
        assert all(name.endswith((".running_mean", ".running_var")) for name in names)


def test_one_stage_repository_has_no_converters(tmp_path):
    tiny_model("vit", num_stages=1).save_pretrained(tmp_path)
    paths = {path for path in tree(tmp_path) if path.endswith(".safetensors")}
    assert paths == {STUDENT, shard(1, 1)}
    model = load(tmp_path)
    assert model.load_next_stage() == 1
    assert torch.equal(logits(model), logits(load(tmp_path, stage="teacher")))


def test_config_names_nothing_of_this_machine(saved):
    folder = saved("vit")
    for path, content in tree(folder).items():
        if path.endswith(".json"):
            assert str(folder).encode() not in content
            assert b"_name_or_path" not in content


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_teacher_folder_loads_as_the_plain_teacher(saved, family):
    plain, info = AutoModelForImageClassification.from_pretrained(saved(family) / "teacher", output_loading_info=True)
    assert not any(info.values())
    assert type(plain) is type(tiny_model(family).teacher)
    assert torch.equal(logits(plain), logits(load(saved(family), stage="teacher")))


def test_teacher_loads_in_plain_transformers_without_the_package(saved, hub, repo_id, fresh_env, tmp_path):
    folder = tmp_path / "with-processor"
    model = load(saved("vit"))
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    model.save_pretrained(folder)
    # The processor was there before: a second save from the folder itself puts it beside the teacher too.
    model = load(folder)
    model.save_pretrained(folder)
    assert (folder / "teacher" / "preprocessor_config.json").exists()
    assert not [path for path in tree(folder / "teacher") if not path.endswith((".safetensors", ".json"))]
    hub.store.create_repo(repo_id)
    hub.store.commit(repo_id, {path: content for path, content in tree(folder).items() if not path.endswith(".py")})
    images = {family: saved(family) for family in ("resnet", "swin")}
    code = f"""
import json, torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

sources = {{"vit": ({repo_id!r}, "teacher")}}
sources |= {{f: (p, "teacher") for f, p in {json.dumps({f: str(p) for f, p in images.items()})}.items()}}
found = {{}}
for family, (source, subfolder) in sources.items():
    model, info = AutoModelForImageClassification.from_pretrained(
        source, subfolder=subfolder, output_loading_info=True
    )
    assert not any(info.values()), info
    assert type(model).__module__.startswith("transformers.models."), type(model)
    size = {{"vit": 16, "resnet": 64, "swin": 32}}[family]
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found[family] = model(images).logits.tolist()
classify = pipeline("image-classification", model={str(folder / "teacher")!r})
found["pipeline"] = [answer["label"] for answer in classify(Image.new("RGB", (20, 20), "red"))]
try:
    import pwl_hf
except ModuleNotFoundError:
    print(json.dumps(found))
"""
    found = json.loads(run_python(code, fresh_env, tmp_path, without_package=True))
    assert sorted(found["pipeline"]) == ["ant", "bee", "cat", "dog", "elk"]
    for family in ("vit", "resnet", "swin"):
        expected = logits(load(saved(family), stage="teacher"))
        torch.testing.assert_close(torch.tensor(found[family]), expected)
