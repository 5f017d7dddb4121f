"""What is in memory: the current route and nothing else."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from pwl_hf import PWLConfig, PWLForImageClassification, Sources, StageError
from tests.tiny import EACH_FAMILY, WITH_BATCH_NORM, tiny_images, tiny_model

Load = Callable[..., PWLForImageClassification]


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Without the garbage collector: what is released must go at once."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def block(model: PWLForImageClassification, role: str, index: int) -> list[nn.Module]:
    return [getattr(model, role).get_submodule(path) for path in model.parts.networks.blueprints[role].paths(index)]


def references(modules: list[nn.Module]) -> list[weakref.ref]:
    return [weakref.ref(x) for m in modules for x in (*m.modules(), *m.parameters(), *m.buffers())]


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@torch.no_grad()
def test_released_blocks_and_converters_die_at_once(load: Load, model_type: str, no_collector: None) -> None:
    model, images = load(model_type), tiny_images(model_type)
    model(images)
    for stage in range(1, 5):
        gone = references(block(model, "student", stage))
        gone += references([model.encoders[str(stage - 1)]] if stage > 1 else [])
        assert gone
        model.load_next_stage()
        model(images)
        model(images, sources=model.sources)
        assert not [r() for r in gone if r() is not None]
    gone = references([m for i in (2, 3, 4) for m in block(model, "teacher", i)])
    model.set_stage(1)
    assert not [r() for r in gone if r() is not None]


@pytest.mark.parametrize(("stage", "vacant"), [(0, "teacher"), ("teacher", "student")])
def test_a_network_with_nothing_in_it_has_no_dtype_and_no_device_and_says_so(
    load: Load, stage: int | str, vacant: str
) -> None:
    model = load("vit", stage=stage)
    for found in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        network = getattr(found, vacant)
        for name in ("dtype", "device"):
            assert not hasattr(network, name)
            with pytest.raises(AttributeError, match=f"it has no {name}: ask the PWL model"):
                getattr(network, name)
        assert isinstance(network, ViTForImageClassification)
        assert network.num_parameters() == 0
        found.set_stage(2)
        for role in ("teacher", "student"):
            assert type(getattr(found, role)) is ViTForImageClassification
            assert type(getattr(found, role).vit) is ViTModel
            assert (getattr(found, role).device, getattr(found, role).dtype) == (found.device, found.dtype)
        found.set_stage(stage)
        assert not hasattr(network, "device")


@pytest.mark.parametrize("stage", [0, 2, 4])
@torch.no_grad()
def test_every_stage_is_traced(load: Load, stage: int) -> None:
    model, images = load("vit", stage=stage), tiny_images("vit")
    model.config.return_dict = False
    traced = torch.jit.trace(model, images)
    assert torch.equal(traced(images)[0], model(images)[0])


@torch.no_grad()
def test_released_blocks_die_after_training_passes_too(load: Load, no_collector: None) -> None:
    model = load("vit").train()
    with torch.enable_grad():
        model(tiny_images("vit"), labels=torch.tensor([0, 1])).loss.backward()
    gone = references(block(model, "student", 1))
    model.load_next_stage()
    assert not [r() for r in gone if r() is not None]


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_the_parameters_are_those_of_the_route(load: Load, model_type: str) -> None:
    whole, model = load(model_type, keep_all=True), load(model_type)
    student = sum(p.numel() for p in whole.student.parameters())
    assert model.num_parameters() == student == model.student.num_parameters()
    assert {name.split(".")[0] for name in model.state_dict()} == {"student"}
    for mask in ("TSSS", "TTTT", "STTS", "SSSS"):
        model.set_sources(mask)
        expected = 0
        for kind, index, *_ in Sources(mask).part_ids:
            if kind in ("teacher", "student"):
                expected += sum(p.numel() for m in block(whole, kind, index) for p in m.parameters())
            else:
                expected += sum(p.numel() for p in getattr(whole, f"{kind}s")[str(index)].parameters())
        assert model.num_parameters() == expected, mask
    assert model.num_parameters() == student


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_blocks_that_are_not_loaded_hold_no_tensor(load: Load, model_type: str) -> None:
    model = load(model_type, stage=1)
    for index in (2, 3, 4):
        for module in block(model, "teacher", index):
            assert not [*module.parameters(), *module.buffers()]
    assert not [*model.decoders.parameters()]
    assert sorted(model.encoders) == ["1"]
    # Not even in what is kept for building them.
    for plan in model.parts.networks.blueprints.values():
        spare = [t for m in plan._spare.values() for t in (*m.parameters(), *m.buffers())]
        assert all(t.is_meta for t in spare)


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_loading_draws_no_random_number_and_initialises_nothing(
    load: Load, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(model_type)  # Made and saved before anything is watched.
    drawn = []
    for name in ("normal_", "uniform_", "trunc_normal_", "bernoulli_"):
        plain = getattr(torch.Tensor, name, None)
        if plain is not None:

            def watch(self: torch.Tensor, *args: object, _plain: Callable = plain, **kwargs: object) -> torch.Tensor:
                if not self.is_meta:
                    drawn.append(tuple(self.shape))
                return _plain(self, *args, **kwargs)

            monkeypatch.setattr(torch.Tensor, name, watch)
    state = torch.get_rng_state()
    model = load(model_type)
    for mask in ("TSSS", "TTTT", "STST", "SSSS"):
        model.set_sources(mask)
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn == []


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@torch.no_grad()
def test_a_forward_in_flight_keeps_its_route(load: Load, model_type: str) -> None:
    model, images = load(model_type), tiny_images(model_type)
    for target in (1, 3, "teacher", 0):
        in_flight, expected = model._router._current, model(images).logits
        model.set_stage(target)
        model.set_stage(2)
        assert torch.equal(in_flight({"pixel_values": images}).logits, expected)


def test_a_change_of_stage_during_a_forward_does_not_disturb_it(load: Load) -> None:
    model, images = load("vit"), tiny_images("vit")
    expected = model(images).logits
    handle = model.student.vit.layers[1].register_forward_hook(lambda *_: model.set_stage("teacher"))
    answer = model(images).logits
    handle.remove()
    assert model.stage == 4
    assert torch.equal(answer, expected)
    assert torch.equal(model(images).logits, model.teacher(images).logits)


def test_a_block_that_is_not_resident_refuses_to_run(load: Load) -> None:
    model, images = load("vit", stage=2), tiny_images("vit")
    for role in ("teacher", "student"):
        with pytest.raises((StageError, AttributeError), match=rf"block \d of the {role} is not resident"):
            getattr(model, role)(images)
    with pytest.raises(AttributeError, match=r"block 4 of the teacher is not resident.*'weight' was asked for"):
        _ = model.teacher.classifier.weight
    assert not hasattr(model.teacher.classifier, "bias")


def test_keep_all_has_everything_and_only_reroutes(load: Load, no_collector: None) -> None:
    model = load("vit", keep_all=True)
    names, pointers = list(model.state_dict()), [p.data_ptr() for p in model.parameters()]
    assert {name.split(".")[0] for name in names} == {"teacher", "student", "encoders", "decoders"}
    for mask in ("TTTT", "SSTT", "STTS", "SSSS"):
        model.set_sources(mask)
        assert list(model.state_dict()) == names
        assert [p.data_ptr() for p in model.parameters()] == pointers


def test_statistics_of_masks_follow_what_is_kept(load: Load) -> None:
    for model_type in WITH_BATCH_NORM:
        assert set(load(model_type, keep_all=True).statistics) == {"TSSS", "SSTT"}
        model = load(model_type)
        assert set(model.statistics) == set()
        model.load_next_stage()
        assert set(model.statistics) == {"TSSS"}


def test_a_stage_change_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    tiny_model("vit").save_pretrained(tmp_path)
    model, images = PWLForImageClassification.from_pretrained(tmp_path), tiny_images("vit")
    before, names = model(images).logits, list(model.state_dict())
    (tmp_path / "teacher" / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(ValueError, match="model-00002-of-00004"):
        model.set_stage("teacher")
    assert (model.stage, list(model.state_dict())) == (0, names)
    assert torch.equal(model(images).logits, before)
    assert model.load_next_stage() == 1
    with pytest.raises(ValueError, match="model-00002-of-00004"):
        model.load_next_stage()
    assert model.sources == "TSSS"


def test_a_model_that_nobody_holds_dies_at_once(load: Load, no_collector: None) -> None:
    for make in (
        lambda: load("vit"),
        lambda: load("resnet", stage=2),
        lambda: load("vit", keep_all=True),
        lambda: tiny_model("vit"),
    ):
        model = make()
        gone = references([model])
        del model
        assert not [r() for r in gone if r() is not None]


# --- Bytes, in a process of their own ---------------------------------------------------------------------------

_MEASURE = textwrap.dedent(
    """
    import gc, json, sys, threading, time
    import torch
    from pwl_hf import PWLForImageClassification

    torch.set_num_threads(1)

    def private():
        # Pages that no file backs, written-to copies of file pages among them. Not Private_Dirty: a mapped
        # page of a file that was just written counts there until the kernel has put it on disk.
        with open("/proc/self/smaps_rollup") as file:
            return 1024 * sum(int(line.split()[1]) for line in file if line.startswith("Anonymous:"))

    class Peak:
        def __enter__(self):
            self.top, self.on = private(), True
            self.thread = threading.Thread(target=self.watch)
            self.thread.start()
            return self

        def watch(self):
            while self.on:
                self.top = max(self.top, private())
                time.sleep(0.0005)

        def __exit__(self, *_):
            self.on = False
            self.thread.join()

    folder, dtypes = sys.argv[1], [getattr(torch, name) for name in sys.argv[2:]]
    images, results = torch.zeros(1, 3, 16, 16), []
    for dtype in dtypes:
        with torch.no_grad():
            # Once through everything, so that imports and allocator pools are not counted.
            model = PWLForImageClassification.from_pretrained(folder, dtype=dtype)
            model(images), model.set_stage("teacher"), model(images)
            del model
            gc.collect()
            base = private()
            found = {"stages": [], "peaks": []}
            model = PWLForImageClassification.from_pretrained(folder, dtype=dtype)
            model(images)
            found["stages"].append(private() - base)
            for stage in range(1, 5):
                with Peak() as peak:
                    model.set_stage(stage)
                    model(images)
                found["stages"].append(private() - base)
                found["peaks"].append(peak.top - base)
            with Peak() as peak:
                model.set_stage(0)
                model(images)
            found["back"], found["peak_back"] = private() - base, peak.top - base
            with Peak() as peak:
                model.set_stage("teacher")
                model(images)
            found["peak_jump"] = peak.top - base
            del model
            gc.collect()
            results.append(found)
    print(json.dumps(results))
    """
)
MB = 2**20


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    """A repository of about 100 MB, and the bytes of each block in float32."""
    size = {"image_size": 16, "patch_size": 8, "num_attention_heads": 4}
    teacher = ViTConfig(hidden_size=448, intermediate_size=1792, num_hidden_layers=8, **size)
    student = ViTConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=4, **size)
    model = PWLForImageClassification(PWLConfig(teacher_config=teacher, student_config=student, num_stages=4))
    folder = tmp_path_factory.mktemp("big")
    model.save_pretrained(folder)
    sizes = {
        role: [4 * sum(p.numel() for m in block(model, role, i) for p in m.parameters()) for i in range(1, 5)]
        for role in ("teacher", "student")
    }
    assert 80 * MB < sum(sizes["teacher"]) + sum(sizes["student"]) < 120 * MB
    return folder, sizes


@pytest.fixture(scope="module")
def measured(big: tuple[Path, dict[str, list[int]]]) -> dict[str, dict]:
    """What each dtype's growing costs in private bytes, by dtype."""
    dtypes = ["bfloat16", "float32"]
    # A fixed threshold: every tensor is a mapping of its own, given back when it is freed.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", _MEASURE, str(big[0]), *dtypes]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(dtypes, json.loads(done.stdout.splitlines()[-1]), strict=True))


