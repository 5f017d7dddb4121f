"""Asking a Hub: the commit of a branch, a file of a commit, with retries, and why it failed (no torch)."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from threading import Event

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, is_offline_mode, resolve_revision
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from ..errors import FetchError, MissingFileError, RepositoryError
from .files import temporary_name
from .limits import TooLongError
from .location import Location
from .retrying import is_passing, root_cause
from .transfers import RefusedAnswer, interruptible, progress_bar
from .verification import pointer_of

FAULTS = (HfHubHTTPError, httpx.HTTPError, OSError)


def resolve(repository: Location, revision: str | None) -> str:
    """The commit that a branch or tag of a Hub repository is at now.

    Args:
        repository: The repository, of no commit yet.
        revision: The branch, tag or commit; the main branch by default.

    Raises:
        RepositoryError: If its name is no possible Hub id, or the answer is no commit.
        FetchError: If the Hub did not answer in any try, and the commit is not known here.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses the repository or revision.
    """
    try:
        found = repository.retry.run(
            lambda: resolve_revision(
                repository.name,
                revision=revision,
                token=repository.token,
                cache_dir=repository.cache_dir,
                local_files_only=repository.local_files_only,
            )
        )
    except HFValidationError as error:
        raise RepositoryError(f"{repository.name!r} is neither a folder nor a Hub id: {error}") from error
    except Exception as error:
        if not is_passing(error):
            raise
        raise FetchError(
            f"{repository.name}@{revision or 'main'}: there is no such folder, the Hub did not answer in any try, "
            f"and the commit is not known here; call again later ({type(error).__name__}: {error})"
        ) from error
    if not re.fullmatch(r"[0-9a-f]{40}", found.resolved):
        # It would be a part of paths.
        raise RepositoryError(
            f"{repository.name}@{revision or 'main'}: the Hub says that this is commit {found.resolved!r:.100}, "
            "which is no hash of 40 hex digits; look for a proxy that changes answers"
        )
    return found.resolved


def download(repository: Location, path: str, *, force: bool = False, cancelled: Event | None = None) -> Path:
    """The local path of a file of a Hub repository, downloaded if it is not in the cache.

    Args:
        repository: The pinned commit.
        path: The file's path, within the repository's subfolder.
        force: Download it even if it is in the cache.
        cancelled: Once set, ends waits between tries and requests under way.

    Raises:
        MissingFileError: If the repository has no such file.
        FetchError: If it cannot be downloaded, after all tries.
        TooLongError: If it is longer than it may be (see `at_most`).
        Interrupted: If it was cancelled.
    """
    try:
        with interruptible(cancelled):
            return repository.retry.run(lambda: _try(repository, path, force), cancelled)
    except LocalEntryNotFoundError as error:
        raise FetchError(_explain(repository, path, error)) from error
    except EntryNotFoundError as error:
        raise MissingFileError(f"{repository} has no file {path!r}") from error
    except TooLongError as error:
        raise TooLongError(
            f"{repository}: {path!r} was not received: {error}, which is what it may have; it is of another commit, "
            "or a proxy changes it"
        ) from error
    except (*FAULTS, RefusedAnswer) as error:
        raise FetchError(_explain(repository, path, error)) from error


def download_again(repository: Location, path: str, *, force: bool, cancelled: Event | None = None) -> Path:
    """Download a file that is in the cache; if that fails, the cache stays as it was.

    huggingface_hub keeps a pointer that exists, whatever it downloads, so a link to somewhere else, or a plain file
    in a cache without links, would be found again and again. It is moved out of the way first.

    Args:
        repository: The pinned commit.
        path: The file's path, within the repository's subfolder.
        force: Download it in any case; otherwise only if the cache has no blob of the Hub's ETag.
        cancelled: As in `download`.

    Raises:
        MissingFileError: If the repository has no such file.
        FetchError: If it cannot be downloaded, after all tries.
        Interrupted: If it was cancelled.
    """
    cached = repository.local(path)
    if cached is None:
        return download(repository, path, force=force, cancelled=cancelled)
    pointer = pointer_of(cached)
    aside = temporary_name(pointer)
    try:
        os.replace(pointer, aside)
    except OSError as error:
        raise FetchError(_explain(repository, path, error)) from error
    try:
        return download(repository, path, force=force, cancelled=cancelled)
    finally:
        # Another process may have fetched it meanwhile.
        if os.path.lexists(pointer):
            aside.unlink(missing_ok=True)
        else:
            os.replace(aside, pointer)


def etag_of(repository: Location, path: str) -> str | None:
    """The Hub's ETag of a file: the git hash of a small file, the sha256 of a large one; mirrors may give any text.

    Returns:
        The ETag; None if the Hub cannot be asked now.
    """
    url = hf_hub_url(repository.name, repository.path_in_repo(path), revision=repository.commit)
    try:
        return repository.retry.run(lambda: get_hf_file_metadata(url, token=repository.token)).etag
    except (*FAULTS, RefusedAnswer):
        return None


def _try(repository: Location, path: str, force: bool) -> Path:
    try:
        return Path(
            hf_hub_download(
                repository.name,
                path,
                subfolder=repository.subfolder or None,
                revision=repository.commit,
                token=repository.token,
                cache_dir=repository.cache_dir,
                local_files_only=repository.local_files_only,
                force_download=force,
                tqdm_class=progress_bar(),
            )
        )
    except HfHubHTTPError:
        raise
    except ValueError as error:
        # huggingface_hub wraps the cause of a failed force_download.
        if isinstance(error.__cause__, FAULTS):
            raise error.__cause__ from None
        raise
    except RuntimeError as error:
        # Xet raises nothing else; so does a connection pool that another thread closed.
        number = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(number[1]), str(error)) if number else ConnectionError(str(error))) from error


def _explain(repository: Location, path: str, error: Exception) -> str:
    cause = root_cause(error)
    message = str(cause).strip().splitlines()
    return (
        f"{repository}: {path!r} could not be fetched: {_advice(repository, cause)} "
        f"({type(cause).__name__}: {message[0] if message else 'no message'})"
    )


def _advice(repository: Location, error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, RefusedAnswer):
        return "the Hub, or a proxy before it, names it by what is no hash; look for a proxy that changes answers"
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        if repository.local_files_only or is_offline_mode():
            return "it is not in the local cache, and the Hub is not to be asked; fetch it first with `pwl-hf download`"
        return "it is not in the local cache, and the Hub is out of reach; call again later to resume"
    if isinstance(error, GatedRepoError):
        return "the repository is gated; ask for access on its page, and give a token that has it"
    if isinstance(error, RepositoryNotFoundError):
        return "the repository is gone, or the token may no longer read it"
    if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code in (401, 403):
        return "the token may not read it; log in again or give another token"
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk of the cache is full; make room or give another cache_dir"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "the cache may not be written to; give another cache_dir"
    if not is_passing(error):
        return "another try would not change that; see the cause"
    return "the network or the Hub failed in every try; call again later to resume"
