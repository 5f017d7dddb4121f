"""Adding ONNX graphs to a repository, a folder or one of the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pwl_hf.modeling.exporting.exporting import export_onnx
from pwl_hf.modeling.publishing.model_card import CARD_FILE, write_card
from pwl_hf.modeling.publishing.push import push_attachments
from pwl_hf.modeling.publishing.saving import write_attachments
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.opening import open_model

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from pwl_hf.modeling.publishing.push import Target


class ExportReport(NamedTuple):
    """What was exported.

    Args:
        commit: The commit, of a repository of the Hub that got its graphs.
        sizes: The bytes of each file that was added, by path.
        differences: For each stage the largest difference of its logits from torch's, in parts of their range.
    """

    commit: CommitInfo | None
    sizes: Mapping[str, int]
    differences: Mapping[int, float]


def export_repository(
    repo: str,
    output: Path | None = None,
    *,
    target: Target,
    image_size: int | None = None,
    subfolder: str = "",
    overwrite: bool = False,
) -> ExportReport:
    """Export a repository: into another folder, or into itself.

    Args:
        repo: A folder or a Hub id.
        output: A folder that gets the repository with its graphs; by default the repository itself gets them, one of
            the Hub in one commit.
        target: Branch, token and commit texts of a repository of the Hub.
        image_size: The images' height and width; by default what the config or the image processor says.
        subfolder: Where in the repository the model lies.
        overwrite: Write over files in `output` that are not a PWL repository's.

    Raises:
        RepositoryError: If a file is not what the manifest says.
        SaveError: If the model takes what is not exported, a layer cannot be exported, or its graph differs from torch;
            nothing was added.
        PublishError: If the network or the Hub fails in every try.
        ValueError: If the size of the images is told nowhere.
    """
    options: dict[str, Any] = {"revision": target.revision, "subfolder": subfolder, "token": target.token}
    if output is not None:
        differences = open_model(repo, **options).export(output, image_size=image_size, overwrite=overwrite)
        added = Repository.open(output).manifest().attachments
        return ExportReport(None, {entry.path: entry.bytes for entry in added}, differences)
    model: Any = open_model(repo, keep_all=True, dtype=torch.float32, device_map="cpu", **options)
    exported = export_onnx(model.parts, model.main_input_name, image_size=image_size)
    sizes = {path: len(content) for path, content in exported.files.items()}
    source = model.parts.store.repository
    if source.commit is None:
        folder = Path(source.name, subfolder)
        write_attachments(folder, exported.files, exported.manifest)
        if (folder / CARD_FILE).exists():
            write_card(folder, token=target.token)
        return ExportReport(None, sizes, exported.differences)
    commit = push_attachments(source, exported.files, replace(target, repo_id=source.name))
    return ExportReport(commit, sizes, exported.differences)
