"""The model card: rendered from the manifest, and careful with what people wrote."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from pwl_hf import Metric
from pwl_hf.model_card import human_bytes, stage_rows, write_card
from pwl_hf.modeling.saving import write_metrics
from tests.tiny import tiny_model


@pytest.fixture
def folder(tmp_path):
    tiny_model("vit").save_pretrained(tmp_path)
    return tmp_path


def _measure(folder):
    return write_metrics(folder, {k: [Metric("accuracy", 0.5 + k / 10, "org/animals", "test", 100)] for k in range(5)})


def test_card_has_a_row_a_stage_and_its_metadata(folder):
    manifest = _measure(folder)
    card = ModelCard.load(write_card(folder, repo_id="org/pwl-vit", card_data={"license": "mit"}))
    for row in stage_rows(manifest):
        start = f"| {row['stage']} | `{row['sources']}` | {human_bytes(row['bytes'])} "
        assert f"{start}| {human_bytes(row['total_bytes'])} | {row['metrics']['accuracy']:.4f} |" in card.text
    assert card.data.library_name == "pwl-hf"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.datasets == ["org/animals"]
    assert card.data.license == "mit"
    assert "pwl" in card.data.tags
    results = card.data.eval_results
    assert [r.metric_value for r in results] == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert results[2].metric_name == "accuracy, stage 2 (TTSS)"
    assert 'from_pretrained("org/pwl-vit")' in card.text


def test_card_without_metrics_says_so(folder):
    text = write_card(folder).read_text()
    assert "not measured" in text
    assert "model-index" not in text


def test_card_keeps_what_people_wrote(folder):
    path = write_card(folder, card_data={"license": "mit"})
    text = path.read_text().replace("# ", "# My model\n\nMy words.\n\n# ", 1)
    path.write_text(text + "\n## Thanks\n\nTo all.\n")
    _measure(folder)
    new = write_card(folder).read_text()
    assert "My words." in new
    assert "To all." in new
    assert "0.7000" in new
    assert new.count("## Stages") == 1
    assert "license: mit" in new


def test_card_of_ones_own_is_kept_and_completed(folder):
    (folder / "README.md").write_text("---\nlicense: bsd\ntags: [birds]\n---\n# Birds\n\nAll mine.\n")
    card = ModelCard.load(write_card(folder))
    assert "All mine." in card.text
    assert "## Stages" in card.text
    assert card.data.license == "bsd"
    assert {"birds", "pwl"} <= set(card.data.tags)


def test_card_twice_is_the_same_card(folder):
    first = write_card(folder).read_text()
    assert write_card(folder).read_text() == first


def test_licence_and_base_model_come_from_the_teacher(hub, repo_id, folder):
    hub.store.create_repo(repo_id)
    hub.store.commit(repo_id, {"README.md": b"---\nlicense: apache-2.0\n---\n# Teacher\n"}, "card")
    model = tiny_model("vit", base_model=repo_id)
    model.save_pretrained(folder)
    card = ModelCard.load(write_card(folder))
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == repo_id


def test_card_of_a_pushed_model_is_updated_in_place(hub, repo_id, folder):
    model = tiny_model("vit")
    model.push_to_hub(repo_id, tags=["birds"])
    text = hub.store.files(repo_id)["README.md"].decode()
    assert "- birds" in text
    hub.store.commit(repo_id, {"README.md": text.replace("# tester", "Words.\n\n# tester").encode()}, "words")
    model.push_to_hub(repo_id)
    text = hub.store.files(repo_id)["README.md"].decode()
    assert "Words." in text
    assert "- birds" in text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (10**13, "10.0 TB")]
)
def test_sizes_are_readable(size, text):
    assert human_bytes(size) == text
