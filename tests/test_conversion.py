"""`convert_pair` and `pwl-hf convert`: images as everywhere else, and pairs that cannot be joined."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    ViTImageProcessorPil,
)

from pwl_hf import (
    PWLForImageClassification,
    PWLForSequenceClassification,
    PWLForTokenClassification,
    RepositoryError,
)
from pwl_hf.cli import main
from pwl_hf.conversion import convert_pair
from pwl_hf.data import DataError
from pwl_hf.data.processing import upright
from pwl_hf.modeling.errors import InputError
from pwl_hf.modeling.families.registry import family_of
from tests.data.odd_pictures import ODD, turned
from tests.modeling.texts import bert_tokenizer
from tests.modeling.types import network_config
from tests.tiny import tiny_pair

SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp", b"GI": ".gif", b"II": ".tif"}


@pytest.fixture
def pair(tmp_path):
    """Saves a teacher and a student with these differences, and the teacher's processor."""

    def save(*changes: dict, num_channels: int = 3) -> list[str]:
        folders = []
        for name, config, change in zip(("teacher", "student"), tiny_pair("vit"), changes, strict=True):
            saved: PreTrainedConfig = type(config)(**{**config.to_dict(), "num_channels": num_channels, **change})
            with torch.random.fork_rng():
                torch.manual_seed(len(folders))
                family_of(saved).model_class()(saved).save_pretrained(tmp_path / name)
            folders.append(str(tmp_path / name))
        mean = [0.5] * num_channels
        size = {"height": 16, "width": 16}
        ViTImageProcessorPil(size=size, image_mean=mean, image_std=mean).save_pretrained(folders[0])
        return folders

    return save