on_linux = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="private bytes are read from Linux's smaps"
)


@on_linux
def test_private_bytes_are_those_of_the_route_and_never_of_more(
    big: tuple[Path, dict[str, list[int]]], measured: dict[str, dict]
) -> None:
    # In another dtype than the stored one every tensor is private; half the bytes.
    teacher, student = ([n // 2 for n in big[1][role]] for role in ("teacher", "student"))
    found, margin = measured["bfloat16"], 4 * MB
    for stage, private in enumerate(found["stages"]):
        route = sum(teacher[:stage]) + sum(student[stage:])
        assert abs(private - route) < margin, f"stage {stage}: {private / MB:.1f} MB, its route {route / MB:.1f} MB"
    assert abs(found["back"] - sum(student)) < margin
    allowed = sum(teacher) + sum(student) + max(teacher) + margin
    assert max(*found["peaks"], found["peak_back"], found["peak_jump"]) < allowed
    for stage, peak in enumerate(found["peaks"], start=1):
        # One step holds at most the two routes' union and one block.
        assert peak < sum(teacher[:stage]) + sum(student[stage - 1 :]) + max(teacher) + margin


@on_linux
def test_in_the_stored_dtype_weights_stay_mapped_file_pages(measured: dict[str, dict]) -> None:
    found = measured["float32"]
    assert max(*found["stages"], *found["peaks"], found["back"], found["peak_back"], found["peak_jump"]) < 8 * MB
