"""Publishing a repository on the Hub: one commit, that sends only what the Hub does not have.

A weight file that the Hub has already, in this repository or in the one the model came from, is never sent
again: at the same path it is left alone, elsewhere it is copied on the server. Weight files that the manifest on
the Hub lists and the new one does not are removed in the same commit; nothing else ever is. Files of a repository
that is no PWL repository are written over only if that was asked for.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from ..errors import FetchError, OverwriteError, PublishError, RepositoryError
from ..repository.layout import CONFIG_FILE, MANIFEST_FILE, PROCESSOR_FILE
from ..repository.manifest import FileEntry, ListedFile, Manifest, check_attachment, entry_of
from ..repository.processing import processing_task
from ..repository.retrying import RetryPolicy, is_passing
from ..repository.source import Repository
from ..repository.verification import check_file, git_hashes
from ..task_names import TASKS, TOKENIZER_FILES
from .endpoints import HANDLER_FILE, REQUIREMENTS_FILE, endpoint_files, is_our_handler
from .model_card import CARD_FILE, card_of, own_words, read_card, render_card
from .remote_code import STANDALONE, with_code

if TYPE_CHECKING:
    from ..parts.parts import Parts
    from ..schedule import Schedule

logger = logging.getLogger(__name__)

# What travels in a folder besides weights, manifest and card.
_TEXT_FILES = tuple(path for name in ("*.json", "*.py", *TOKENIZER_FILES) for path in (name, f"teacher/{name}"))


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
        remote_code: `"standalone"`, `"none"`, or None for as it is (see `save_pretrained`).
        overwrite: Write over files of a repository that is no PWL repository, and over a `handler.py` of another's
            making.
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
    remote_code: str | None = None
    overwrite: bool = False

    @property
    def code(self) -> str | None:
        """What code the repository is to carry: a handler runs where the package is not installed."""
        return STANDALONE if self.inference_handler and self.remote_code is None else self.remote_code


def push_model(parts: Parts, schedule: Schedule, target: Target) -> CommitInfo:
    """Publish a model from whatever stage it is at.

    Shards that were never pulled are copied on the server; where it refuses, they are downloaded and sent.

    Raises:
        RepositoryError: If a file that must be sent is not what the manifest says, or is a link out of its folder.
        OverwriteError: If files of a repository that is no PWL repository would be written over.
        PublishError: If the network or the Hub fails in every try.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses.
    """
    from ..parts.planning import plan_files
    from .processing import stored_processing
    from .saving import fetch_attachments, new_manifest, text_files, write_tensors

    with tempfile.TemporaryDirectory() as folder:
        # What is published is of one stage; it is sent when the model may go on.
        with parts.lock:
            source = parts.store.repository if parts.store is not None else None
            plan = plan_files(parts)
            planned_files = plan.files
            entries: list[FileEntry] = []
            written: dict[str, Path] = {}
            for planned in planned_files:
                if planned.tensors is None and planned.entry is not None:
                    if source is not None:
                        source.check_links([planned.path])
                    entries.append(planned.entry)
                    continue
                target_path = written[planned.path] = Path(folder, planned.path)
                entries.append(write_tensors(target_path, planned))
            attached = fetch_attachments(parts, planned_files, schedule)
            manifest = new_manifest(parts, schedule, entries, attached, tier=plan.tier)
            written |= {attachment.path: local for attachment, local in attached.items()}
            found = {**text_files(parts, manifest, target.code), **stored_processing(parts)}
            texts = {path: text.encode() for path, text in found.items()}
        return _commit(target, manifest, written, texts, source)


def push_folder(directory: str | Path, target: Target) -> CommitInfo:
    """Publish a saved repository as it is, after checking every weight file against the manifest.

    Its card goes with it, unless the Hub has one: that keeps what people wrote there.

    Raises:
        RepositoryError: If the folder is not a whole PWL repository, or a file in it is a link out of it.
        OverwriteError: If files of a repository that is no PWL repository would be written over.
        PublishError: If the network or the Hub fails in every try.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses.
    """
    source = Repository.open(directory)
    manifest = source.manifest()
    found = {path for pattern in _TEXT_FILES for path in Path(directory).glob(pattern) if path.is_file()}
    paths = sorted(path.relative_to(directory).as_posix() for path in found)
    source.check_links([*paths, *manifest.paths])
    files = source.fetch_verified([*manifest.files, *manifest.attachments])
    texts = {path: source.fetch_text(path) for path in paths if path not in (MANIFEST_FILE, *manifest.paths)}
    if target.code is not None:
        texts = with_code(texts, target.code)
    return _commit(target, manifest, files, texts, source, card_of(directory))


def push_attachments(source: Repository, contents: Mapping[str, bytes], target: Target) -> CommitInfo:
    """Attach files to a repository of the Hub, in place of those that it has, in one commit upon the one that is open.

    Args:
        source: The repository, at its branch's commit.
        contents: The files by path; see `check_attachment`.
        target: The branch and the commit's texts.

    Raises:
        RepositoryError: If a path cannot be one of an attachment.
        OverwriteError: If files at these paths are no attachments.
        PublishError: If the network or the Hub fails in every try; if the answer about a pull request is lost.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses, such as when the branch has moved meanwhile.
    """
    for path in contents:
        check_attachment(path)
    attachments = [entry_of(path, data) for path, data in contents.items()]
    return _push_manifest(source, replace(source.manifest(), attachments=tuple(attachments)), contents, target)


def push_schedule(source: Repository, schedule: Schedule, target: Target) -> CommitInfo:
    """Give a repository of the Hub other stages, in one commit upon the one that is open; weights stay where they are.

    Attachments are removed: they are of the stages that there were.

    Args:
        source: The repository, at its branch's commit.
        schedule: The mask of each stage.
        target: The branch and the commit's texts.

    Raises:
        RepositoryError: If a stage needs what the repository does not hold.
        PublishError: If the network or the Hub fails in every try; if its answer about the commit is lost.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses, such as when the branch has moved meanwhile.
    """
    return _push_manifest(source, source.manifest().with_schedule(schedule), {}, target)


def _push_manifest(source: Repository, manifest: Manifest, contents: Mapping[str, bytes], target: Target) -> CommitInfo:
    """Another manifest of the same weights, with the files that it attaches and the card that follows from it."""
    known = {entry.path for entry in source.manifest().attachments}
    api = HfApi(token=target.token)

    def attempt() -> CommitInfo:
        # 1. What is there: nothing but attachments is written over.
        there = set(api.list_repo_files(source.name, revision=source.commit))
        if taken := sorted(p for p in contents.keys() - known if source.path_in_repo(p) in there):
            raise OverwriteError(
                f"{source} holds {', '.join(taken)}, which its {MANIFEST_FILE} does not list: move it away"
            )
        added = {
            **contents,
            **_card_beside(source, manifest, there, target),
            MANIFEST_FILE: manifest.to_json().encode(),
        }
        gone = sorted(path for path in known - contents.keys() if source.path_in_repo(path) in there)
        # 2. All in one commit.
        try:
            return api.create_commit(
                source.name,
                [
                    *(CommitOperationAdd(source.path_in_repo(path), data) for path, data in added.items()),
                    *(CommitOperationDelete(source.path_in_repo(path)) for path in gone),
                ],
                commit_message=target.commit_message,
                commit_description=target.commit_description,
                revision=target.revision,
                create_pr=target.create_pr,
                # What is said of other weights than the branch has by now would be wrong.
                parent_commit=source.commit,
            )
        except (httpx.TransportError, HfHubHTTPError) as error:
            if not _may_have_committed(error):
                raise
            # The same commit again would be refused, for the branch has moved; a pull request would be opened twice.
            raise PublishError(
                f"{source}: the Hub's answer about the commit was lost; look there whether it was made, and call again "
                f"if not ({type(error).__name__}: {error})"
            ) from error

    return _trying(target, attempt)


def _card_beside(source: Repository, manifest: Manifest, there: Collection[str], target: Target) -> dict[str, bytes]:
    """The card of an open repository as another manifest has it; nothing where it has none."""
    if source.path_in_repo(CARD_FILE) not in there:
        return {}
    texts = {CONFIG_FILE: source.fetch_text(CONFIG_FILE)}
    texts |= {path: b"" for path in (PROCESSOR_FILE, TOKENIZER_FILES[0]) if source.path_in_repo(path) in there}
    existing = read_card(source.fetch_text(CARD_FILE), f"{source}: {CARD_FILE}")
    return {
        CARD_FILE: render_card(manifest, texts, repo_id=source.name, existing=existing, token=target.token).encode()
    }


def _commit(
    target: Target,
    manifest: Manifest,
    files: Mapping[str, Path],
    texts: Mapping[str, bytes],
    source: Repository | None,
    own_card: str | None = None,
) -> CommitInfo:
    # Each try begins anew: files that went through before are found on the Hub.
    def attempt() -> CommitInfo:
        try:
            return _commit_once(target, manifest, files, texts, source, own_card)
        except (httpx.TransportError, HfHubHTTPError) as error:
            if not target.create_pr or not _may_have_committed(error):
                raise
            # The same commit again would find itself on a branch; a pull request would be opened twice.
            raise PublishError(
                f"{target.repo_id}: the Hub's answer about the pull request was lost; look there whether it was "
                f"opened, and push again if not ({type(error).__name__}: {error})"
            ) from error

    return _trying(target, attempt)


def _trying(target: Target, attempt: Callable[[], CommitInfo]) -> CommitInfo:
    try:
        return target.retry.run(attempt)
    except Exception as error:
        if not is_passing(error) and not isinstance(error, FetchError):
            raise
        raise PublishError(
            f"{target.repo_id} could not be pushed to: the network or the Hub failed in every try; call again "
            f"later to resume ({type(error).__name__}: {error})"
        ) from error


def _may_have_committed(error: Exception) -> bool:
    """True if a commit was requested and its outcome is unknown."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return False
    if isinstance(error, HfHubHTTPError):
        # From a gateway in front of the server.
        return error.response.status_code in (502, 504) and "/commit/" in error.response.request.url.path
    return isinstance(error, httpx.RequestError) and "/commit/" in error.request.url.path


