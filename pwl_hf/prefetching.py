"""Fetching what a model needs before anything else is imported (no torch)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

from pwl_hf.modeling.errors import MissingFileError
from pwl_hf.modeling.graphs.index import attached_graphs
from pwl_hf.modeling.repository.background import Prefetch
from pwl_hf.modeling.repository.manifest import CONFIG_FILE, PROCESSOR_FILE
from pwl_hf.modeling.repository.retrying import RetryPolicy
from pwl_hf.modeling.repository.source import Repository, import_client_for


def prefetch(
    repo: str | os.PathLike[str],
    stage: int | str = 0,
    *,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    retry: RetryPolicy | None = None,
) -> Prefetch[None]:
    """Begin to fetch what a model needs at a stage, into the Hub's cache, and go on at once.

    For the time that imports take: what `from_pretrained` or `runtime.load` then asks for with the same arguments is
    there, or on its way, and never fetched twice. Faults are theirs to meet: nothing is raised here. Of a folder its
    files are compared with their hashes, so that this need not be done again.

    Args:
        repo: A Hub id or a folder.
        stage: The stage, or `"teacher"`.
        revision: Branch, tag or commit.
        subfolder: Where in the repository the model lies.
        token: As in huggingface_hub.
        cache_dir: As in huggingface_hub.
        retry: How long to try when the network fails.

    Returns:
        A handle, which need not be kept: `done`, `exception`, `wait(timeout)`, `cancel()`.

    Example:

        >>> import pwl_hf
        >>> pwl_hf.prefetch("org/pwl-vit")  # doctest: +SKIP
        >>> from pwl_hf import PWLForImageClassification  # meanwhile  # doctest: +SKIP
        >>> model = PWLForImageClassification.from_pretrained("org/pwl-vit")  # doctest: +SKIP
    """
    options: dict[str, Any] = {
        "revision": revision,
        "subfolder": subfolder,
        "token": token,
        "cache_dir": cache_dir,
        "retry": retry or RetryPolicy(),
    }
    import_client_for(repo)
    return Prefetch(lambda cancelled: _fetch(repo, stage, options, cancelled)).start()


def _fetch(repo: str | os.PathLike[str], stage: int | str, options: dict[str, Any], cancelled: Event) -> None:
    repository = Repository.open(repo, **options)
    manifest = repository.manifest()
    mask = manifest.schedule.mask(stage)
    with Prefetch(lambda ended: _fetch_texts(repository, ended)) as texts:
        # Graphs are small beside the weights, and fetched while these are.
        repository.verify(
            [*repository.files_for(manifest, mask), *attached_graphs(manifest, [mask])], cancelled=cancelled
        )
        texts.result()


def _fetch_texts(repository: Repository, cancelled: Event) -> None:
    for path in (CONFIG_FILE, PROCESSOR_FILE):
        with suppress(MissingFileError):
            repository.fetch(path, cancelled=cancelled)
