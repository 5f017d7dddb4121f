"""The pair on published figures: its network and how it is cut and sliced, early exit, and the comparison."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.real import exits_training, measures
from benchmarks.real.comparison import WAYS, Answers, compare, mean_until, render
from benchmarks.real.exits import EarlyExit, block_file
from benchmarks.real.network import CifarResNetConfig, CifarResNetForImageClassification
from benchmarks.real.plot import draw, picture
from benchmarks.real.published import main as write_published
from benchmarks.real.published import network_of, processor, renamed
from benchmarks.real.rivals import (
    EXITS_WAYS,
    INT8_WAY,
    PWL_WAY,
    RUNGS_WAY,
    RUNTIME_WAY,
    SESSION_WAY,
    STUDENT_WAY,
    TEACHER_WAY,
    ways,
)
from benchmarks.recipes.definitions import load_definitions
from benchmarks.recipes.runs import Training, run_of
from benchmarks.recipes.workplace import Workplace
from benchmarks.speed.launching import Run
from benchmarks.store import Store
from pwl_hf import PWLForImageClassification
from pwl_hf.training.networks.inheritance import inherit
from tests.training.test_inheritance import stir

LABELS = {i: f"label {i}" for i in range(4)}
CUTS = [2, 4, 5, 6]


class PublishedBlock(nn.Module):
    """The block of akamaster/pytorch_resnet_cifar10, option A, in our words."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.shortens = stride, stride != 1 or before != width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.shortens:
            quarter = out.shape[1] // 4
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter), "constant", 0)
        return functional.relu(out + x)


