"""The model card: rendered from the manifest, and careful with what people wrote."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from pwl_hf import Metric, PWLForImageClassification
from pwl_hf.modeling.publishing.model_card import human_bytes, stage_rows, write_card
from pwl_hf.modeling.publishing.saving import write_metrics
from tests.tiny import tiny_config, tiny_model


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


@pytest.mark.parametrize(
    ("problem_type", "said"),
    [
        (None, None),
        ("single_label_classification", None),
        ("multi_label_classification", "An image may have several labels"),
        ("regression", "It is a regression"),
    ],
)
def test_card_says_what_the_scores_are(tmp_path, problem_type, said):
    tiny_model("vit", problem_type=problem_type).save_pretrained(tmp_path)
    text = write_card(tmp_path).read_text()
    for sentence in ("An image may have several labels", "It is a regression"):
        assert (sentence in text) is (sentence == said)


def test_card_shows_the_pipeline_for_rgb_alone(tmp_path):
    for num_channels in (1, 3):
        config = tiny_config("vit")
        for network in (config.teacher_config, config.student_config):
            network.num_channels = num_channels
        PWLForImageClassification(config).save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text("{}")
        text = write_card(tmp_path).read_text()
        assert ("pipeline(" in text) is (num_channels == 3)
        assert ("takes images of 1 channel(s)" in text) is (num_channels == 1)
