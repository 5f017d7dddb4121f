"""What is wrong is refused, and nothing is written; what cannot be exported is refused before anything slow."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import sys
from collections.abc import Callable

import onnx
import pytest
import torch
from transformers import ResNetConfig

from pwl_hf import OverwriteError, PWLForImageClassification, SaveError
from pwl_hf.exporting import export_repository
from pwl_hf.modeling.exporting import exporting, graphs, proving
from pwl_hf.modeling.graphs.index import INDEX_FILE
from pwl_hf.modeling.publishing import saving
from pwl_hf.modeling.publishing.push import Target
from pwl_hf.modeling.publishing.saving import write_attachments
from pwl_hf.modeling.repository.source import Repository
from tests.exporting.helpers import assert_equals_torch, read_index
from tests.exporting.odd_net import odd_images, odd_model
from tests.repository.helpers import load, logits, tree

pytestmark = pytest.mark.usefixtures("odd_net")


@pytest.fixture
def never(monkeypatch):
    """Nothing may be traced."""

    def trace(*_):
        raise AssertionError("it was traced")

    monkeypatch.setattr(graphs, "trace", trace)


# --- What was exported wrongly ---------------------------------------------------------------------------------------


def _edited(edit: Callable[[str, onnx.ModelProto], None]) -> Callable[..., onnx.ModelProto]:
    real = graphs.chain

    def chain(pieces, inputs, **options):
        model = real(pieces, inputs, **options)
        kind = "whole" if options["folder"] else options["output"]
        edit(kind, model)
        return model

    return chain


def _external(model, suffix):
    return next(t for t in model.graph.initializer if t.external_data and t.name.endswith(suffix))


def _swap_places(kind, model):
    one, other = (_external(model, suffix) for suffix in ("norm.weight", "norm.bias"))
    one.external_data[1].value, other.external_data[1].value = (
        other.external_data[1].value,
        one.external_data[1].value,
    )


def _shift(kind, model):
    tensor = _external(model, "linear.bias")
    tensor.external_data[1].value = str(int(tensor.external_data[1].value) + 4)


def _shorten(kind, model):
    _external(model, "linear.bias").external_data[2].value = "28"


def _lead_out(kind, model):
    _external(model, "linear.bias").external_data[0].value = "../model.safetensors"


def _retype(kind, model):
    _external(model, "linear.bias").data_type = onnx.TensorProto.INT32


def _swap_names(kind, model):
    names = {t.name for t in model.graph.initializer if t.name.endswith(("norm.weight", "norm.bias"))}
    other = {name: name.replace("weight", "tmp").replace("bias", "weight").replace("tmp", "bias") for name in names}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = other.get(name, name)


def _flip_a_bit(kind, model):
    """The epsilon of a normalisation, in one block's graph alone."""
    if kind != "features":
        return
    node = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    attribute = next(a for a in node.attribute if a.name == "epsilon")
    attribute.f *= 3


BROKEN = {
    "two weights' places are swapped": (_swap_places, "looks for"),
    "a weight is looked for one number further on": (_shift, "looks for"),
    "a weight is cut short": (_shorten, None),
    "a location leads out": (_lead_out, "looks for"),
    "a weight is of another dtype": (_retype, "looks for"),
    "two weights are swapped": (_swap_names, "differ from torch by"),
    "a constant is another in one block": (_flip_a_bit, "differs from teacher/model.onnx by"),
}


