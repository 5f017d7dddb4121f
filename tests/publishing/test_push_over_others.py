"""What a push removes and writes over on the Hub: a PWL repository's own files, and nothing else."""

from __future__ import annotations

import logging

import pytest

from pwl_hf import OverwriteError, RepositoryError
from pwl_hf.modeling.publishing.model_card import write_card
from pwl_hf.modeling.publishing.push import Target, push_folder
from tests.hub import Fault
from tests.tiny import tiny_model

INDEX = "pwl_index.json"
# Weights of others, as transformers names them, too.
OTHERS = {
    "pytorch_model.bin": b"mine",
    "model-00001-of-00002.safetensors": b"mine",
    "model.safetensors.index.json": b"{}",
    "teacher/ema.safetensors": b"mine",
    "statistics/old.safetensors": b"mine",
    ".tmpAbCdEf": b"mine",
}


@pytest.fixture
def model():
    return tiny_model("vit", num_stages=2)


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_push_of_another_layout_removes_what_the_manifest_lists_alone(hub, repo_id, model):
    tiny_model("vit", num_stages=3).push_to_hub(repo_id)
    hub.store.commit(repo_id, OTHERS)
    model.push_to_hub(repo_id)
    files = hub.store.files(repo_id)
    assert OTHERS.items() <= files.items()
    assert not [path for path in files if "of-00003" in path]


@pytest.mark.parametrize("path", ["model.safetensors", "config.json", "teacher/config.json"])
def test_push_over_a_repository_that_is_no_pwl_repository_is_refused(hub, repo_id, model, folder, path):
    hub.store.create_repo(repo_id)
    hub.store.commit(repo_id, {path: b"{}", "README.md": b"mine"})
    before = hub.store.head(repo_id)
    for push in (
        lambda: model.push_to_hub(repo_id),
        lambda: push_folder(folder, Target(repo_id)),
        lambda: model.save_pretrained(folder, push_to_hub=True, repo_id=repo_id),
    ):
        with pytest.raises(OverwriteError, match=f"{repo_id} holds {path}, and is no PWL repository.*overwrite=True"):
            push()
    assert hub.store.head(repo_id) == before


def test_overwrite_replaces_and_removes_nothing(hub, repo_id, model):
    hub.store.create_repo(repo_id)
    hub.store.commit(repo_id, {**OTHERS, "model.safetensors": b"mine", "config.json": b"{}"})
    model.push_to_hub(repo_id, overwrite=True)
    files = hub.store.files(repo_id)
    assert OTHERS.items() <= files.items()
    assert files["model.safetensors"] != b"mine"


def test_save_and_push_with_overwrite_writes_over_both(hub, repo_id, model, tmp_path):
    hub.store.create_repo(repo_id)
    hub.store.commit(repo_id, {"config.json": b"{}"})
    (tmp_path / "config.json").write_text("{}")
    model.save_pretrained(tmp_path, push_to_hub=True, repo_id=repo_id, overwrite=True)
    assert hub.store.files(repo_id)["config.json"] == (tmp_path / "config.json").read_bytes() != b"{}"


def test_pull_request_over_a_strangers_repository_is_opened(hub, repo_id, model):
    hub.store.create_repo(repo_id)
    hub.store.commit(repo_id, {"model.safetensors": b"mine"})
    model.push_to_hub(repo_id, create_pr=True)
    assert hub.store.files(repo_id)["model.safetensors"] == b"mine"


def test_repository_with_a_card_and_files_of_the_same_content_is_pushed_to(hub, repo_id, folder):
    hub.store.create_repo(repo_id)
    same = {path: (folder / path).read_bytes() for path in ("config.json", "model.safetensors", "teacher/config.json")}
    hub.store.commit(repo_id, {**same, "README.md": b"---\nlicense: mit\n---\nmine\n", "notes.txt": b"mine"})
    push_folder(folder, Target(repo_id))
    files = hub.store.files(repo_id)
    assert files["notes.txt"] == b"mine"
    assert b"mine" in files["README.md"]


def test_weights_that_the_manifest_on_the_hub_does_not_list_are_not_written_over(hub, repo_id, model):
    tiny_model("vit", num_stages=3).push_to_hub(repo_id)
    path = "teacher/model-00001-of-00002.safetensors"
    hub.store.commit(repo_id, {path: b"mine"})
    with pytest.raises(OverwriteError, match=f"holds {path}, which its {INDEX} does not list"):
        model.push_to_hub(repo_id)
    model.push_to_hub(repo_id, overwrite=True)
    assert hub.store.files(repo_id)[path] != b"mine"


