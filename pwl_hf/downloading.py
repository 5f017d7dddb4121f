"""Downloading the files of the first stages ahead of time, for container images (no torch)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pwl_hf.modeling.graphs.index import TEACHER_GRAPH, attached_graphs
from pwl_hf.modeling.repository.files import copy_file, sha256_of, write_bytes
from pwl_hf.modeling.repository.layout import CONFIG_FILE, MANIFEST_FILE
from pwl_hf.modeling.repository.output_folder import check_output, exclusive_folder
from pwl_hf.modeling.repository.processing import fetch_those_there, processing_names
from pwl_hf.modeling.repository.source import Repository


def download_stages(
    repo: str,
    stage: int | str,
    *,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_dir: str | Path | None = None,
    overwrite: bool = False,
) -> tuple[Path, int, int]:
    """Fetch and check everything that stages 0 to `stage` need, graphs too where the repository has them.

    Afterwards `from_pretrained(repo, stage=k)`, `runtime.load(repo, stage=k)` and `load_next_stage()` work up to that
    stage without the network, from the cache or from `local_dir`.

    Args:
        repo: The Hub id.
        stage: The last stage, or `"teacher"`.
        revision: Branch, tag or commit.
        subfolder: Where in the repository the model lies.
        token: As in huggingface_hub.
        cache_dir: As in huggingface_hub.
        local_dir: A folder to put the files into as well; nothing in it is removed.
        overwrite: Write over files in `local_dir` that are not a PWL repository's.

    Returns:
        The folder, the bytes and the number of the weight files.

    Raises:
        ValueError: If there is no such stage.
        RepositoryError: If a file is not what the manifest says.
        OverwriteError: If files in `local_dir` would be written over that are not a PWL repository's.
        SaveError: If a copy in `local_dir` is not what it is a copy of.

    Example:

        >>> from pwl_hf.downloading import download_stages
        >>> download_stages("org/pwl-vit", 1, local_dir="model")  # doctest: +SKIP
        (PosixPath('model'), 25165824, 3)
    """
    opened = Repository.open(repo, revision=revision, subfolder=subfolder, token=token, cache_dir=cache_dir)
    manifest = opened.manifest()
    last = manifest.schedule.stage_of(manifest.schedule.mask(stage)) or 0
    weights = [entry for part in manifest.stages[: last + 1] for entry in part.files]
    graphs = attached_graphs(manifest, manifest.schedule.masks[: last + 1])
    if last == manifest.num_stages:
        graphs += tuple(entry for entry in manifest.attachments if entry.path == TEACHER_GRAPH)
    entries = [*weights, *graphs]
    # 1. Everything into the cache, compared with the manifest or with what the Hub says it is.
    local = opened.fetch_verified(entries)
    texts = {CONFIG_FILE: opened.fetch_text(CONFIG_FILE)}
    # A pipeline wants them besides the model.
    texts |= fetch_those_there(processing_names(texts[CONFIG_FILE]), opened.fetch_text)
    # The manifest last: a folder without one is not taken for a model.
    texts[MANIFEST_FILE] = opened.fetch_text(MANIFEST_FILE)
    place = opened.fetch(CONFIG_FILE).parent
    # 2. Copies, which are compared as well.
    if local_dir is not None:
        place = Path(local_dir)
        expected = {entry.path: entry.sha256 for entry in entries}
        expected |= {path: hashlib.sha256(content).hexdigest() for path, content in texts.items()}
        # Writing a file over itself, as after a download that was cut short, loses nothing.
        new = [path for path, sha256 in expected.items() if not _is_there(place / path, sha256)]
        check_output(place, new, overwrite=overwrite)
        place.mkdir(parents=True, exist_ok=True)
        with exclusive_folder(place):
            for path, found in local.items():
                copy_file(found.resolve(), place / path, expected[path])
            for path, content in texts.items():
                write_bytes(place / path, content)
    return place, sum(entry.bytes for entry in weights), len(weights)


def _is_there(local: Path, sha256: str) -> bool:
    return local.is_file() and not local.is_symlink() and sha256_of(local) == sha256
