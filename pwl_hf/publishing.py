"""Publishing a repository on the Hub: one commit, that sends only what the Hub does not have.

A weight file that the Hub has already, in this repository or in the one the model came from, is never sent
again: at the same path it is left alone, elsewhere it is copied on the server. Files of an earlier layout
are removed in the same commit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from pwl_hf.endpoints import PROCESSOR_FILE, REQUIREMENTS_FILE, endpoint_files
from pwl_hf.model_card import CARD_FILE, render_card
from pwl_hf.modeling.errors import PublishError
from pwl_hf.modeling.manifest import MANIFEST_FILE, FileEntry, Manifest, is_owned
from pwl_hf.modeling.repository import Repository
from pwl_hf.modeling.retrying import RetryPolicy, is_passing
from pwl_hf.modeling.verification import check_file

if TYPE_CHECKING:
    from pwl_hf.modeling.modeling_pwl import PWLForImageClassification

# What travels in a folder besides weights, manifest and card.
_TEXT_FILES = ("*.json", "*.py", "teacher/*.json", "teacher/*.py")


@dataclass(frozen=True)
class Target:
    """Where and how to publish, in transformers' terms.

    Args:
        repo_id: The Hub id; without a namespace, the token's user's.
        commit_message: The commit's title.
        commit_description: The commit's text.
        private: Make a new repository private; an existing one stays as it is.
        token: As in huggingface_hub.
        revision: The branch, made if it does not exist.
        create_pr: Open a pull request rather than commit to the branch.
        card_data: Metadata for the model card, such as `{"license": "mit"}`, over what is found.
        retry: How long to try when the network fails.
        inference_handler: Add what Inference Endpoints look for: `handler.py` and its `requirements.txt`.
    """

    repo_id: str
    commit_message: str = "Upload PWL model"
    commit_description: str | None = None
    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False
    card_data: Mapping[str, Any] | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    inference_handler: bool = False


def push_model(model: PWLForImageClassification, target: Target) -> CommitInfo:
    """Publish a model from whatever stage it is at.

    Shards that were never pulled are copied on the server; where it refuses, they are downloaded and sent.

    Raises:
        RepositoryError: If a file that must be sent is not what the manifest says.
        PublishError: If the network or the Hub fails in every try.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses.
    """
    from pwl_hf.modeling.saving import new_manifest, plan_files, text_files, write_tensors

    with tempfile.TemporaryDirectory() as folder:
        # What is published is of one stage; it is sent when the model may go on.
        with model._lock:
            source = model._store.repository if model._store is not None else None
            entries: list[FileEntry] = []
            written: dict[str, Path] = {}
            for planned in plan_files(model):
                if planned.tensors is None and planned.entry is not None:
                    entries.append(planned.entry)
                    continue
                if planned.tensors is None:
                    raise RuntimeError(f"{planned.path!r} was planned without contents")
                target_path = written[planned.path] = Path(folder, planned.path)
                entries.append(write_tensors(target_path, planned.path, planned.tensors(), planned.parameters))
            manifest = new_manifest(model, entries)
            texts = {path: text.encode() for path, text in text_files(model, manifest).items()}
        return _commit(target, manifest, written, texts, source)


def push_folder(directory: str | Path, target: Target) -> CommitInfo:
    """Publish a saved repository as it is, after checking every weight file against the manifest.

    Raises:
        RepositoryError: If the folder is not a whole PWL repository.
        PublishError: If the network or the Hub fails in every try.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses.
    """
    source = Repository.open(directory)
    manifest = source.manifest()
    files = source.fetch_verified(manifest.files)
    found = {path for pattern in _TEXT_FILES for path in Path(directory).glob(pattern) if path.name != MANIFEST_FILE}
    texts = {path.relative_to(directory).as_posix(): path.read_bytes() for path in sorted(found)}
    return _commit(target, manifest, files, texts, source)


def _commit(
    target: Target,
    manifest: Manifest,
    files: Mapping[str, Path],
    texts: Mapping[str, bytes],
    source: Repository | None,
) -> CommitInfo:
    # From the start in each try: what went through before is found to be there, and not sent again.
    def attempt() -> CommitInfo:
        try:
            return _commit_once(target, manifest, files, texts, source)
        except (httpx.TransportError, HfHubHTTPError) as error:
            if not target.create_pr or not _may_have_committed(error):
                raise
            # The same commit again would find itself on a branch; a pull request would be opened twice.
            raise PublishError(
                f"{target.repo_id}: the Hub's answer about the pull request was lost; look there whether it was "
                f"opened, and push again if not ({type(error).__name__}: {error})"
            ) from error

    try:
        return target.retry.run(attempt)
    except Exception as error:
        if not is_passing(error):
            raise
        raise PublishError(
            f"{target.repo_id} could not be pushed to: the network or the Hub failed in every try; the same call "
            f"later goes on from here ({type(error).__name__}: {error})"
        ) from error


def _may_have_committed(error: Exception) -> bool:
    """Whether a commit was asked for, and nobody knows what became of it."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return False
    if isinstance(error, HfHubHTTPError):
        # A gateway that lost the server behind it.
        return error.response.status_code in (502, 504) and "/commit/" in error.response.request.url.path
    return isinstance(error, httpx.RequestError) and "/commit/" in error.request.url.path


