"""docs/hub.md: the snippet for the Hub works, downloads are counted as it says, and cards are what the Hub reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.repository.layout import MANIFEST_FILE
from pwl_hf.modeling.task_names import TASKS
from tests.docs.pages import DOCS, ROOT, fences
from tests.hub import HubServer
from tests.tiny import tiny_model

PAGE = DOCS / "hub.md"
CARDS = sorted((ROOT / "model_cards").glob("*/README.md"))


def _snippet(repo_id: str) -> str:
    typescript = next(fence.content for fence in fences(PAGE) if "export const" in fence.content)
    (template,) = re.findall(r"`(.*)`,\n\];", typescript, re.DOTALL)
    template = template.replace("${model.id}", repo_id)
    return re.sub(r"\$\{model\.pipeline_tag \?\? \"([a-z-]+)\"\}", r"\1", template)


def test_the_snippet_runs(hub: HubServer, repo_id: str, tmp_path: Path) -> None:
    from transformers import ViTImageProcessorPil

    size = {"height": 16, "width": 16}
    model = tiny_model("vit")
    model.save_pretrained(tmp_path / "saved")
    ViTImageProcessorPil(size=size).save_pretrained(tmp_path / "saved")
    PWLForImageClassification.from_pretrained(tmp_path / "saved").push_to_hub(repo_id)
    namespace: dict[str, object] = {}
    exec(_snippet(repo_id), namespace)
    pipe = namespace["pipe"]
    assert pipe.model.stream.wait(60)  # type: ignore[attr-defined]
    assert pipe.model.stage == 4  # type: ignore[attr-defined]
    assert len(pipe(Image.new("RGB", (16, 16)))) == 5  # type: ignore[operator]


def test_first_load_of_a_commit_asks_for_the_counted_file_once(hub: HubServer, repo_id: str, tmp_path: Path) -> None:
    counted = re.findall(r'countDownloads: `path:"([^"]+)"`', PAGE.read_text(encoding="utf-8"))
    assert counted == [MANIFEST_FILE]
    tiny_model("vit").push_to_hub(repo_id)
    hub.clear_requests()
    model = PWLForImageClassification.from_pretrained(repo_id, cache_dir=tmp_path / "cache")
    model.set_stage("teacher")
    asked = [request for request in hub.requests if request.path.endswith(f"/{MANIFEST_FILE}")]
    assert [request.method for request in asked if request.method == "GET"] == ["GET"]
    hub.clear_requests()
    PWLForImageClassification.from_pretrained(repo_id, cache_dir=tmp_path / "cache")
    assert not [request for request in hub.requests if request.path.endswith(MANIFEST_FILE)]


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_cards_have_metadata_that_the_hub_reads(path: Path) -> None:
    data = ModelCard.load(path, ignore_metadata_errors=False).data
    shown = next(fence.content for fence in fences(PAGE) if fence.language == "yaml")
    assert data.library_name == "pwl-hf"
    assert data.pipeline_tag in {task.pipeline for task in TASKS.values()}
    # The page shows a model of images.
    wanted = [
        tag.replace("image-classification", data.pipeline_tag) for tag in re.findall(r"^- (\S+)$", shown, re.MULTILINE)
    ]
    assert data.tags[:5] == wanted
    assert all(result.dataset_type and result.metric_type == "accuracy" for result in data.eval_results)