class PublishedNetwork(nn.Module):
    """The network, with its names."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                *(PublishedBlock(*((before, width, stride) if i == 0 else (width, width, 1))) for i in range(depth))
            )
            for before, width, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.linear = nn.Linear(64, len(LABELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.layer3(self.layer2(self.layer1(functional.relu(self.bn1(self.conv1(x))))))
        return self.linear(functional.avg_pool2d(out, out.size()[3]).view(out.size(0), -1))


def config(**kwargs: Any) -> CifarResNetConfig:
    labels = {"id2label": LABELS, "label2id": {name: i for i, name in LABELS.items()}}
    return CifarResNetConfig(**({"depths": [2, 2, 2]} | labels | kwargs))


def network(seed: int = 0, **kwargs: Any) -> CifarResNetForImageClassification:
    torch.manual_seed(seed)
    found = CifarResNetForImageClassification(config(**kwargs))
    stir(found)
    return found.eval()


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def published(depth: int = 2) -> PublishedNetwork:
    torch.manual_seed(0)
    found = PublishedNetwork(depth)
    stir(found)
    return found.eval()


def without_counts(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


# The network, cut and sliced.


@torch.no_grad()
def test_network_answers_as_the_published_one_bit_for_bit():
    theirs = published()
    ours = network_of(without_counts(theirs.state_dict()), config())
    assert torch.equal(ours(images()).logits, theirs(images()))
    assert set(renamed(theirs.state_dict())) == set(ours.state_dict())


def test_weights_of_another_depth_are_refused_by_name():
    with pytest.raises(RuntimeError, match=r"levels\.0\.layers\.2"):
        network_of(without_counts(published(depth=3).state_dict()), config())


def test_config_refuses_levels_that_cannot_be_built():
    for wrong in ({"depths": [1, 1]}, {"hidden_sizes": [16, 8, 64]}, {"depths": [1, 0, 1]}):
        with pytest.raises(Exception, match="hidden_sizes"):
            config(**wrong)


@torch.no_grad()
def test_pair_grows_from_the_student_to_the_teacher(tmp_path):
    teacher, student = network(), network(1, depths=[1, 1, 1], hidden_sizes=[8, 16, 32])
    joined = PWLForImageClassification.from_teacher_student(teacher, student, num_blocks=3)
    joined.save_pretrained(tmp_path)
    model = PWLForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(model(images()).logits, student(images()).logits)
    model.set_stage("teacher")
    assert torch.equal(model(images()).logits, teacher(images()).logits)


def widened(narrow: CifarResNetForImageClassification, seed: int) -> CifarResNetForImageClassification:
    """A network of twice the width that answers as another does: its other channels are zero.

    Channels that a shortcut carries over stand behind one another in the wider network as in the narrow one.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(count: int, of: list[int]) -> list[int]:
        return sorted(of[i] for i in torch.randperm(len(of), generator=generator)[:count].tolist())

    sizes = list(narrow.config.hidden_sizes)
    places = [drawn(sizes[0], list(range(2 * sizes[0])))]
    for before, size in pairwise(sizes):
        start, own = size - before, (size - before) // 2
        free = [c for c in range(2 * size) if not start <= c < start + 2 * before]
        others = drawn(size - before, free)
        places.append([*others[:own], *(start + place for place in places[-1]), *others[own:]])
    wide = CifarResNetForImageClassification(config(depths=narrow.config.depths, hidden_sizes=[2 * s for s in sizes]))
    inner = {size: drawn(size, list(range(2 * size))) for size in sizes}
    for name, tensor in wide.state_dict().items():
        own = narrow.state_dict()[name]
        tensor.fill_(1.0 if name.endswith("running_var") else 0)
        level = int(name.split(".")[1]) if name.startswith("levels") else len(sizes) - 1
        stream, first = places[level], name.startswith("levels") and ".layers.0." in name
        before = places[level - 1] if first and level else stream
        if name.startswith("embedder"):
            axes = (places[0], [0, 1, 2])
        elif name.startswith("classifier"):
            axes = (list(range(len(LABELS))), stream)
        elif ".layer.0." in name:
            axes = (inner[sizes[level]], before)
        else:
            axes = (stream, inner[sizes[level]])
        for dim, axis in enumerate(axes[: own.ndim]):
            full = torch.zeros(*own.shape[:dim], tensor.shape[dim], *own.shape[dim + 1 :])
            own = full.index_copy(dim, torch.tensor(axis), own.float())
        if own.ndim:
            tensor.add_(own - (1.0 if name.endswith("running_var") else 0) * (own != 0))
    return wide.eval()


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_slices_respect_shortcuts_without_parameters(seed):
    # A teacher that is a narrow network among zeros is found again in it, carried channels at their places.
    narrow = network(seed, hidden_sizes=[4, 8, 16])
    teacher, student = widened(narrow, seed), network(seed + 5, hidden_sizes=[4, 8, 16])
    torch.testing.assert_close(teacher(images()).logits, narrow(images()).logits)
    model = PWLForImageClassification.from_teacher_student(teacher, student, num_blocks=3).eval()
    inherit(model, batches=[{"pixel_values": images(32)}], converters=True)
    expected = narrow(images()).logits
    for mask in ("SSS", "TSS", "STS", "TTS"):
        torch.testing.assert_close(model(images(), sources=mask).logits, expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_slices_of_the_first_level_alone_reorder_what_follows():
    # Later levels are as wide: their channels change places, so that those carried over stand where they come in.
    teacher = network(depths=[2, 2, 2])
    student = network(1, depths=[2, 2, 2], hidden_sizes=[8, 32, 64])
    model = PWLForImageClassification.from_teacher_student(teacher, student, num_blocks=3).eval()
    inherited = inherit(model, batches=[{"pixel_values": images(32)}], converters=True)
    found = inherited.slices
    first, second = found.kept["stream 0"], found.kept["stream 2"]
    assert inherited.copied == {}
    assert torch.equal(second[12:20], 8 + first)
    assert sorted(second.tolist()) == list(range(32))
    # From the second level on it is the teacher, in another order: so is the answer after its first block.
    torch.testing.assert_close(model(images(), sources="TTS").logits, teacher(images()).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_channels_that_only_later_levels_read_are_kept():
    # Of the first level's stream the last channels count, but for nothing within the level.
    teacher, student = network(depths=[1, 2, 1]), network(1, depths=[1, 2, 1], hidden_sizes=[8, 32, 64])
    within = (teacher.levels[0].layers[0], teacher.levels[1].layers[0])
    for layer in within:
        layer.layer[0].convolution.weight.mul_(1e-3)
    for reader in (teacher.levels[1].layers[1], teacher.levels[2].layers[0]):
        # The first eight, where the shortcut puts them.
        reader.layer[0].convolution.weight[:, 8:16] = 0
    model = PWLForImageClassification.from_teacher_student(teacher, student, num_blocks=3).eval()
    found = inherit(model, batches=[{"pixel_values": images(32)}]).slices
    assert found.kept["stream 0"].tolist() == list(range(8, 16))


# Early exit.


@torch.no_grad()
def test_each_exit_answers_when_its_file_is_there_and_the_last_one_is_the_teacher(tmp_path):
    torch.manual_seed(0)
    whole, teacher = EarlyExit(config(), CUTS), network()
    whole.network.load_state_dict(teacher.state_dict())
    whole.eval().save_pretrained(tmp_path)
    expected = whole.all_exits(images())
    assert torch.equal(expected[-1], teacher(images()).logits)
    model = EarlyExit.from_pretrained(tmp_path)
    for number in range(len(CUTS)):
        assert torch.equal(model(images()).logits, expected[number])
        if number < model.num_stages:
            model.load_next_stage()


def test_blocks_hold_every_tensor_once():
    model = EarlyExit(config(), CUTS)
    held = [name for block in range(1, len(CUTS) + 1) for name in model.state_of(block)]
    assert sorted(held) == sorted(model.state_dict())


def test_exits_shrink_to_the_last_level(tmp_path):
    # Of two levels left, one, and none.
    assert [len(exit.layers) for exit in EarlyExit(config(), CUTS).exits] == [2, 1, 1]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with tiny data, the published weights of a tiny teacher, and what is made of them."""
    root = tmp_path_factory.mktemp("real")
    (root / "data").mkdir()
    features = Features({"image": Image(), "label": ClassLabel(names=list(LABELS.values()))})
    for split, seed in (("train", 1), ("test", 2)):
        pixels = torch.randint(256, (24, 32, 32, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        rows = {"image": [PILImage.fromarray(p.numpy()) for p in pixels], "label": [i % len(LABELS) for i in range(24)]}
        Dataset.from_dict(rows, features=features).to_parquet(root / "data" / f"{split}.parquet")
    network().save_pretrained(root / "teacher")
    processor().save_pretrained(root / "teacher")
    return root


def options(place: Path, folder: Path, backbone: str) -> exits_training.Options:
    named = {"output_dir": str(folder), "teacher": str(place / "teacher"), "dataset": str(place / "data")}
    return exits_training.Options(
        **named, cuts=CUTS, backbone=backbone, num_train_epochs=2, seed=0, batch_size=8, learning_rate=0.02
    )


@pytest.mark.parametrize("backbone", ["frozen", "trained"])
def test_exits_are_trained_and_the_backbone_if_it_is_asked_for(place, tmp_path, backbone):
    torch.manual_seed(0)
    before = EarlyExit(config(), CUTS)
    model = exits_training.train(options(place, tmp_path, backbone))
    kept = network().state_dict()
    is_same = {name: torch.equal(tensor, kept[name]) for name, tensor in model.network.state_dict().items()}
    assert all(is_same.values()) == (backbone == "frozen")
    assert not torch.equal(model.exits[0].classifier.weight, before.exits[0].classifier.weight)
    assert json.loads((tmp_path / "train_results.json").read_text())["train_samples_per_second"] > 0
    loaded = EarlyExit.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(images()).logits, model.all_exits(images())[0])


# The comparison.


def test_images_are_counted_for_every_rung(place, tmp_path):
    teacher, student = network(), network(1, depths=[1, 1, 1], hidden_sizes=[8, 16, 32])
    model = PWLForImageClassification.from_teacher_student(teacher, student, teacher_cuts=[4, 6], student_cuts=[2, 3])
    model.add_tier()
    model.save_pretrained(tmp_path)
    found = measures.labelled_images(str(place / "data"), place / "teacher", max_samples=16)
    correct = measures.count_right(RUNGS_WAY, tmp_path, found)["correct"]
    assert len(correct) == 5
    items = [found[i] for i in range(16)]
    for right, alone in ((correct[0], student), (correct[-1], teacher)):
        with torch.no_grad():
            answers = alone(torch.stack([item["pixel_values"] for item in items])).logits.argmax(-1)
        assert right == sum(int(answer) == item["labels"] for answer, item in zip(answers, items, strict=True))


def test_images_are_counted_for_every_answer(place, tmp_path):
    model = exits_training.train(options(place, tmp_path, "frozen"))
    found = measures.labelled_images(str(place / "data"), place / "teacher", max_samples=16)
    counted = measures.count_right(EXITS_WAYS["frozen"], tmp_path, found)
    pixel_values = torch.stack([item["pixel_values"] for item in (found[i] for i in range(16))])
    labels = torch.tensor([found[i]["labels"] for i in range(16)])
    with torch.no_grad():
        right = [int((logits.argmax(-1) == labels).sum()) for logits in model.all_exits(pixel_values)]
    assert counted == {"correct": right, "total": 16}


def test_published_weights_become_a_checkpoint(tmp_path):
    from safetensors.torch import save_file

    save_file(without_counts(published().state_dict()), tmp_path / "weights.safetensors")
    recipe = {"weights": str(tmp_path / "weights.safetensors"), "output_dir": str(tmp_path / "teacher")}
    recipe |= {"depths": [2, 2, 2], "hidden_sizes": [16, 32, 64], "label_names": list(LABELS.values())}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    write_published(tmp_path / "recipe.yaml")
    found = CifarResNetForImageClassification.from_pretrained(tmp_path / "teacher").eval()
    with torch.no_grad():
        assert torch.equal(found(images()).logits, published()(images()))
    assert found.config.id2label == LABELS


@pytest.mark.slow
def test_ways_are_files_of_one_run_and_are_timed(place, tmp_path):
    run = run_of(load_definitions(), "real-eighth", "quick", 0)
    assert run.training.teacher is not None
    exits = {EXITS_WAYS["frozen"]: Training("exits-frozen", "x", {}, {}, run.training.teacher)}
    for kind, training in (
        ("teachers", run.training.teacher),
        ("runs", run.training),
        ("runs", exits[EXITS_WAYS["frozen"]]),
    ):
        folder = tmp_path / "work" / kind / training.key
        folder.mkdir(parents=True)
        (folder / "done.json").write_text("{}")
        made = folder / training.name
        if training is run.training:
            student = network(1, depths=[1, 1, 1], hidden_sizes=[8, 16, 32])
            PWLForImageClassification.from_teacher_student(
                network(), student, teacher_cuts=[4, 6], student_cuts=[2, 3]
            ).save_pretrained(made)
        elif kind == "teachers":
            network().save_pretrained(made)
        else:
            EarlyExit(config(), [4, 6]).save_pretrained(made)
        processor().save_pretrained(made)
    workplace = Workplace(tmp_path / "work", None, lambda command, log: None)
    known = ways(run, exits, workplace, tmp_path / "files")
    assert set(known) == {*WAYS} - {EXITS_WAYS["trained"]}
    counts = {name: len(way.sizes) for name, way in known.items()}
    assert counts == {
        PWL_WAY: 3,
        RUNTIME_WAY: 3,
        # Of two blocks: SS, QS, QQ, TQ, TT.
        RUNGS_WAY: 5,
        TEACHER_WAY: 1,
        SESSION_WAY: 1,
        STUDENT_WAY: 1,
        INT8_WAY: 2,
        EXITS_WAYS["frozen"]: 2,
    }
    assert all(list(way.sizes) == sorted(set(way.sizes)) for way in known.values())
    # Each is a repository that its process loads, and int8 weights answer nearly as the teacher.
    int8 = measures.Int8First.from_pretrained(str(known[INT8_WAY].folder))
    with torch.inference_mode():
        first, teacher = int8(images()).logits, network()(images()).logits
        assert (first - teacher).abs().max() < 0.05 * teacher.abs().max()
        int8.load_next_stage()
        assert torch.equal(int8(images()).logits, teacher)
    assert (known[PWL_WAY].folder / "onnx" / "student.onnx").is_file()
    assert (known[EXITS_WAYS["frozen"]].folder / block_file(2)).is_file()
    # Fresh processes, each of which answers as often as it can, and asks the Hub for all that it needs.
    timed = measures.time_ways(known, tmp_path / "files", 50e6, rounds=1)
    for name, way in known.items():
        (seconds,) = timed[name]["answers"]
        assert len(seconds) == len(way.sizes)
        assert seconds == sorted(seconds)
        assert timed[name]["sent"] > way.sizes[-1]


def test_seconds_are_those_of_each_answer():
    run = Run(start=5.0, seconds=4.0, marks={"first": 1.0, "loaded": 0.9}, stages=[0.9, 2.0, 3.0], resident=0)
    assert measures.answers_of(run, "stream") == [1.0, 2.0, 4.0]
    assert measures.answers_of(run, "first") == [4.0]


def answers() -> dict[str, Answers]:
    """Of what a store holds after a part was measured."""
    run = {"accuracy": {"SS": 0.8, "TS": 0.85, "TT": 0.93, "ST": 0.7}, "test_images": 1000}
    sizes = {PWL_WAY: [100, 500, 900], TEACHER_WAY: [850], INT8_WAY: [220, 1070], EXITS_WAYS["frozen"]: [300, 900]}
    rivals = {EXITS_WAYS["frozen"]: {"correct": [700, 930], "total": 1000}}
    rounds = [[1.0, 2.0, 3.0], [1.2, 2.0, 5.0], [1.4, 2.3, 4.0]]
    times = {2e7: {PWL_WAY: {"answers": rounds, "sent": 950}, TEACHER_WAY: {"answers": [[2.5]], "sent": 870}}}
    return compare(run, sizes, rivals, times)


def test_table_has_every_answer_with_its_interval_its_bytes_and_its_median_second():
    text = render(answers(), "Title", ["About."])
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert "seconds at 20 MB/s" in rows[0]
    assert rows[1] == "| PWL, torch | stage 0 | 80.00 % (77.4 to 82.4) | 0 kB |  | 1.20 |"
    assert rows[3] == "|  | stage 2 | 93.00 % (91.2 to 94.4) | 1 kB | 1 kB | 4.00 |"
    # What has not been measured is visibly empty.
    assert "| int8 first, then the teacher | int8 | - | 0 kB |  | - |" in rows
    assert "| early exit | exit 1 | 70.00 % (67.1 to 72.8) | 0 kB |  | - |" in rows
    assert "|  | its head | 93.00 % (91.2 to 94.4) | 1 kB |  | - |" in rows
    assert STUDENT_WAY not in text


def test_ways_are_compared_in_one_number():
    # 0 up to 2, a half up to 6, all of it after that.
    assert mean_until(10, [2, 6], [0.5, 1.0]) == pytest.approx(0.6)
    rows = [line for line in render(answers(), "Title", []).partition("counting as 0:")[2].splitlines() if line]
    assert rows[0] == "| way | over the bytes of weights | over the seconds at 20 MB/s |"
    # (0.8 x 400 + 0.85 x 400) / 900, and of 4 seconds (0.8 x 0.8 + 0.85 x 2) / 4.
    assert rows[2] == "| PWL, torch | **73.3 %** | **58.5 %** |"
    assert rows[3] == "| the teacher | 5.2 % | 34.9 % |"
    # Int8 was not counted, early exit not timed.
    assert rows[4] == "| early exit | 46.7 % | - |"
    assert len(rows) == 5


def test_picture_has_a_line_for_each_way_that_was_timed(tmp_path):
    figure = picture(answers(), "Title")
    (axes,) = figure.axes
    assert [list(line.get_xdata())[:-1] for line in axes.lines] == [[2.5], [1.2, 2.0, 4.0]]
    assert [list(line.get_ydata())[:-1] for line in axes.lines] == [[93.0], [80.0, 85.0, 93.0]]
    draw(answers(), "Title", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def stored(folder: Path) -> list[str]:
    """A store with a run and what was measured of its rivals; the options that lead there."""
    run = run_of(load_definitions(), "real-eighth", "quick", 0)
    accuracy = {"T" * k + "S" * (5 - k): 0.8 + 0.02 * k for k in range(6)}
    entry = {"accuracy": accuracy, "test_images": 100, "data": "CIFAR-10"}
    Store(folder / "results.json").add("runs", run.key, entry)
    rivals = Store(folder / "real.json", kinds=("sizes", "accuracies", "seconds"))
    rivals.add("sizes", run.key, {PWL_WAY: [1000, 2000, 3000, 4000, 5000, 6000]})
    timed = {PWL_WAY: {"answers": [[1, 2, 3, 4, 5, 6]], "sent": 6500}}
    rivals.add("seconds", f"{run.key} 20000000", {"bandwidth": 2e7, "ways": timed})
    return ["real", "--store", str(folder / "results.json"), "--output", str(folder), "--table-only"]


def test_command_writes_table_and_picture_of_what_is_stored(tmp_path):
    done = CliRunner().invoke(app, stored(tmp_path))
    assert done.exit_code == 0, done.output
    text = (tmp_path / "real-eighth-quick-seed0.md").read_text()
    assert text in done.output
    assert "| PWL, torch | stage 0 | 80.00 % (71.1 to 86.7) | 1 kB |  | 1.00 |" in text
    assert (tmp_path / "real-eighth-quick-seed0.png").is_file()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--pair", "resnet"], "'resnet' is none of real-eighth, real-third"),
        (["--only", "bytes"], "'bytes' is none of exits, accuracies, seconds"),
        (["--seed", "7"], "train it by `recipes real`"),
    ],
)
def test_command_refuses_what_there_is_not(tmp_path, given, said):
    done = CliRunner().invoke(app, [*stored(tmp_path), *given], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("│", " ").split())


def test_command_refuses_other_weights(tmp_path):
    words = [word for word in stored(tmp_path) if word != "--table-only"]
    done = CliRunner().invoke(app, [*words, "--data", str(tmp_path)], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "no train.parquet in" in " ".join(done.output.replace("│", " ").split())