@pytest.mark.parametrize(("edit", "message"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("had_graphs", [False, True])
def test_a_broken_export_is_refused_and_nothing_is_written(folder, monkeypatch, edit, message, had_graphs):
    if had_graphs:
        load(folder).export(folder)
    before = tree(folder)
    monkeypatch.setattr(graphs, "chain", _edited(edit))
    with pytest.raises(SaveError, match=message or "nothing was written") as caught:
        load(folder).export(folder)
    assert "nothing was written" in str(caught.value)
    assert tree(folder) == before
    with pytest.raises(SaveError, match="nothing was written"):
        export_repository(str(folder), target=Target(str(folder)))
    assert tree(folder) == before


def test_a_weight_that_is_taken_for_another_is_refused(folder, monkeypatch):
    real = graphs._stored_tensors

    def swapped(*arguments):
        found = real(*arguments)
        one, other = (
            next(k for k, s in found.items() if s.name.endswith(f"layers.0.norm.{leaf}")) for leaf in ("weight", "bias")
        )
        found[one], found[other] = found[other], found[one]
        return found

    before = tree(folder)
    monkeypatch.setattr(graphs, "_stored_tensors", swapped)
    with pytest.raises(SaveError, match="differ from torch by"):
        load(folder).export(folder)
    assert tree(folder) == before


def test_not_a_number_in_one_sample_of_several_is_a_difference(folder, monkeypatch):
    real = proving.run_chain

    def poisoned(sessions, inputs):
        found = real(sessions, inputs)
        found[1:, 0] = float("nan")
        return found

    monkeypatch.setattr(proving, "run_chain", poisoned)
    with pytest.raises(SaveError, match="differ from torch by nan"):
        load(folder).export(folder)


def test_a_layer_that_cannot_be_traced_is_named(folder, monkeypatch):
    def fail(piece, *_):
        if piece.kind[0] == "head":
            raise RuntimeError("no such operator")
        return real(piece, *_)

    before, real = tree(folder), graphs.trace
    monkeypatch.setattr(graphs, "trace", fail)
    with pytest.raises(SaveError, match=r"block 2 of TT \(head\) cannot be exported: RuntimeError: no such operator"):
        load(folder).export(folder)
    assert tree(folder) == before


def test_graphs_of_weights_that_changed_meanwhile_are_not_attached(folder, monkeypatch):
    real = exporting.prove

    def meanwhile(*arguments):
        found = real(*arguments)
        model = load(folder, keep_all=True)
        with torch.no_grad():
            model.student.classifier.bias.add_(1)
        model.save_pretrained(folder)
        return found

    monkeypatch.setattr(exporting, "prove", meanwhile)
    with pytest.raises(SaveError, match="got other weights meanwhile"):
        load(folder).export(folder)
    assert not list(folder.rglob("*.onnx"))


def test_a_killed_export_leaves_what_loads_and_the_next_one_mends(folder, tmp_path):
    odd_model().export(tmp_path / "whole")
    whole = tree(tmp_path / "whole")
    files = {a.path: whole[a.path] for a in Repository.open(tmp_path / "whole").manifest().attachments}
    expected = logits_of(folder)
    for count in range(len(files) + 1):
        pid = os.fork()
        if pid == 0:  # killed before the file of this number
            try:
                _kill_at(count)
                write_attachments(folder, files)
            finally:
                os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        assert logits_of(folder) == expected
    write_attachments(folder, files)
    assert tree(folder) == whole


def _kill_at(count: int) -> None:
    written = []

    def dying(real):
        def write(target, content):
            if len(written) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            written.append(target)
            real(target, content)

        return write

    saving.write_bytes, saving.write_text = dying(saving.write_bytes), dying(saving.write_text)


def logits_of(folder):
    with torch.no_grad():
        return [load(folder, stage=stage)(odd_images()).logits.tolist() for stage in range(3)]


# --- What cannot be exported -----------------------------------------------------------------------------------------


def test_a_model_with_an_adapter_is_refused_before_it_is_saved(tmp_path, never):
    from peft import LoraConfig

    model = odd_model()
    model.add_adapter(LoraConfig(target_modules=["linear"], r=2))
    with pytest.raises(SaveError, match="a model with an adapter is not exported: merge it first"):
        model.export(tmp_path / "adapted")
    assert not (tmp_path / "adapted").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float32}, "loaded whole"),
        ({"keep_all": True, "dtype": torch.bfloat16}, "bfloat16"),
    ],
)
def test_only_a_whole_model_in_float32_is_exported(folder, never, options, message):
    model = load(folder, **options)
    with pytest.raises(SaveError, match=message):
        exporting.export_onnx(model.parts, "pixel_values")


