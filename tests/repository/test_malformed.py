"""Repositories that cannot be trusted are refused by file and tensor, and the model stays as it was."""

from __future__ import annotations

import gc
import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from pwl_hf import PWLForImageClassification, RepositoryError
from tests.repository.helpers import (
    INDEX,
    STUDENT,
    decoder,
    edit_bytes,
    edit_json,
    edit_tensors,
    encoder,
    load,
    logits,
    read_json,
    refresh,
    shard,
    statistics,
)
from tests.tiny import tiny_images, tiny_model


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def with_header(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + size :]

    return edit


def first_tensor(header: dict) -> dict:
    return next(value for name, value in header.items() if name != "__metadata__")


# Spoiled files of the right hash: name, what is done to the bytes, what the error says.
SPOILED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "is not a safetensors file"),
    "half a length": (lambda content: content[:4], "is not a safetensors file"),
    "cut in the header": (lambda content: content[:100], "is not a safetensors file"),
    "cut in the data": (lambda content: content[:-4], "is not a safetensors file"),
    "longer than it says": (lambda content: content + b"\0" * 8, "is not a safetensors file"),
    "no header": (lambda content: b"\0" * len(content), "is not a safetensors file"),
    "a pickle": (lambda content: b"\x80\x04." + content[3:], "is not a safetensors file"),
    "a huge header": (lambda content: struct.pack("<Q", 2**60) + content[8:], "is not a safetensors file"),
    "header of no JSON": (lambda content: content[:8] + b"x" + content[9:], "is not a safetensors file"),
    "offsets beyond the end": (
        with_header(lambda header: first_tensor(header).update(data_offsets=[0, 10**9])),
        "is not a safetensors file",
    ),
    "overlapping offsets": (
        with_header(lambda header: [t.update(data_offsets=[0, 4]) for n, t in header.items() if n != "__metadata__"]),
        "is not a safetensors file",
    ),
    "unknown dtype": (with_header(lambda header: first_tensor(header).update(dtype="Q7")), "is not a safetensors file"),
    "names of another file": (
        with_header(lambda header: header.update(stranger=header.pop(next(n for n in header if n != "__metadata__")))),
        "lacks tensor '.*'",
    ),
}


def first_name(tensors: dict[str, torch.Tensor]) -> str:
    return sorted(tensors)[0]


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[first_name(tensors)]


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["stranger"] = torch.zeros(3)


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    name = first_name(tensors)
    tensors[name] = torch.zeros(7, *tensors[name].shape)


def retype(tensors: dict[str, torch.Tensor]) -> None:
    name = first_name(tensors)
    tensors[name] = tensors[name].to(torch.float64)


# Well-formed files with other tensors, of the right hash.
WRONG: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "missing tensor": (drop, "lacks tensor '{name}'"),
    "extra tensor": (add, "holds tensor 'stranger', which does not belong there"),
    "wrong shape": (reshape, r"tensor '{name}' has shape \[7, .*\], expected \["),
    "wrong dtype": (retype, "tensor '{name}' has dtype F64, expected F32"),
}


def refuses_to_load(folder: Path, match: str, **kwargs) -> None:
    with pytest.raises(RepositoryError, match=match) as refused:
        load(folder, **kwargs)
    assert str(folder) in str(refused.value)


def stays_at(model: PWLForImageClassification, folder: Path, match: str, move: Callable[[], object]) -> None:
    """A move is refused, and the model is what it was: stage, answer, names, sizes, and it can still be moved."""
    stage, sources, before = model.stage, model.sources, logits(model)
    names, resident = list(model.state_dict()), model.parts.resident()
    with pytest.raises(RepositoryError, match=match) as refused:
        move()
    assert str(folder) in str(refused.value)
    assert (model.stage, model.sources, model.parts.resident()) == (stage, sources, resident)
    assert list(model.state_dict()) == names
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("spoil", SPOILED)
def test_spoiled_student_is_refused_on_loading(copied, spoil):
    folder = copied("vit")
    change, match = SPOILED[spoil]
    edit_bytes(folder, STUDENT, change)
    refuses_to_load(folder, f"'{STUDENT}'.*{match}")


