"""Every kind of source, opened: what is found, what is downloaded, which rows are chosen, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi

from pwl_hf.data import DataError, DataSource, open_split
from pwl_hf.data.digits import LABELS, load_splits
from tests.data.pictures import NAMES, numbers_of, picture, plain_parquet, processor, table


def numbers(split) -> list[int]:
    """Which pictures a split holds, in its order."""
    return numbers_of(split.pixels(processor(), keep_in_memory=True).inputs["pixel_values"])


@pytest.fixture
def parquet_folder(tmp_path):
    """Rows 0-11 to train on, 20-23 to test on."""
    table(range(12)).to_parquet(tmp_path / "train.parquet")
    table(range(20, 24)).to_parquet(tmp_path / "test.parquet")
    return tmp_path


@pytest.fixture
def dataset_id(hub, repo_id, parquet_folder):
    """The same on the Hub, in a private repository, with a second configuration of fewer rows."""
    table(range(40, 43)).to_parquet(parquet_folder / "small-train.parquet")
    (parquet_folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- {config_name: default, data_files: [{split: train, path: train.parquet}, {split: test, path: test.parquet}]}"
        "\n- {config_name: small, data_files: [{split: train, path: small-train.parquet}]}\n"
        "---\n"
    )
    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset", private=True)
    api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=parquet_folder)
    return repo_id


@pytest.fixture
def image_folder(tmp_path):
    """Two classes to train on, one of them to test on."""
    for split, owners in (("train", (("owl", (1, 2)), ("cat", (3, 4)))), ("test", (("owl", (5,)),))):
        for name, pictures in owners:
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for number in pictures:
                picture(number).save(folder / f"{number}.png")
    return tmp_path / "pets"


def test_digits_are_a_source_with_their_own_split():
    for name, expected in zip(("train", "test"), load_splits(), strict=True):
        split = open_split(DataSource("digits"), name)
        assert (split.num_rows, split.label_names) == (len(expected.images), list(LABELS))
        assert split.labels.tolist() == expected.labels
        item = split.pixels(processor(8))[7]
        shown = torch.from_numpy(np.array(expected.images[7])) / 255
        torch.testing.assert_close(item["pixel_values"], shown.expand(3, 8, 8))


@pytest.mark.parametrize("name", ["", "*.parquet", "test.parquet"])
def test_parquet_folder_glob_and_file(parquet_folder, name):
    split = open_split(DataSource(str(parquet_folder / name)), "test")
    assert (split.label_names, split.column, split.label_column) == (NAMES, "image", "label")
    assert split.labels.tolist() == [2, 0, 1, 2]
    assert numbers(split) == [20, 21, 22, 23]


def test_shards_of_a_split_come_in_order_and_other_names_are_training_data(tmp_path):
    for name, rows in (("part-0", [1, 2]), ("part-1", [3]), ("my_eval_2", [9])):
        table(rows).to_parquet(tmp_path / f"{name}.parquet")
    source = DataSource(str(tmp_path / "*.parquet"))
    assert numbers(open_split(source, "train")) == [1, 2, 3]
    assert numbers(open_split(source, "test")) == [9]


def test_parquet_of_other_programs_has_its_bytes_read_as_images(tmp_path):
    path = plain_parquet(tmp_path / "train.parquet", [5, 6, 7], ["owl", "cat", "owl"])
    split = open_split(DataSource(str(path)), "train")
    assert (split.label_names, split.labels.tolist()) == (["cat", "owl"], [1, 0, 1])
    assert numbers(split) == [5, 6, 7]
    split = open_split(DataSource(str(path), label_names=["owl", "dog", "cat"]), "train")
    assert (split.label_names, split.labels.tolist()) == (["owl", "dog", "cat"], [0, 2, 0])


def test_folder_of_images_has_the_labels_of_all_its_splits(image_folder):
    split = open_split(DataSource(str(image_folder)), "test")
    assert (split.label_names, split.labels.tolist(), numbers(split)) == (["cat", "owl"], [1], [5])
    train = open_split(DataSource(str(image_folder)), "train")
    assert sorted(zip(train.labels.tolist(), numbers(train), strict=True)) == [(0, 3), (0, 4), (1, 1), (1, 2)]


def test_flat_folder_of_images_has_no_labels(tmp_path):
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    split = open_split(DataSource(str(tmp_path)), "train")
    assert (split.label_names, split.label_column, split.labels) == (None, None, None)
    items = split.pixels(processor())
    assert set(items[0]) == {"pixel_values", "sample_ids"}
    assert numbers(split) == [0, 1, 2]
    with pytest.raises(DataError, match="has no labels, and label_names were given"):
        open_split(DataSource(str(tmp_path), label_names=["a"]), "train")


def test_hub_data_and_its_configurations(dataset_id):
    split = open_split(DataSource(dataset_id), "test")
    assert (split.label_names, numbers(split)) == (NAMES, [20, 21, 22, 23])
    assert numbers(open_split(DataSource(dataset_id), "train")) == list(range(12))
    assert numbers(open_split(DataSource(dataset_id, config="small"), "train")) == [40, 41, 42]
    with pytest.raises(ValueError, match=r"large.*Available.*default.*small"):
        open_split(DataSource(dataset_id, config="large"), "train")


def test_hub_data_without_its_split_downloads_nothing(hub, dataset_id):
    with hub.log.record() as requests, pytest.raises(DataError, match=r"has no split 'val'; it has 'train', 'test'"):
        open_split(DataSource(dataset_id), "val")
    assert not [request for request in requests if (request.file or "").endswith(".parquet")]


def test_hub_data_at_a_revision(dataset_id, parquet_folder):
    api = HfApi()
    api.create_tag(dataset_id, tag="v1", repo_type="dataset")
    table([77]).to_parquet(parquet_folder / "train.parquet")
    api.upload_file(
        path_or_fileobj=parquet_folder / "train.parquet",
        path_in_repo="train.parquet",
        repo_id=dataset_id,
        repo_type="dataset",
    )
    assert numbers(open_split(DataSource(dataset_id), "train")) == [77]
    assert len(numbers(open_split(DataSource(dataset_id, revision="v1"), "train"))) == 12


def test_hub_data_needs_the_right_token(dataset_id, other_token):
    with pytest.raises(DataError, match="is no file or folder here, and not to be had from the Hub") as caught:
        open_split(DataSource(dataset_id, token=other_token), "test")
    assert other_token not in str(caught.value)
    assert numbers(open_split(DataSource(dataset_id, token="hf_tester"), "test")) == [20, 21, 22, 23]


@pytest.mark.slow
def test_hub_data_that_was_read_once_is_there_offline(dataset_id, fresh_env):
    code = (
        "import sys; from pwl_hf.data import DataSource, open_split;"
        "print(open_split(DataSource(sys.argv[1]), 'test').labels.tolist())"
    )
    for offline in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code, dataset_id],
            env={**fresh_env, "HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout.strip() == "[2, 0, 1, 2]", done.stderr[-2000:]


def test_hub_data_streams(hub, dataset_id):
    split = open_split(DataSource(dataset_id, streaming=True), "test")
    assert split.num_rows is None
    items = list(split.pixels(processor()))
    assert [numbers_of(item["pixel_values"])[0] for item in items] == [20, 21, 22, 23]
    assert [item["labels"] for item in items] == [2, 0, 1, 2]


def test_folder_of_images_on_the_hub_is_read_whole_or_streamed(hub, repo_id, image_folder, monkeypatch):
    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset", private=True)
    api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=image_folder)
    # The images of a stream are fetched one by one, by the token given.
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    for streaming in (False, True):
        split = open_split(DataSource(repo_id, streaming=streaming, token="hf_tester"), "train")
        found = {(numbers_of(item["pixel_values"])[0], item["labels"]) for item in split.pixels(processor())}
        assert found == {(1, 1), (2, 1), (3, 0), (4, 0)}
        assert split.label_names == ["cat", "owl"]


def test_missing_sources_raise(tmp_path):
    cases = {
        "./nowhere": "there is no file or folder './nowhere', and it is no name of a data set on the Hub",
        "a/b/c": "there is no file or folder 'a/b/c'",
        str(tmp_path / "*.parquet"): "there is no file '.*parquet'",
        "nobody/nothing": "'nobody/nothing' is no file or folder here, and not to be had from the Hub",
        str(tmp_path): "holds no data",
    }
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            open_split(DataSource(name), "train")
    (tmp_path / "notes.txt").write_text("no data")
    with pytest.raises(DataError, match=r"notes.txt' is no file of .parquet, .csv, .json, .jsonl; of other formats"):
        open_split(DataSource(str(tmp_path / "notes.txt")), "train")


def test_options_of_the_hub_are_refused_for_files(parquet_folder):
    with pytest.raises(DataError, match="revision 'main' is for data sets on the Hub"):
        open_split(DataSource(str(parquet_folder), revision="main"), "train")
    with pytest.raises(DataError, match="config 'small' is for data sets and folders"):
        open_split(DataSource(str(parquet_folder / "test.parquet"), config="small"), "test")


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:25%]", [0, 1, 2]),
        ("train[10:]", [10, 11]),
        ("train[-1:]", [11]),
        ("test+train[:2]", [20, 21, 22, 23, 0, 1]),
        (" test ", [20, 21, 22, 23]),
    ],
)
def test_parts_and_sums_of_splits(parquet_folder, split, expected):
    opened = open_split(DataSource(str(parquet_folder)), split)
    assert numbers(opened) == expected
    assert opened.labels.tolist() == [number % 3 for number in expected]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("val", "has no split 'val'; it has '(train', 'test|test', 'train)'"),
        ("train+val[:3]", "has no split 'val'"),
        ("train[:x]", r"split 'train\[:x\]' of .* cannot be read"),
        ("train[5:5]", r"split 'train\[5:5\]' of .* is empty"),
        ("", "has no split ''"),
    ],
)
def test_splits_that_are_not_there_raise(parquet_folder, split, message):
    for name in ("", "*.parquet"):
        with pytest.raises(DataError, match=message):
            open_split(DataSource(str(parquet_folder / name)), split)


def test_streams_have_no_parts(parquet_folder):
    with pytest.raises(DataError, match=r"is streamed, and a stream has no parts and sums: got split 'train\[:3\]'"):
        open_split(DataSource(str(parquet_folder), streaming=True), "train[:3]")


def test_holdout_is_stratified_whole_and_always_the_same():
    source = DataSource("digits", holdout=0.2)
    train, held = open_split(source, "train"), open_split(source, "validation")
    whole = open_split(DataSource("digits"), "train")
    assert train.num_rows + held.num_rows == whole.num_rows
    for digit in range(10):
        assert (held.labels == digit).sum() == round(0.2 * (whole.labels == digit).sum().item())
    encoded = [[row["bytes"] for row in split.data["image"]] for split in (train, held, whole)]
    assert Counter(encoded[0] + encoded[1]) == Counter(encoded[2])
    again = open_split(source, "validation")
    assert [row["bytes"] for row in again.data["image"]] == encoded[1]
    # Parts and sums are of what is left.
    assert open_split(source, "validation[:50%]").num_rows == round(held.num_rows / 2)
    assert open_split(source, "train+validation").num_rows == whole.num_rows
    assert open_split(source, "test").num_rows == 719


def test_holdout_of_unlabelled_images(tmp_path):
    table(range(10), label=None).to_parquet(tmp_path / "train.parquet")
    source = DataSource(str(tmp_path), holdout=0.3)
    parts = numbers(open_split(source, "train")), numbers(open_split(source, "validation"))
    assert [len(part) for part in parts] == [7, 3]
    assert sorted(parts[0] + parts[1]) == list(range(10))


def test_holdout_that_cannot_be_raises(parquet_folder):
    with pytest.raises(DataError, match=r"a holdout of 0.01 leaves one side of the 12 training rows of .* empty"):
        open_split(DataSource(str(parquet_folder), holdout=0.01), "train")
    table(range(4)).to_parquet(parquet_folder / "validation.parquet")
    with pytest.raises(DataError, match="has a split 'validation' of its own: leave out holdout"):
        open_split(DataSource(str(parquet_folder), holdout=0.5), "train")
    (parquet_folder / "train.parquet").unlink()
    (parquet_folder / "validation.parquet").unlink()
    with pytest.raises(DataError, match="has no split 'train'; it has 'test'"):
        open_split(DataSource(str(parquet_folder), holdout=0.5), "test")


def test_samples_are_a_choice_that_grows(parquet_folder):
    source = DataSource(str(parquet_folder), max_samples=4)
    chosen = numbers(open_split(source, "train"))
    assert len(chosen) == 4
    assert chosen == sorted(chosen)
    assert chosen != [0, 1, 2, 3]
    assert numbers(open_split(source, "train")) == chosen
    assert open_split(source, "train").labels.tolist() == [number % 3 for number in chosen]
    assert set(chosen) < set(numbers(open_split(replace(source, max_samples=8), "train")))
    assert numbers(open_split(replace(source, max_samples=100), "train")) == list(range(12))


def test_labels_that_are_none_raise_when_opened(tmp_path):
    path = plain_parquet(tmp_path / "test.parquet", [1, 2, 3], [0, -1, 1])
    source = DataSource(str(path))
    with pytest.raises(DataError, match=r"row 1 of split 'test' of .* has the label -1, which is none of 0, 1; "):
        open_split(source, "test")
    assert open_split(replace(source, unlabelled=True), "test").labels is None


# --- Class folders called by numbers, and other numbers of the labels ------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """Twelve class folders, 0 to 11, the picture of class i in folder i."""
    for number in range(12):
        (tmp_path / "train" / str(number)).mkdir(parents=True)
        picture(number).save(tmp_path / "train" / str(number) / "a.png")
    return tmp_path


@pytest.mark.parametrize("settings", [{}, {"streaming": True}, {"max_samples": 5}])
def test_class_folders_called_by_numbers_are_these_classes(folders, settings):
    split = open_split(DataSource(str(folders), **settings), "train")
    items = list(split.pixels(processor()))
    assert len(items) == settings.get("max_samples", 12)
    assert [item["labels"] for item in items] == [numbers_of(item["pixel_values"])[0] for item in items]


def test_numbers_in_parquet_that_datasets_wrote_from_folders_are_these_classes(folders, tmp_path):
    datasets.load_dataset(str(folders), split="train").to_parquet(tmp_path / "it.parquet")
    split = open_split(DataSource(str(tmp_path / "it.parquet")), "train")
    assert split.label_names == [str(number) for number in range(12)]
    assert split.labels.tolist() == numbers(split)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("pattern", ["", "*.parquet"])
def test_split_has_the_labels_that_its_own_files_name(tmp_path, pattern, streaming):
    table(range(6)).to_parquet(tmp_path / "train.parquet")
    table(range(6), names=NAMES[::-1]).to_parquet(tmp_path / "test.parquet")
    for split, names in (("train", NAMES), ("test", NAMES[::-1])):
        opened = open_split(DataSource(str(tmp_path / pattern), streaming=streaming), split)
        assert opened.label_names == names
        assert [names[item["labels"]] for item in opened.pixels(processor())] == NAMES * 2
    if not streaming:
        with pytest.raises(DataError, match=r"split 'train\+test' of .* parts with other columns or labels"):
            open_split(DataSource(str(tmp_path / pattern)), "train+test")


@pytest.mark.parametrize("pattern", ["", "*.parquet"])
def test_files_of_a_split_that_name_labels_differently_are_refused(tmp_path, pattern):
    table(range(6)).to_parquet(tmp_path / "train-0.parquet")
    table(range(6), names=NAMES[::-1]).to_parquet(tmp_path / "train-1.parquet")
    with pytest.raises(DataError, match=r"column 'label' differently: .*train-0\.parquet has \['cat', .*train-1\.parq"):
        open_split(DataSource(str(tmp_path / pattern)), "train")


@pytest.mark.parametrize("streaming", [False, True])
def test_renumbered_rows_have_the_numbers_that_are_given(tmp_path, streaming):
    table(range(7)).to_parquet(tmp_path / "train.parquet")
    split = open_split(DataSource(str(tmp_path), streaming=streaming), "train")
    other = split.renumbered([2, 0, 1])
    found = [[item["labels"] for item in rows.pixels(processor())] for rows in (split, other)]
    assert found == [[0, 1, 2, 0, 1, 2, 0], [2, 0, 1, 2, 0, 1, 2]]
    if not streaming:
        assert other.labels.tolist() == found[1]
    assert other.label_names is None


def test_stream_of_numbers_is_refused_at_a_label_that_there_is_none_of(tmp_path):
    path = plain_parquet(tmp_path / "it.parquet", range(4), [0, 1, 2, 3])
    split = open_split(DataSource(str(path), streaming=True), "train").renumbered(range(3))
    with pytest.raises(DataError, match=r"row 3 of split 'train' .* has the label 3, which is none of 0, 1, 2"):
        list(split.pixels(processor()))


def test_rows_without_labels_have_none_to_renumber(tmp_path):
    table(range(3), label=None).to_parquet(tmp_path / "train.parquet")
    split = open_split(DataSource(str(tmp_path)), "train").renumbered([1, 0])
    assert (split.labels, split.encoding) == (None, None)