def write(folder: Path, images: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, encoded in images.items():
        (folder / f"{name}{SUFFIXES[encoded[:2]]}").write_bytes(encoded)
    return folder


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("num_channels", [1, 3])
def test_converters_are_fitted_to_what_the_networks_will_see(pair, tmp_path, num_channels):
    networks = pair({}, {}, num_channels=num_channels)
    odd = write(tmp_path / "odd", {name.replace(" ", "-"): make() for name, make in ODD.items()})
    (plain := tmp_path / "plain").mkdir()
    for path in odd.iterdir():
        with Image.open(path) as image:
            upright(image, num_channels).save(plain / f"{path.stem}.png")
    fitted = []
    for images in (odd, plain):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            fitted.append(convert_pair(*networks, tmp_path / f"from-{images.name}", num_stages=2, images=images))
    for one, other in zip(fitted[0].encoders.parameters(), fitted[1].encoders.parameters(), strict=True):
        assert torch.equal(one, other)
    loaded = PWLForImageClassification.from_pretrained(tmp_path / "from-odd", stage="teacher")
    assert loaded(torch.zeros(1, num_channels, 16, 16)).logits.shape == (1, 5)


def test_image_that_cannot_be_read_is_named_and_nothing_is_saved(pair, tmp_path):
    images = write(tmp_path / "images", {"good": turned(1), "short": turned(1)[:300]})
    with pytest.raises(DataError, match=r"the image .*short\.jpg cannot be read"):
        convert_pair(*pair({}, {}), tmp_path / "out", num_stages=2, images=images)
    assert not (tmp_path / "out").exists()


def test_networks_of_channels_that_no_image_has_are_joined_without_images_alone(pair, tmp_path):
    networks = pair({}, {}, num_channels=5)
    images = write(tmp_path / "images", {"good": turned(1)})
    with pytest.raises(ValueError, match="takes images of 5 channels"):
        convert_pair(*networks, tmp_path / "out", num_stages=2, images=images)
    model = convert_pair(*networks, tmp_path / "out", num_stages=2)
    assert model(torch.zeros(1, 5, 16, 16)).logits.shape == (1, 5)


def test_problem_type_is_chosen_where_the_networks_disagree(pair, tmp_path, monkeypatch):
    networks = pair({"problem_type": "regression"}, {"problem_type": "multi_label_classification"})
    line = ["pwl-hf", "convert", *networks, "-o", str(tmp_path / "out"), "--problem-type", "regression"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert PWLForImageClassification.from_pretrained(tmp_path / "out").config.problem_type == "regression"


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ({"num_channels": 1}, {}, "the same inputs, got num_channels 1 for the teacher and 3 for the student"),
        ({}, {"num_channels": 1}, "the same inputs, got num_channels 3 for the teacher and 1 for the student"),
        ({}, {"image_size": 18}, "an image of 16x16 pixels .* an image of 18x18 pixels"),
        (
            {"problem_type": "regression"},
            {"problem_type": "multi_label_classification"},
            "problem_type, got 'regression' for the teacher and 'multi_label_classification' for the student",
        ),
    ],
)
def test_pairs_that_would_fail_later_are_refused_in_one_line(
    pair, tmp_path, teacher, student, message, monkeypatch, capsys
):
    networks = pair(teacher, student)
    monkeypatch.setattr(sys, "argv", ["pwl-hf", "convert", *networks, "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("pwl-hf: teacher and student")
    assert re.search(message, line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"---\n: [no yaml\n---\nwords", None])
def test_a_card_that_could_not_be_kept_is_refused_before_anything_is_written(content, tmp_path):
    card = tmp_path / "out" / "README.md"
    card.parent.mkdir()
    card.mkdir() if content is None else card.write_bytes(content)
    with pytest.raises(RepositoryError, match=r"README.md.*move it away"):
        convert_pair("no/teacher", "no/student", tmp_path / "out")
    assert [path.name for path in card.parent.iterdir()] == ["README.md"]


# --- Texts ------------------------------------------------------------------------------------------------------


@pytest.fixture
def texts_pair(tmp_path: Path) -> list[str]:
    """A BERT and a DistilBERT, with a tokenizer."""
    folders = []
    for role, model_type in (("teacher", "bert"), ("student", "distilbert")):
        torch.manual_seed(len(folders))
        network = AutoModelForSequenceClassification.from_config(network_config(model_type, role))
        network.save_pretrained(tmp_path / role)
        bert_tokenizer(tmp_path / "words").save_pretrained(tmp_path / role)
        folders.append(str(tmp_path / role))
    return folders


@torch.no_grad()
def test_texts_are_joined_fitted_and_carry_their_tokenizer(texts_pair, tmp_path):
    lines = ["a very good film", "bad", "", "film film bad w1", "w2 w3 w4 w5 w6 w7 " * 9]
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    convert_pair(*texts_pair, tmp_path / "pwl", num_blocks=3, texts=tmp_path / "lines.txt", batch_size=3)
    model = PWLForSequenceClassification.from_pretrained(tmp_path / "pwl", keep_all=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pwl")
    own = PWLForSequenceClassification.from_teacher_student(*texts_pair, num_blocks=3).eval()
    rows = [line for line in lines if line]
    batches = [rows[:3], rows[3:]]
    options = {"padding": True, "truncation": True, "max_length": 32, "return_tensors": "pt"}
    own.fit_converters([dict(tokenizer(batch, **options)) for batch in batches])
    for boundary in ("1", "2"):
        assert torch.equal(model.encoders[boundary].weight, own.encoders[boundary].weight)
        assert torch.equal(model.decoders[boundary].weight, own.decoders[boundary].weight)


def test_what_is_not_of_the_task_is_refused(texts_pair, pair, tmp_path):
    (tmp_path / "lines.txt").write_text("good", encoding="utf-8")
    with pytest.raises(InputError, match=r"images are given, and .* takes none: leave images out"):
        convert_pair(*texts_pair, tmp_path / "pwl", images=tmp_path)
    (tmp_path / "lines.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(DataError, match=r"lines.txt holds no texts, one on each line"):
        convert_pair(*texts_pair, tmp_path / "pwl", num_blocks=3, texts=tmp_path / "lines.txt")
    assert not (tmp_path / "pwl").exists()
    # Into the same folders.
    images = pair({}, {})
    with pytest.raises(InputError, match=r"texts are given, and .* takes none: leave texts out"):
        convert_pair(*images, tmp_path / "pwl", texts=tmp_path / "lines.txt")


def test_a_task_that_the_config_does_not_tell_is_asked_for(texts_pair, tmp_path):
    for folder in texts_pair:
        network = AutoModel.from_pretrained(folder)
        network.save_pretrained(folder)
    with pytest.raises(InputError, match=r"of several tasks: .* one of text-classification, token-classification"):
        convert_pair(*texts_pair, tmp_path / "pwl", num_blocks=3, allow_new_head=True)
    with pytest.raises(InputError, match="there is no task 'tagging'"):
        convert_pair(*texts_pair, tmp_path / "pwl", num_blocks=3, task="tagging")
    model = convert_pair(*texts_pair, tmp_path / "pwl", num_blocks=3, allow_new_head=True, task="token-classification")
    assert type(model) is PWLForTokenClassification


def test_a_student_that_shares_the_embedder_is_joined_and_another_is_refused(pair, tmp_path, monkeypatch, capsys):
    teacher, _ = tiny_pair("vit")
    networks = pair({}, {"hidden_size": teacher.hidden_size, "intermediate_size": 48})
    command = ["pwl-hf", "convert", *networks, "--share-embedder", "-o", str(tmp_path / "pwl")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None), capsys.readouterr()
    model = PWLForImageClassification.from_pretrained(tmp_path / "pwl")
    assert model.config.share_embedder
    assert (tmp_path / "pwl" / "teacher" / "shared-with-student.safetensors").is_file()
    # A config that says otherwise is another model's.
    with pytest.raises(RepositoryError, match=r"lacks tensor 'student.vit.embeddings.cls_token'"):
        PWLForImageClassification.from_pretrained(tmp_path / "pwl", share_embedder=False)
    networks = pair({}, {})
    with pytest.raises(StrictDataclassError, match="networks of one width, got 24 for the teacher and 16 for the"):
        convert_pair(*networks, tmp_path / "narrow", share_embedder=True)
    assert not (tmp_path / "narrow").exists()