@pytest.mark.parametrize("spoil", SPOILED)
@pytest.mark.parametrize("path", [shard(2), encoder(2)])
def test_spoiled_file_of_the_next_stage_is_refused_and_the_model_stays(copied, spoil, path):
    folder = copied("vit")
    change, match = SPOILED[spoil]
    edit_bytes(folder, path, change)
    model = load(folder, stage=1)
    stays_at(model, folder, f"'{path}'.*{match}", model.load_next_stage)
    refuses_to_load(folder, f"'{path}'.*{match}", stage=2)
    model.set_stage(0)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("path", [STUDENT, shard(1), shard(4), encoder(1), statistics("TSSS")])
def test_file_with_other_tensors_is_refused_on_loading_and_on_growing(copied, wrong, path):
    folder = copied("resnet")
    change, match = WRONG[wrong]
    name = first_name(load_file(folder / path))
    match = f"'{path}'.*" + match.format(name=name)
    if path == STUDENT:
        # The student is read from the same file whichever of its blocks is wanted.
        model = load(folder, stage="teacher")
        edit_tensors(folder, path, change)
        refuses_to_load(folder, match)
        refuses_to_load(folder, match, stage=3)
        stays_at(model, folder, f"'{path}'", lambda: model.set_stage(1))
        return
    edit_tensors(folder, path, change)
    start = 3 if path == shard(4) else 0
    refuses_to_load(folder, match, stage=start + 1)
    model = load(folder, stage=start)
    stays_at(model, folder, match, model.load_next_stage)


@pytest.mark.parametrize("path", [STUDENT, shard(2), encoder(2), statistics("TTSS")])
def test_one_flipped_bit_is_refused_by_hash(copied, path):
    folder = copied("resnet")
    edit_bytes(folder, path, flip, honest=False)
    match = f"'{path}' has sha256 .*pwl_index.json says .*corrupt"
    if path == STUDENT:
        refuses_to_load(folder, match)
        return
    model = load(folder, stage=1)
    stays_at(model, folder, match, model.load_next_stage)
    refuses_to_load(folder, match, stage=2)
    # Repaired, it goes on.
    edit_bytes(folder, path, flip, honest=False)
    assert model.load_next_stage() == 2


def test_truncated_file_is_refused_by_size(copied):
    folder = copied("vit")
    edit_bytes(folder, shard(1), lambda content: content[:-1], honest=False)
    model = load(folder)
    stays_at(model, folder, f"'{shard(1)}' has .* bytes, pwl_index.json says .*truncated", model.load_next_stage)


@pytest.mark.parametrize("path", [STUDENT, shard(1), encoder(1), statistics("TSSS"), "config.json"])
def test_missing_file_is_refused_by_name(copied, path):
    folder = copied("resnet")
    model = load(folder)
    (folder / path).unlink()
    if path in (STUDENT, "config.json"):
        refuses_to_load(folder, f"has no file '{path}'")
    else:
        stays_at(model, folder, f"has no file '{path}'", model.load_next_stage)


@pytest.mark.parametrize("path", [decoder(1), statistics("STST")])
def test_spoiled_file_of_other_masks_does_not_matter_to_prefix_stages(copied, path):
    folder = copied("resnet")
    expected = logits(load(folder, stage="teacher"))
    edit_tensors(folder, path, add)
    model = load(folder)
    model.set_stage("teacher")
    assert torch.equal(logits(model), expected)
    model.set_stage(1)
    stays_at(model, folder, f"'{path}' holds tensor 'stranger'", lambda: model.set_sources("STST"))
    refuses_to_load(folder, f"'{path}' holds tensor 'stranger'", keep_all=True)


def test_second_of_two_files_being_wrong_attaches_neither(copied):
    folder = copied("vit")
    edit_tensors(folder, shard(4), drop)
    model = load(folder)
    stays_at(model, folder, shard(4), lambda: model.set_stage("teacher"))
    assert not any(name.startswith("teacher.") for name, _ in model.named_parameters())


