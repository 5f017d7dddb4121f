"""Where the files of a model come from: a folder, or one commit of a Hub repository (no torch)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, is_offline_mode, resolve_revision, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

from .errors import RepositoryError
from .manifest import MANIFEST_FILE, FileEntry, Manifest


@dataclass(frozen=True)
class Repository:
    """A folder or a pinned commit. Every file of a model is fetched through the one it was opened with.

    Args:
        name: The folder's path, or the Hub id.
        commit: The 40-hex commit for a Hub repository, None for a folder.
        subfolder: Where in it the model lies.
        token: As in huggingface_hub; never shown, saved or pickled.
        cache_dir: As in huggingface_hub.
        local_files_only: As in huggingface_hub.
        force_download: As in huggingface_hub.
    """

    name: str
    commit: str | None = None
    subfolder: str = ""
    token: str | bool | None = field(default=None, repr=False, compare=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False

    @classmethod
    def open(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        **options: Any,
    ) -> Repository:
        """Open a folder, or resolve a branch, tag or commit of a Hub repository once and for all.

        Args:
            name: A folder or a Hub id.
            revision: The branch, tag or commit; ignored for a folder.
            token: As in huggingface_hub.
            options: The other fields.

        Raises:
            RepositoryError: If the name is neither a folder nor a possible Hub id.
            huggingface_hub.errors.HfHubHTTPError: If the repository or revision cannot be had.
        """
        if os.path.isdir(name):
            # Later stages are read from there too, also after a change of the working directory.
            return cls(os.path.abspath(name), token=token, **options)
        try:
            resolved = resolve_revision(
                os.fspath(name),
                revision=revision,
                token=token,
                cache_dir=options.get("cache_dir"),
                local_files_only=options.get("local_files_only", False),
            )
        except HFValidationError as error:
            raise RepositoryError(f"{os.fspath(name)!r} is neither a folder nor a Hub id: {error}") from error
        return cls(os.fspath(name), commit=resolved.resolved, token=token, **options)

    def __str__(self) -> str:
        place = f"{self.name}@{self.commit}" if self.commit else self.name
        return f"{place}/{self.subfolder}" if self.subfolder else place

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"token": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Repository:
        # It never changes, and a copy of a model needs the token for its later stages.
        return self

    def fetch(self, path: str, *, anew: bool = False) -> Path:
        """The local path of a file, downloaded if it is not in the cache, or in any case if `anew`.

        Raises:
            RepositoryError: If the repository has no such file.
            huggingface_hub.errors.LocalEntryNotFoundError: If it is not in the cache and the Hub is out of reach.
        """
        if self.commit is None:
            local = Path(self.name, self.subfolder, path)
            if not local.is_file():
                raise RepositoryError(f"{self} has no file {path!r}")
            return local
        try:
            return Path(
                hf_hub_download(
                    self.name,
                    path,
                    subfolder=self.subfolder or None,
                    revision=self.commit,
                    token=self.token,
                    cache_dir=self.cache_dir,
                    local_files_only=self.local_files_only,
                    force_download=self.force_download or anew,
                )
            )
        except LocalEntryNotFoundError as error:
            raise LocalEntryNotFoundError(
                f"{self}: {path!r} is not in the local cache, and the Hub is out of reach or not to be asked: {error}"
            ) from error
        except EntryNotFoundError as error:
            raise RepositoryError(f"{self} has no file {path!r}") from error

    def path_in_repo(self, path: str) -> str:
        """A file's path from the root of the Hub repository."""
        return f"{self.subfolder}/{path}" if self.subfolder else path

    def local(self, path: str) -> Path | None:
        """The local path of a file that is here already; None without asking the Hub."""
        if self.commit is None:
            found = Path(self.name, self.subfolder, path)
            return found if found.is_file() else None
        cached = try_to_load_from_cache(
            self.name, self.path_in_repo(path), cache_dir=self.cache_dir, revision=self.commit
        )
        return Path(cached) if isinstance(cached, str) else None

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises:
            RepositoryError: If there is none or it is malformed.
        """
        try:
            path = self.fetch(MANIFEST_FILE)
        except RepositoryError as error:
            raise RepositoryError(f"{self} is not a PWL repository: it has no {MANIFEST_FILE}") from error
        try:
            return Manifest.from_json(path.read_bytes())
        except RepositoryError as error:
            raise RepositoryError(f"{self}: {error}") from error

    def fetch_verified(self, entries: Collection[FileEntry]) -> dict[str, Path]:
        """Fetch weight files and compare each with its size and sha256.

        huggingface_hub keeps a file that was damaged on the way in its cache for ever; such a file is
        downloaded once more.

        Returns:
            Path in the repository -> local path.

        Raises:
            RepositoryError: If a file is not the one of the manifest.
        """
        local = {entry.path: self.fetch(entry.path) for entry in entries}
        for entry in entries:
            try:
                check_file(local[entry.path], entry, str(self))
            except RepositoryError:
                if self.commit is None or self.local_files_only or is_offline_mode():
                    raise
                local[entry.path] = self.fetch(entry.path, anew=True)
                check_file(local[entry.path], entry, str(self))
        return local


def check_file(local: Path, entry: FileEntry, where: str) -> None:
    """Compare a file with its entry in the manifest of `where`.

    Raises:
        RepositoryError: If its size or sha256 is another.
    """
    size = local.stat().st_size
    if size != entry.bytes:
        raise RepositoryError(
            f"{where}: {entry.path!r} has {size} bytes, {MANIFEST_FILE} says {entry.bytes}; it is truncated or of "
            "another commit"
        )
    with local.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry.sha256:
        raise RepositoryError(
            f"{where}: {entry.path!r} has sha256 {digest}, {MANIFEST_FILE} says {entry.sha256}; it is corrupt or of "
            "another commit"
        )