def test_manifest_on_the_hub_that_cannot_be_read_is_mended_and_removes_nothing(hub, repo_id, model):
    tiny_model("vit", num_stages=3).push_to_hub(repo_id)
    before = hub.store.files(repo_id)
    hub.store.commit(repo_id, {INDEX: b"{"})
    model.push_to_hub(repo_id)
    assert before.keys() <= hub.store.files(repo_id).keys()


@pytest.mark.parametrize("name", [INDEX, "README.md"])
def test_file_of_the_hub_that_a_push_builds_upon_is_fetched_again_if_it_was_damaged(hub, repo_id, model, name):
    tiny_model("vit", num_stages=3).push_to_hub(repo_id)
    hub.store.commit(repo_id, {"README.md": b"---\nlicense: mit\n---\n" + b"mine" * 20})
    with hub.faulty(Fault("corrupt", path=f"/resolve/.*{name}$")):
        model.push_to_hub(repo_id)
    files = hub.store.files(repo_id)
    assert b"mine" * 20 in files["README.md"]
    assert not [path for path in files if "of-00003" in path]


def test_handler_of_another_is_not_replaced(hub, repo_id, folder):
    (folder / "preprocessor_config.json").write_text("{}")
    push_folder(folder, Target(repo_id, inference_handler=True))
    hub.store.commit(repo_id, {"handler.py": b"class EndpointHandler: ...\n"})
    with pytest.raises(OverwriteError, match=r"there is a handler\.py that is not this library's"):
        push_folder(folder, Target(repo_id, inference_handler=True))
    assert hub.store.files(repo_id)["handler.py"] == b"class EndpointHandler: ...\n"
    push_folder(folder, Target(repo_id, inference_handler=True, overwrite=True))
    ours = hub.store.files(repo_id)["handler.py"]
    # Ours of an older version is.
    hub.store.commit(repo_id, {"handler.py": ours + b"# older\n"})
    push_folder(folder, Target(repo_id, inference_handler=True))
    assert hub.store.files(repo_id)["handler.py"] == ours


def test_handler_of_another_in_the_folder_is_not_replaced(hub, repo_id, folder):
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "handler.py").write_text("class EndpointHandler: ...\n")
    with pytest.raises(OverwriteError, match=r"handler\.py"):
        push_folder(folder, Target(repo_id, inference_handler=True))
    push_folder(folder, Target(repo_id))
    assert hub.store.files(repo_id)["handler.py"] == b"class EndpointHandler: ...\n"


def test_card_that_is_a_link_out_is_not_copied(folder, tmp_path):
    from pwl_hf.modeling.publishing.model_card import write_card

    (tmp_path / "secret").write_text("mine")
    (folder / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(RepositoryError, match=r"'README\.md' is a link to .*secret"):
        write_card(folder)
    assert (folder / "README.md").is_symlink()


# --- The card -------------------------------------------------------------------------------------------------------


def written(folder, words):
    card = write_card(folder, card_data={"license": "mit"})
    card.write_text(f"{card.read_text(encoding='utf-8')}\n{words}\n", encoding="utf-8")


def test_the_card_of_a_folder_goes_with_it(hub, repo_id, folder):
    written(folder, "What I found.")
    push_folder(folder, Target(repo_id))
    card = hub.store.files(repo_id)["README.md"].decode()
    assert "What I found." in card
    assert "license: mit" in card
    assert f"\n# {repo_id}\n" in card
    assert f'from_pretrained("{repo_id}"' in card


def test_the_card_of_the_hub_stays_and_what_is_not_pushed_is_said(hub, repo_id, folder, caplog):
    written(folder, "First words.")
    push_folder(folder, Target(repo_id))
    with caplog.at_level(logging.WARNING, "pwl_hf"):
        push_folder(folder, Target(repo_id))
        assert "keeps its own" not in caplog.text
        written(folder, "Second words.")
        push_folder(folder, Target(repo_id))
    assert f"{repo_id} keeps its own README.md" in caplog.text
    card = hub.store.files(repo_id)["README.md"].decode()
    assert "First words." in card
    assert "Second words." not in card


@pytest.mark.parametrize("content", [b"\xff\xfe", b"---\n: [no yaml\n---\nwords"])
def test_a_card_that_could_not_be_kept_is_refused_here_and_on_the_hub(hub, repo_id, folder, model, content):
    hub.store.create_repo(repo_id)
    hub.store.commit(repo_id, {"README.md": content})
    with pytest.raises(RepositoryError, match=f"{repo_id}: README.md is no model card that can be kept"):
        model.push_to_hub(repo_id)
    assert hub.store.files(repo_id)["README.md"] == content
    (folder / "README.md").write_bytes(content)
    for use in (lambda: push_folder(folder, Target(f"{repo_id}-2")), lambda: write_card(folder)):
        with pytest.raises(RepositoryError, match=r"README.md is no model card that can be kept: .*move it away"):
            use()
    assert (folder / "README.md").read_bytes() == content