def set_in(*keys: str | int, value: object) -> Callable[[dict], None]:
    def change(data: dict) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (set_in("num_stages", value=3), "teacher_cuts must have one cut a block, 3 in all"),
        (set_in("num_stages", value=0), "num_blocks must be at least 1"),
        (set_in("num_stages", value="four"), "config.json is not a valid config"),
        (set_in("teacher_cuts", value=[2, 4, 6, 9]), "teacher_cuts must cover every unit"),
        (set_in("teacher_cuts", value=[4, 2, 6, 8]), "teacher_cuts must be positive and increasing"),
        (set_in("student_cuts", value=[1, 2, 4]), "student_cuts must have one cut a block"),
        (set_in("teacher_config", value=7), "config.json is not a valid config"),
        (set_in("teacher_config", "model_type", value="resnet"), "must be of one family|not a valid config"),
        (set_in("teacher_config", "model_type", value="bert"), "cannot be cut into blocks|not a valid config"),
        (set_in("teacher_config", "model_type", value="nothing"), "config.json is not a valid config"),
        (set_in("student_config", "id2label", value={"0": "one"}), "must have the same labels"),
        (set_in("teacher_config", "image_size", value=32), "cannot be joined"),
        (set_in("id2label", value=[]), "config.json is not a valid config"),
        (set_in("dtype", value="nothing"), "config.json is not a valid config"),
        (set_in("model_type", value="vit"), "config.json has model_type 'vit', expected 'pwl'"),
        (set_in("fingerprint", value="0" * 64), "config.json is of fingerprint 0000.*of different saves"),
        (set_in("fingerprint", value=7), "fingerprint|not a valid config"),
        (set_in("student_config", "hidden_size", value=32), f"'{STUDENT}': tensor '.*' has shape"),
        (set_in("student_config", "num_hidden_layers", value=5), "student_cuts must cover every unit"),
        (lambda config: [], r"config.json has model_type \[\], expected 'pwl'"),
        (lambda config: "pwl", "config.json has model_type 'pwl', expected 'pwl'"),
    ],
)  # fmt: skip
def test_config_that_disagrees_is_refused(copied, change, match):
    folder = copied("vit")
    edit_json(folder / "config.json", change)
    refuses_to_load(folder, match)


@pytest.mark.parametrize(
    ("family", "keys", "value", "match"),
    [
        ("vit", ("teacher_config", "num_hidden_layers"), 10**9, "teacher_config is of 1000000000 units"),
        ("vit", ("student_config", "num_hidden_layers"), 2049, "student_config is of 2049 units"),
        # Its config makes a name for each layer.
        ("dinov2", ("student_config", "num_hidden_layers"), 10**9, "student_config is of 1000000000 units"),
        ("resnet", ("teacher_config", "depths", 2), 10**9, "teacher_config is of 1000000000 units"),
        ("resnet", ("teacher_config", "depths"), [600] * 4, "(teacher_cuts|a network) is of 2400 units"),
        ("vit", ("num_stages",), 10**9, "num_blocks must be at most 256, got 1000000000"),
        ("vit", ("teacher_config", "num_labels"), 10**9, "teacher_config has num_labels 1000000000"),
        ("vit", ("num_labels",), 10**9, "config has num_labels 1000000000"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("with_cuts", [True, False])
def test_config_that_claims_more_than_there_can_be_is_refused_at_once(copied, family, keys, value, match, with_cuts):
    folder = copied(family)
    edit_json(folder / "config.json", set_in(*keys, value=value))
    if not with_cuts:
        edit_json(folder / "config.json", set_in("teacher_cuts", value=None))
        edit_json(folder / "config.json", set_in("student_cuts", value=None))
    started = time.monotonic()
    refuses_to_load(folder, match)
    with pytest.raises(Exception, match=match):
        AutoConfig.from_pretrained(folder)
    # Not as long as a billion of anything takes.
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("text", ["", "{", "x", "[" * 100_000, "\x00", '{"model_type": "pwl"'])
def test_config_that_is_no_json_is_refused(copied, text):
    folder = copied("vit")
    (folder / "config.json").write_text(text)
    # Other tests' garbage is not to be taken out where there is no stack left to do it.
    gc.collect()
    refuses_to_load(folder, "config.json is not JSON")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (set_in("teacher_cuts", value=[1, 4, 6, 8]), f"'{shard(1)}' holds tensor 'vit.encoder.layer.1"),
        (set_in("teacher_config", "hidden_size", value=48), f"'{encoder(1)}': tensor 'weight' has shape"),
    ],
)
def test_config_that_disagrees_about_the_teacher_is_refused_when_it_grows(copied, change, match):
    """Stage 0 takes no part of the teacher, and does not look at it."""
    folder = copied("vit")
    edit_json(folder / "config.json", change)
    model = load(folder)
    stays_at(model, folder, match, model.load_next_stage)


def test_manifest_of_another_number_of_stages_is_refused(copied, tmp_path):
    folder = copied("vit")
    tiny_model("vit", num_stages=2).save_pretrained(tmp_path / "two")
    shutil.copy(tmp_path / "two" / INDEX, folder / INDEX)
    edit_json(folder / "config.json", lambda config: config.update(fingerprint=None))
    refuses_to_load(folder, "pwl_index.json has 2 blocks, config.json has 4")


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "", "load", "Float32"])
def test_manifest_of_an_unknown_dtype_is_refused(copied, dtype):
    folder = copied("vit")
    edit_json(folder / INDEX, lambda index: index.update(dtype=dtype))
    refuses_to_load(folder, "pwl_index.json has dtype .*expected one of float16, bfloat16, float32, float64")