def _commit_once(
    target: Target,
    manifest: Manifest,
    files: Mapping[str, Path],
    texts: Mapping[str, bytes],
    source: Repository | None,
    own_card: str | None,
) -> CommitInfo:
    api = HfApi(token=target.token)
    repo_id = api.create_repo(target.repo_id, private=target.private, exist_ok=True).repo_id
    if target.revision is not None and not target.revision.startswith("refs/pr/"):
        api.create_branch(repo_id, branch=target.revision, exist_ok=True)
    remote = _remote_files(api, repo_id, target.revision)
    known = _read_remote(repo_id, target, remote)
    if own_card is not None and source is not None:
        # Its title is the folder's name.
        own_card = own_card.replace(f"\n# {Path(source.name).name}\n", f"\n# {repo_id}\n", 1)
    there = read_card(known[CARD_FILE], f"{repo_id}: {CARD_FILE}") if CARD_FILE in known else None
    if there is not None and own_card is not None and own_words(there) != own_words(own_card):
        logger.warning("%s keeps its own %s: what the folder's says otherwise is not pushed", repo_id, CARD_FILE)
    card = render_card(
        manifest,
        texts,
        repo_id=repo_id,
        existing=there if there is not None else own_card,
        card_data=target.card_data,
        token=target.token,
    )
    contents = {**texts, CARD_FILE: card.encode(), MANIFEST_FILE: manifest.to_json().encode()}
    if target.inference_handler:
        contents |= _endpoint_contents(repo_id, target, {**known, **texts}, {*texts, *remote})
    listed = _listed(known)
    if not target.overwrite and not target.create_pr:
        _refuse_to_overwrite(repo_id, manifest, texts, remote, listed)
    stale = sorted(path for path in listed if path in remote and path not in manifest.paths)
    others: list[Any] = [CommitOperationAdd(path, content) for path, content in contents.items()]
    others += [CommitOperationDelete(path) for path in stale]
    weights = [
        _weight_operation(entry, files.get(entry.path), source, repo_id)
        for entry in (*manifest.files, *manifest.attachments)
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
        # The server cannot copy between these repositories: send those files.
        copied = {operation.path_in_repo for operation in weights if isinstance(operation, CommitOperationCopy)}
        if source is None or not copied or is_passing(error):
            raise
        fetched = source.fetch_verified(
            [entry for entry in (*manifest.files, *manifest.attachments) if entry.path in copied]
        )
        sent = [operation for operation in weights if operation.path_in_repo not in copied]
        added = [CommitOperationAdd(path, local) for path, local in fetched.items()]
        return api.create_commit(repo_id, [*added, *_renewed([*sent, *others])], **options)


def _weight_operation(
    entry: ListedFile, local: Path | None, source: Repository | None, repo_id: str
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


def _renewed(operations: list[Any]) -> list[Any]:
    # An operation keeps its upload state; a second commit needs new ones.
    return [
        CommitOperationAdd(o.path_in_repo, o.path_or_fileobj) if isinstance(o, CommitOperationAdd) else o
        for o in operations
    ]


def _remote_files(api: HfApi, repo_id: str, revision: str | None) -> dict[str, str]:
    """Path -> hash of what is there: sha256 of large files, git's of those that git itself keeps."""
    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    return {item.path: item.lfs.sha256 if item.lfs else item.blob_id for item in tree if isinstance(item, RepoFile)}


def _read_remote(repo_id: str, target: Target, remote: Mapping[str, str]) -> dict[str, bytes]:
    """The files on the Hub that a push builds upon, checked against their hashes."""
    names = [CARD_FILE, MANIFEST_FILE]
    names += [HANDLER_FILE, REQUIREMENTS_FILE] if target.inference_handler else []
    wanted = [name for name in names if name in remote]
    if not wanted:
        return {}
    opened = Repository.open(repo_id, revision=target.revision, token=target.token, retry=target.retry)
    return {name: opened.fetch_text(name) for name in wanted}


def _listed(known: Mapping[str, bytes]) -> set[str]:
    """The files that the Hub's manifest lists; none if it cannot be read."""
    try:
        return set(Manifest.from_json(known[MANIFEST_FILE]).paths)
    except (KeyError, RepositoryError):
        return set()


def _endpoint_contents(repo_id: str, target: Target, known: Mapping[str, bytes], there: set[str]) -> dict[str, bytes]:
    config = json.loads(known[CONFIG_FILE])
    if config.get("task") not in (None, *TASKS):
        raise ValueError(
            f"the inference handler is for {', '.join(TASKS)}, and {repo_id} is to be of {config['task']!r:.100}: "
            "leave inference_handler out"
        )
    task = processing_task(known[CONFIG_FILE])
    if task.files[0] not in there:
        raise ValueError(
            f"the inference handler needs {task.processing}, and there is no {task.files[0]}: save one into the "
            f"folder, or push one to {repo_id}, first"
        )
    if HANDLER_FILE in known and not target.overwrite and not is_our_handler(known[HANDLER_FILE]):
        raise OverwriteError(
            f"{repo_id}: there is a {HANDLER_FILE} that is not this library's: move it away, leave out "
            "inference_handler, or give overwrite=True (--overwrite) to write over it"
        )
    try:
        requirements = known.get(REQUIREMENTS_FILE, b"").decode("utf-8")
    except ValueError as error:
        raise RepositoryError(f"{repo_id}: {REQUIREMENTS_FILE} is no text: {error}; mend it first") from error
    return {path: text.encode() for path, text in endpoint_files(requirements, task.samples).items()}


def _refuse_to_overwrite(
    repo_id: str, manifest: Manifest, texts: Mapping[str, bytes], remote: Mapping[str, str], listed: set[str]
) -> None:
    """Refuse a push that would overwrite files which are not a PWL repository's own.

    Where the Hub has a manifest, config and code are the repository's own. So are the weights that it lists; if it
    cannot be read, all are: a push is how it is mended.
    """
    entries = (*manifest.files, *manifest.attachments)
    taken = {entry.path for entry in entries if remote.get(entry.path) not in (None, entry.sha256)}
    if MANIFEST_FILE in remote:
        taken = taken - listed if listed else set()
        reason = f"which its {MANIFEST_FILE} does not list"
    else:
        taken |= {path for path, text in texts.items() if path in remote and remote[path] not in git_hashes(text)}
        reason = f"and is no PWL repository: it has no {MANIFEST_FILE}"
    if taken:
        raise OverwriteError(
            f"{repo_id} holds {', '.join(sorted(taken))}, {reason}; nothing was pushed: push to another repository, or "
            "give overwrite=True (--overwrite on the command line) to write over them"
        )