def _commit_once(
    target: Target,
    manifest: Manifest,
    files: Mapping[str, Path],
    texts: Mapping[str, bytes],
    source: Repository | None,
) -> CommitInfo:
    api = HfApi(token=target.token)
    repo_id = api.create_repo(target.repo_id, private=target.private, exist_ok=True).repo_id
    if target.revision is not None and not target.revision.startswith("refs/pr/"):
        api.create_branch(repo_id, branch=target.revision, exist_ok=True)
    remote = _remote_files(api, repo_id, target.revision)
    card = render_card(
        manifest,
        texts,
        repo_id=repo_id,
        existing=_read_text(api, repo_id, target.revision, CARD_FILE) if CARD_FILE in remote else None,
        card_data=target.card_data,
        token=target.token,
    )
    contents = {**texts, CARD_FILE: card.encode(), MANIFEST_FILE: manifest.to_json().encode()}
    if target.inference_handler:
        if PROCESSOR_FILE not in {*texts, *remote}:
            raise ValueError(
                f"the inference handler needs an image processor, and there is no {PROCESSOR_FILE}: save one into the "
                f"folder, or push one to {repo_id}, first"
            )
        there = _read_text(api, repo_id, target.revision, REQUIREMENTS_FILE) if REQUIREMENTS_FILE in remote else ""
        contents |= {path: text.encode() for path, text in endpoint_files(there).items()}
    stale = sorted(path for path in remote if _is_stale(path, manifest))
    others: list[Any] = [CommitOperationAdd(path, content) for path, content in contents.items()]
    others += [CommitOperationDelete(path) for path in stale]
    weights = [
        _weight_operation(entry, files.get(entry.path), source, repo_id)
        for entry in manifest.files
        if remote.get(entry.path) != entry.sha256
    ]
    options: dict[str, Any] = {
        "commit_message": target.commit_message,
        "commit_description": target.commit_description,
        "revision": target.revision,
        "create_pr": target.create_pr,
    }
    try:
        return api.create_commit(repo_id, [*weights, *others], **options)
    except (HfHubHTTPError, EntryNotFoundError, ValueError) as error:
        # The server cannot copy between these two repositories: send the files instead.
        has_copies = any(isinstance(operation, CommitOperationCopy) for operation in weights)
        if source is None or not has_copies or is_passing(error):
            raise
        by_path = {entry.path: entry for entry in manifest.files}
        weights = [
            CommitOperationAdd(operation.path_in_repo, _fetched(source, by_path[operation.path_in_repo]))
            for operation in weights
        ]
        return api.create_commit(repo_id, [*weights, *_renewed(others)], **options)


def _weight_operation(
    entry: FileEntry, local: Path | None, source: Repository | None, repo_id: str
) -> CommitOperationAdd | CommitOperationCopy:
    if local is not None:
        return CommitOperationAdd(entry.path, local)
    if source is None:
        raise RuntimeError(f"{entry.path!r} is neither written nor in a repository")
    cached = source.local(entry.path)
    if cached is not None:
        check_file(cached, entry, str(source))
        return CommitOperationAdd(entry.path, cached)
    elsewhere: dict[str, Any] = {} if source.name == repo_id else {"src_repo_id": source.name, "src_repo_type": "model"}
    return CommitOperationCopy(source.path_in_repo(entry.path), entry.path, src_revision=source.commit, **elsewhere)


def _fetched(source: Repository, entry: FileEntry) -> Path:
    return source.fetch_verified([entry])[entry.path]


def _renewed(operations: list[Any]) -> list[Any]:
    # An operation remembers what was done with it; a second commit needs new ones.
    return [
        CommitOperationAdd(o.path_in_repo, o.path_or_fileobj) if isinstance(o, CommitOperationAdd) else o
        for o in operations
    ]


def _remote_files(api: HfApi, repo_id: str, revision: str | None) -> dict[str, str | None]:
    """Path -> sha256 (None for files that git itself keeps) of what is there."""
    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    return {item.path: item.lfs.sha256 if item.lfs else None for item in tree if isinstance(item, RepoFile)}


def _read_text(api: HfApi, repo_id: str, revision: str | None, path: str) -> str:
    return Path(api.hf_hub_download(repo_id, path, revision=revision)).read_text(encoding="utf-8")


def _is_stale(path: str, manifest: Manifest) -> bool:
    return is_owned(path) and manifest.get(path) is None