@pytest.mark.parametrize("absent", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra_nothing_is_saved_and_it_is_named(tmp_path, monkeypatch, run, folder, absent):
    model, before = odd_model(), tree(folder)
    for name in list(sys.modules):
        if name.split(".")[0] == absent or name.startswith(("pwl_hf.modeling.exporting.", "pwl_hf.exporting")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ImportError, match=rf'export needs {absent}, .*pip install "pwl-hf\[onnx\]"') as caught:
        model.export(tmp_path / "out")
    assert caught.value.name.startswith(absent)
    assert not (tmp_path / "out").exists()
    code, _, err = run("export", folder)
    assert code == 1
    assert err == f'pwl-hf: export needs {absent}, which is not installed: pip install "pwl-hf[onnx]"\n'
    assert tree(folder) == before


def test_the_extra_brings_what_is_imported():
    needed = [r for r in importlib.metadata.requires("pwl-hf") or () if 'extra == "onnx"' in r]
    assert {"onnx", "onnxscript"} <= {r.split(">")[0].split(";")[0].strip() for r in needed}


# --- The size of the images ------------------------------------------------------------------------------------------


def shape_of(config, processor, image_size=None):
    # A type that has no size of images by itself.
    config = ResNetConfig(**({"image_size": config} if config else {}))
    return exporting._image_shape(config, processor, image_size)


@pytest.mark.parametrize(
    ("config", "processor", "image_size", "expected"),
    [
        (8, None, None, (8, 8)),
        ([8, 12], None, None, (8, 12)),
        (8, {"size": 16}, None, (8, 8)),
        (8, {"size": 16}, 12, (12, 12)),
        (None, {"size": 16}, None, (16, 16)),
        (None, {"size": {"height": 8, "width": 12}}, None, (8, 12)),
        (None, {"size": {"shortest_edge": 16}}, None, (16, 16)),
        (None, {"size": {"shortest_edge": 16}, "crop_size": 12}, None, (16, 16)),
        (None, {"size": {"shortest_edge": 16}, "do_center_crop": True, "crop_size": 12}, None, (12, 12)),
        (
            None,
            {"size": {"shortest_edge": 16}, "do_center_crop": True, "crop_size": {"height": 8, "width": 4}},
            None,
            (8, 4),
        ),
        (None, None, 4, (4, 4)),
    ],
)
def test_size_is_what_the_argument_the_config_or_the_processor_says(config, processor, image_size, expected):
    assert shape_of(config, processor, image_size) == (3, *expected)


@pytest.mark.parametrize(
    "processor",
    [
        None,
        {},
        {"size": None},
        {"size": {"longest_edge": 16}},
        {"size": {"height": 16}},
        {"size": {"shortest_edge": None}},
        {"size": "16"},
        {"size": [16]},
        {"size": True},
        {"size": 0},
        {"size": -16},
        {"size": 16.0},
        {"size": {"height": 16, "width": "16"}},
        {"do_center_crop": True, "size": 16},
    ],
)
def test_size_that_is_told_nowhere_is_asked_for(processor):
    with pytest.raises(ValueError, match=r"says how large the images are: give image_size \(--image-size\)"):
        shape_of(None, processor)


@pytest.mark.parametrize("size", [0, -1, True])
def test_size_must_be_positive(folder, never, size):
    before = tree(folder)
    with pytest.raises(ValueError, match=f"image_size must be at least 1 pixel, got {size}"):
        load(folder).export(folder, image_size=size)
    assert tree(folder) == before


def test_size_that_does_not_fit_the_network_is_refused_before_anything_is_traced(vit, copied, never):
    folder = copied("vit")
    before = tree(folder)
    with pytest.raises(ValueError, match=r"do not take images of 32 x 32 pixels and 3 channels: give another.*16"):
        load(folder).export(folder, image_size=32)
    assert tree(folder) == before


@pytest.mark.slow
def test_another_size_is_exported_where_the_network_takes_it(folder):
    load(folder).export(folder, image_size=16)
    assert read_index(folder).inputs == {"pixel_values": (-1, 3, 16, 16)}
    images = torch.randn(2, 3, 16, 16)
    assert_equals_torch(folder, {2: images})


def test_size_of_the_processor_is_used(folder):
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    model = load(folder, keep_all=True, dtype=torch.float32)
    model.parts.config.teacher_config.image_size = None
    found = exporting.export_onnx(model.parts, "pixel_values")
    index = json.loads(found.files[INDEX_FILE])
    assert index["inputs"] == {"pixel_values": [-1, 3, 16, 16]}
    assert index["processor"] == processor


@pytest.mark.parametrize("text", ["{", "[]", "3", '"a"', "\ud800".encode("utf-8", "surrogatepass")])
def test_a_processor_that_is_none_is_refused(folder, never, text):
    model = load(folder, keep_all=True, dtype=torch.float32)
    (folder / "preprocessor_config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Exception, match=r"preprocessor_config\.json") as caught:
        exporting.export_onnx(model.parts, "pixel_values")
    assert type(caught.value).__name__ == "RepositoryError"


# --- What is exported is what is saved -------------------------------------------------------------------------------


def test_a_model_that_was_changed_is_exported_as_it_is_saved(folder, tmp_path):
    model = load(folder, keep_all=True)
    with torch.no_grad():
        model.teacher.layers[1].linear.weight.mul_(-1)
        expected = model(odd_images(), sources="TT").logits
    model.export(tmp_path / "changed")
    assert_equals_torch(tmp_path / "changed", {2: odd_images()})
    assert torch.equal(load(tmp_path / "changed", stage=2)(odd_images()).logits, expected)
    # The one that was loaded from has none.
    assert not list(folder.rglob("*.onnx"))


def test_a_model_goes_on_from_its_stage(folder, tmp_path):
    model = load(folder)
    model.export(tmp_path / "out")
    assert model.stage == 0
    assert model.load_next_stage() == 1
    with torch.no_grad():
        assert torch.equal(model(odd_images()).logits, load(tmp_path / "out", stage=1)(odd_images()).logits)


def test_an_export_into_a_folder_of_others_is_refused(tmp_path, never):
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(OverwriteError, match=r"model\.safetensors"):
        odd_model().export(tmp_path)
    assert tree(tmp_path) == {"model.safetensors": b"mine"}


def test_graphs_of_others_are_not_written_over(folder):
    (folder / "onnx").mkdir()
    (folder / "onnx" / "student.onnx").write_bytes(b"mine")
    before = tree(folder)
    with pytest.raises(OverwriteError, match=r"onnx/student\.onnx"):
        load(folder).export(folder)
    assert tree(folder) == before


def test_a_save_of_the_same_weights_keeps_graphs_and_one_of_others_drops_them(copied, tmp_path):
    folder = copied("vit")
    model = load(folder, keep_all=True)
    model.save_pretrained(tmp_path / "same")
    assert tree(tmp_path / "same") == tree(folder)
    with torch.no_grad():
        model.student.classifier.bias.add_(1)
    model.save_pretrained(tmp_path / "other")
    assert not list((tmp_path / "other").rglob("*.onnx"))
    assert not (tmp_path / "other" / "onnx").exists()
    model.save_pretrained(folder)
    assert not list(folder.rglob("*.onnx"))
    assert logits(load(folder)).shape == (2, 5)
    assert isinstance(model, PWLForImageClassification)
