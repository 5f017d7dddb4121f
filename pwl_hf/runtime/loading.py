"""Loading a model for onnxruntime: what it needs is fetched and checked while onnxruntime is imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from pwl_hf.modeling.errors import RepositoryError
from pwl_hf.modeling.graphs.index import INDEX_FILE, GraphIndex, attached_graphs
from pwl_hf.modeling.repository.background import Prefetch
from pwl_hf.modeling.repository.manifest import Manifest
from pwl_hf.modeling.repository.processing import fetch_those_there
from pwl_hf.modeling.repository.retrying import RetryPolicy
from pwl_hf.modeling.repository.source import Repository, Verified, import_client_for
from pwl_hf.modeling.sources import Sources
from pwl_hf.modeling.task_names import TOKENIZER_FILE
from pwl_hf.runtime.settings import CPU, Provider, Settings

if TYPE_CHECKING:
    import onnxruntime

    from pwl_hf.runtime.model import RuntimeModel


def load(
    repo: str | os.PathLike[str],
    *,
    stage: int | str = 0,
    stream: bool = False,
    on_stage: Callable[[RuntimeModel, int], None] | None = None,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    retry: RetryPolicy | None = None,
    providers: Sequence[Provider] = CPU,
    threads: int | None = None,
    session_options: Callable[[], onnxruntime.SessionOptions] | None = None,
) -> RuntimeModel:
    """Load a model at a stage from a folder or the Hub, to be run by onnxruntime.

    The repository must have graphs (`pwl-hf export`). Every file comes from one commit, also when the branch has moved
    since, and is compared with its sha256 before it is used.

    Args:
        repo: A folder or a Hub id.
        stage: 0 (the student) to the last, or `"teacher"` for the last.
        stream: Start loading the later stages in the background at once (see `RuntimeModel.stream_stages`).
        on_stage: For that stream: called with the model and the stage after each swap, in the background thread.
        revision: Branch, tag or commit.
        subfolder: Where in the repository the model lies.
        token: As in huggingface_hub.
        cache_dir: As in huggingface_hub.
        local_files_only: As in huggingface_hub.
        force_download: As in huggingface_hub.
        retry: How long to try when the network fails, now and at later stages.
        providers: onnxruntime's execution providers by its names, in the order in which they are tried; a pair of a
            name and a mapping gives one options.
        threads: The threads that a call runs on; as many as there are cores by default.
        session_options: A function that makes an `onnxruntime.SessionOptions`, for each graph anew: it cannot be
            copied, and each session's gets the graph's weights. It is taken as it is, but for `threads`; without it
            threads do not spin between runs, as each graph has its own.

    Raises:
        ValueError: For a stage that does not exist, or settings that cannot be.
        InputError: A ValueError, for a provider that the installed onnxruntime lacks, or that does not come up.
        RepositoryError: If the repository has no graphs or is malformed, by file; if a file is not what it says.
        FetchError: If a file cannot be downloaded, after all tries.
        ImportError: If onnxruntime is not installed.

    Example:

        >>> model = load("org/pwl-vit", stream=True)  # doctest: +SKIP
        >>> model.predict("cat.jpg", top_k=1)  # doctest: +SKIP
        [{'label': 'tabby', 'score': 0.9312}]
    """
    settings = Settings.of(providers, threads, session_options)
    if on_stage is not None and not stream:
        raise ValueError("on_stage is for a stream: give stream=True as well, or give it to stream_stages")
    options: dict[str, Any] = {
        "revision": revision,
        "subfolder": subfolder,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "force_download": force_download,
        "retry": retry or RetryPolicy(),
    }
    import_client_for(repo)
    with Prefetch(lambda cancelled: _fetch(repo, stage, options, cancelled)) as fetched:
        try:
            settings.check()
            from pwl_hf.runtime.chain import Graphs
            from pwl_hf.runtime.model import RuntimeModel
        except ModuleNotFoundError as error:
            raise ImportError(
                f'pwl_hf.runtime needs {error.name}, which is not installed: pip install "pwl-hf[runtime]"',
                name=error.name,
            ) from error
        found = fetched.result()
    model = RuntimeModel(Graphs(found.repository, found.manifest, found.index, settings, found.files), found.sources)
    if stream:
        model.stream_stages(on_stage=on_stage)
    return model


@dataclass(frozen=True)
class _Fetched:
    """What a stage needs, checked."""

    repository: Repository
    manifest: Manifest
    index: GraphIndex
    sources: Sources
    files: Mapping[str, Verified]


def _fetch(repo: str | os.PathLike[str], stage: int | str, options: Mapping[str, Any], cancelled: Event) -> _Fetched:
    repository = Repository.open(repo, **options)
    manifest = repository.manifest()
    sources = manifest.schedule.mask(stage)
    graphs = attached_graphs(manifest, [sources])
    if not graphs:
        raise RepositoryError(
            f"{repository} has no ONNX graphs, which onnxruntime needs: add them with `pwl-hf export {repository.name}`"
        )
    # At once, rather than the index first: what a stage needs is told by its mask.
    files = repository.verify([*graphs, *repository.files_for(manifest, sources)], cancelled=cancelled)
    index = GraphIndex.from_json(files[INDEX_FILE][0].read_bytes(), manifest)
    if index.tokenizer is not None:
        # Now, so that it is in the cache: texts need it, arrays do not.
        fetch_those_there((TOKENIZER_FILE,), repository.fetch_text)
    return _Fetched(repository, manifest, index, sources, files)