def test_manifest_of_another_dtype_than_the_files_is_refused(copied):
    folder = copied("vit")
    edit_json(folder / INDEX, lambda index: index.update(dtype="bfloat16"))
    refuses_to_load(folder, f"'{STUDENT}': tensor '.*' has dtype F32, expected BF16")


def test_manifest_and_config_of_different_saves_are_refused(copied):
    folder = copied("vit")
    edit_bytes(folder, shard(4), flip, honest=True)
    edit_json(folder / "config.json", lambda config: config.update(fingerprint="f" * 64))
    refuses_to_load(folder, "of different saves; save or download the repository again")


def test_config_without_a_fingerprint_is_read(copied):
    folder = copied("vit")
    edit_json(folder / "config.json", lambda config: {k: v for k, v in config.items() if k != "fingerprint"})
    assert load(folder).stage == 0


def test_folder_that_is_no_pwl_repository_is_refused(saved, tmp_path):
    refuses_to_load(tmp_path, "is not a PWL repository: it has no pwl_index.json")
    refuses_to_load(saved("vit") / "teacher", "is not a PWL repository: it has no pwl_index.json")
    (tmp_path / INDEX).write_text("{}")
    refuses_to_load(tmp_path, "pwl_index.json: min_reader must be int, got None")


@pytest.mark.parametrize("name", ["/no/such/folder", "./nor/this", "..", "a/b/c"])
def test_name_that_is_neither_folder_nor_hub_id_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = str(tmp_path / "file") if name == ".." else name
    Path(tmp_path / "file").write_text("")
    with pytest.raises(RepositoryError, match="is neither a folder nor a Hub id"):
        load(name)


def test_manifest_with_a_bad_path_is_refused_before_any_file_is_read(copied, monkeypatch):
    folder = copied("vit")
    secret = folder.parent / "secret.safetensors"
    save_file({"x": torch.zeros(1)}, secret)

    def escape(index: dict) -> None:
        index["stages"][1]["files"][0]["path"] = "../secret.safetensors"

    edit_json(folder / INDEX, escape)
    (folder / "config.json").unlink()
    (folder / STUDENT).unlink()
    refuses_to_load(folder, r"lists the file '../secret.safetensors': it must be a relative path")


def test_exchanged_statistics_are_refused(copied):
    """The files of two masks exchanged, each with a right hash."""
    folder = copied("resnet")
    one, other = (folder / statistics(mask) for mask in ("TSSS", "TTSS"))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    refresh(folder)
    model = load(folder)
    stays_at(model, folder, f"'{statistics('TSSS')}' lacks tensor", model.load_next_stage)


def test_exchanged_shards_are_refused(copied):
    folder = copied("vit")
    one, other = folder / shard(1), folder / shard(2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    model = load(folder)
    stays_at(model, folder, f"'{shard(1)}' has", model.load_next_stage)
    refresh(folder)
    model = load(folder)
    stays_at(model, folder, f"'{shard(1)}' lacks tensor", model.load_next_stage)


def test_refused_move_keeps_a_model_that_trains_training(copied):
    folder = copied("resnet")
    edit_tensors(folder, shard(1), drop)
    model = load(folder).train()
    with pytest.raises(RepositoryError, match=shard(1)):
        model.load_next_stage()
    assert model.training
    assert model.student.training
    model(tiny_images("resnet", 4), labels=torch.tensor([0, 1, 2, 3])).loss.backward()


def test_edit_helpers_leave_a_loadable_repository(copied):
    """The control: a file rewritten with the same tensors, and hashes to match, is accepted."""
    folder = copied("resnet")
    for path in (STUDENT, shard(1), encoder(1), statistics("TSSS")):
        edit_tensors(folder, path, lambda tensors: None)
    assert read_json(folder / INDEX)["fingerprint"] == read_json(folder / "config.json")["fingerprint"]
    assert load(folder, stage=1).stage == 1
