"""Downloading one file of a pinned commit, again and again if need be, and saying why it did not come (no torch)."""

from __future__ import annotations

import errno
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download, is_offline_mode
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from .errors import FetchError, RepositoryError

if TYPE_CHECKING:
    from .repository import Repository

# A class of progress bars, as huggingface_hub takes it: it sees every chunk.
Watch = type[Any]

FAULTS = (HfHubHTTPError, httpx.HTTPError, OSError)


def download(
    repository: Repository,
    path: str,
    *,
    anew: bool = False,
    watch: Watch | None = None,
    cancelled: Event | None = None,
) -> Path:
    """The local path of a file of a Hub repository, downloaded if it is not in the cache.

    Args:
        repository: The pinned commit.
        path: The file's path, within the repository's subfolder.
        anew: Download it in any case.
        watch: A progress bar class.
        cancelled: Ends the waiting between tries.

    Raises:
        RepositoryError: If the repository has no such file.
        FetchError: If it could not be had, after all tries.
    """

    def attempt() -> Path:
        return Path(
            hf_hub_download(
                repository.name,
                path,
                subfolder=repository.subfolder or None,
                revision=repository.commit,
                token=repository.token,
                cache_dir=repository.cache_dir,
                local_files_only=repository.local_files_only,
                force_download=repository.force_download or anew,
                tqdm_class=watch,
            )
        )

    try:
        return repository.retry.run(attempt, cancelled)
    except LocalEntryNotFoundError as error:
        raise FetchError(_explain(repository, path, error)) from error
    except EntryNotFoundError as error:
        raise RepositoryError(f"{repository} has no file {path!r}") from error
    except FAULTS as error:
        raise FetchError(_explain(repository, path, error)) from error


def _explain(repository: Repository, path: str, error: Exception) -> str:
    cause = str(error).strip().splitlines()
    return (
        f"{repository}: {path!r} could not be fetched: {_advice(repository, error)} "
        f"({type(error).__name__}: {cause[0] if cause else 'no message'})"
    )


def _advice(repository: Repository, error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        if repository.local_files_only or is_offline_mode():
            return "it is not in the local cache, and the Hub is not to be asked; fetch it first with `pwl-hf download`"
        return "it is not in the local cache, and the Hub is out of reach; the same call later goes on from here"
    if isinstance(error, GatedRepoError):
        return "the repository is gated; ask for access on its page, and give a token that has it"
    if isinstance(error, RepositoryNotFoundError):
        return "the repository is gone, or the token may no longer read it"
    if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code in (401, 403):
        return "the token may not read it; log in anew or give another token"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "the disk of the cache is full; make room or give another cache_dir"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "the cache may not be written to; give another cache_dir"
    return "the network or the Hub failed in every try; the same call later goes on from here"
