"""Fetching the files of the first stages ahead of time, for images and containers (no torch)."""

from __future__ import annotations

from pathlib import Path

from pwl_hf.modeling.errors import RepositoryError
from pwl_hf.modeling.files import copy_file
from pwl_hf.modeling.manifest import MANIFEST_FILE
from pwl_hf.modeling.repository import Repository
from pwl_hf.modeling.sources import Sources

# Fetched if they are there: what a pipeline wants besides the model.
_OPTIONAL = ("preprocessor_config.json",)


def download_stages(
    repo: str,
    stage: int | str,
    *,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_dir: str | Path | None = None,
) -> tuple[Path, int, int]:
    """Fetch and check everything that stages 0 to `stage` need.

    Afterwards `from_pretrained(repo, stage=k)` and `load_next_stage()` work up to that stage without the
    network, from the cache or from `local_dir`.

    Args:
        repo: The Hub id.
        stage: The last stage, or `"teacher"`.
        revision: Branch, tag or commit.
        subfolder: Where in the repository the model lies.
        token: As in huggingface_hub.
        cache_dir: As in huggingface_hub.
        local_dir: A folder to put the files into as well.

    Returns:
        The folder, the bytes and the number of the weight files.

    Raises:
        ValueError: If there is no such stage.
        RepositoryError: If a file is not what the manifest says.

    Example:

        >>> from pwl_hf.downloading import download_stages
        >>> download_stages("org/pwl-vit", 1, local_dir="model")  # doctest: +SKIP
        (PosixPath('model'), 25165824, 3)
    """
    opened = Repository.open(repo, revision=revision, subfolder=subfolder, token=token, cache_dir=cache_dir)
    manifest = opened.manifest()
    last = manifest.num_stages if stage == "teacher" else stage
    if not isinstance(last, int):
        raise ValueError(f"stage must be a whole number from 0 to {manifest.num_stages} or 'teacher', got {stage!r}")
    Sources.prefix(last, manifest.num_stages)
    entries = [entry for part in manifest.stages[: last + 1] for entry in part.files]
    found = opened.fetch_verified(entries)
    found["config.json"] = opened.fetch("config.json")
    for path in _OPTIONAL:
        try:
            found[path] = opened.fetch(path)
        except RepositoryError:
            continue
    # The manifest last: a folder without one is not taken for a model.
    found[MANIFEST_FILE] = opened.fetch(MANIFEST_FILE)
    place = found["config.json"].parent
    if local_dir is not None:
        place = Path(local_dir)
        for path, local in found.items():
            copy_file(local.resolve(), place / path)
    return place, sum(entry.bytes for entry in entries), len(entries)
