"""Where the files of a model come from: a folder, or one commit of a Hub repository (no torch).

What asks a Hub is imported where one is asked: a folder is opened in a tenth of the time that its client takes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from operator import attrgetter
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from huggingface_hub import constants

from ..bounds import MAX_TEXT_BYTES
from ..errors import FetchError, MissingFileError, RepositoryError
from ..sources import Role, Sources
from .background import download_concurrently
from .files import leads_out, write_text
from .layout import MANIFEST_FILE, quantised_file, teacher_shard
from .limits import TooLongError, at_most
from .location import Location
from .manifest import FileEntry, ListedFile, Manifest
from .verification import Stamp, blob_of, check_file, discard, is_as_named, is_named, stamp_of

Verified = tuple[Path, Stamp]
Parsed = TypeVar("Parsed")


def import_client_for(name: str | os.PathLike[str]) -> None:
    """Import what asks a Hub, if that is to be asked: of two threads that import at once, Python may fail one.

    Args:
        name: A folder, for which it is not, or a Hub id.
    """
    if not os.path.isdir(name):
        from . import fetching  # noqa: F401


class Repository(Location):
    """A folder, or a pinned commit of a Hub repository, from which all files of a model are fetched; see `Location`."""

    @classmethod
    def open(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        **options: Any,
    ) -> Repository:
        """Open a folder, or a Hub repository at the commit that a branch or tag is at now.

        Args:
            name: A folder or a Hub id.
            revision: The branch, tag or commit; ignored for a folder.
            token: As in huggingface_hub.
            options: The other fields.

        Raises:
            RepositoryError: If the name is neither a folder nor a possible Hub id.
            FetchError: If the Hub did not answer in any try, and the commit is not known here.
            huggingface_hub.errors.HfHubHTTPError: If the Hub refuses the repository or revision.
        """
        if os.path.isdir(name):
            # Later stages must be found after a change of the working directory, too.
            return cls(os.path.abspath(name), token=token, **options)
        if "/" not in os.fspath(name):
            # A Hub id has a namespace: do not ask a Hub that may be out of reach.
            raise RepositoryError(f"there is no folder {os.fspath(name)!r}, and a Hub id has the form 'org/name'")
        from .fetching import resolve

        unpinned = Location(os.fspath(name), token=token, **options)
        return cls(unpinned.name, commit=resolve(unpinned, revision), token=token, **options)

    def fetch(self, path: str, *, force: bool = False, cancelled: Event | None = None) -> Path:
        """The local path of a file, downloaded if it is not in the cache.

        Args:
            path: Its path in the repository.
            force: Download it even if it is in the cache.
            cancelled: Once set, ends waits between tries and requests under way.

        Raises:
            MissingFileError: If the repository has no such file.
            FetchError: If it cannot be downloaded, after all tries.
            RepositoryError: If what lies in its place in the cache is no file, and cannot be removed.
            Interrupted: If it was cancelled.
        """
        if self.commit is None:
            local = Path(self.name, self.subfolder, path)
            if not local.is_file():
                raise MissingFileError(f"{self} has no file {path!r}")
            return local
        from .fetching import download, download_again

        force = force or self.force_download
        fetch = partial(download_again, force=True) if force else download
        local = fetch(self, path, cancelled=cancelled)
        if not local.is_file() and self._can_download:
            # To read a pipe would wait for ever.
            discard(local)
            local = download(self, path, cancelled=cancelled)
        if not local.is_file():
            raise RepositoryError(
                f"{self}: {path!r} is no file in the cache, but a folder or a pipe: remove {local.resolve()}"
            )
        return local

    def fetch_all(self, entries: Iterable[ListedFile], fetch: Callable[[ListedFile, Event], Path]) -> dict[str, Path]:
        """The local paths of files. Small files of a Hub are fetched while large ones download.

        Args:
            entries: The files.
            fetch: Fetches one, until the event is set; called in two threads.

        Returns:
            Path in the repository -> local path.

        Raises:
            RepositoryError: If a file is longer than the manifest says: no more of it is received.
            Exception: What `fetch` raised; what came is in the cache.
        """

        def fetch_listed(entry: ListedFile, ended: Event) -> Path:
            with self._as_listed(entry):
                return fetch(entry, ended)

        largest_first = sorted(entries, key=attrgetter("bytes"), reverse=True)
        if self.commit is None:
            return {entry.path: fetch_listed(entry, Event()) for entry in largest_first}
        return {entry.path: local for entry, local in download_concurrently(largest_first, fetch_listed).items()}

    @contextmanager
    def _as_listed(self, entry: ListedFile) -> Iterator[None]:
        """Receive no more of a file than its entry says; before it is refused, see whether the manifest is wrong."""
        try:
            with at_most(entry.bytes):
                yield
        except TooLongError:
            self._suspect_manifest()
            raise

    def fetch_text(self, path: str) -> bytes:
        """The contents of a small file, downloaded again if the cached one is damaged.

        Raises:
            MissingFileError: If there is no such file.
            RepositoryError: If it is damaged again, or longer than any there is.
            FetchError: If it cannot be downloaded.
        """
        local = self._fetch_short(path)
        if self._is_the_hubs(path, local) is False:
            if not self._can_download:
                raise RepositoryError(
                    f"{self}: {path!r} is corrupt in the cache: its contents are not those of its ETag; load it once "
                    "with the Hub in reach, and it is fetched again"
                )
            # The noted ETag may be the wrong one.
            with suppress(OSError):
                self._etag_note(path).unlink(missing_ok=True)
            local = self._fetch_short(path, force=True)
            if self._is_the_hubs(path, local) is False:
                discard(local)
                raise RepositoryError(
                    f"{self}: {path!r} is corrupt: its contents are not those of its ETag, twice in a row; call again "
                    "later to fetch it once more"
                )
        return local.read_bytes()

    def _fetch_short(self, path: str, *, force: bool = False) -> Path:
        """The local path of a file that is read whole."""
        with at_most(MAX_TEXT_BYTES):
            local = self.fetch(path, force=force)
        if (size := local.stat().st_size) > MAX_TEXT_BYTES:
            raise RepositoryError(f"{self}: {path!r} has {size} bytes, there can be {MAX_TEXT_BYTES} at most")
        return local

    def parse(self, path: str, parse: Callable[[bytes], Parsed]) -> Parsed:
        """Parse a small file; if that fails, look whether the Hub has another one now.

        Args:
            path: Its path in the repository.
            parse: Parses its contents, or raises a RepositoryError.

        Raises:
            MissingFileError: If there is no such file.
            RepositoryError: If it is damaged again, or `parse` refuses it.
            FetchError: If it cannot be downloaded.
        """
        try:
            return parse(self.fetch_text(path))
        except MissingFileError:
            raise
        except RepositoryError:
            if not self.refresh(path):
                raise
        return parse(self.fetch_text(path))

    def refresh(self, path: str) -> bool:
        """Download a file in the cache again if the Hub has another one now.

        For files that match their ETag and still cannot be right: a proxy may have served another file, or an older
        one. If the Hub does not answer, the cache stays as it was.

        Returns:
            True if the file changed.
        """
        before = self.local(path)
        if before is None or not self._can_download:
            return False
        from .fetching import download_again, etag_of

        try:
            old = stamp_of(before)
            if blob_of(before) is None:
                # The cache does not name it by its ETag: ask for that before downloading.
                etag = etag_of(self, path)
                if etag is None or is_named(before, etag):
                    return False
                self._etag_note(path).unlink(missing_ok=True)
            return stamp_of(download_again(self, path, force=False)) != old
        except (FetchError, MissingFileError, OSError):
            return False

    def _is_the_hubs(self, path: str, local: Path) -> bool | None:
        """True if a file matches the Hub's ETag; None if that is not known."""
        # Also of a snapshot that is opened as a folder.
        named = is_as_named(local) if blob_of(local) is not None else None
        if named is not None or self.commit is None:
            return named
        # A cache without links has plain names: ask for the ETag once, and note it.
        note = self._etag_note(path)
        try:
            return is_named(local, note.read_text(encoding="ascii"))
        except (OSError, ValueError):
            pass
        if not self._can_download:
            return None
        from .fetching import etag_of

        if (etag := etag_of(self, path)) is None:
            return None
        with suppress(OSError):
            write_text(note, etag)
        return is_named(local, etag)

    def _etag_note(self, path: str) -> Path:
        name = f"{constants.ENDPOINT} {self.name}@{self.commit}/{self.path_in_repo(path)}"
        return Path(constants.HF_HOME, "pwl", "etags", hashlib.sha256(name.encode()).hexdigest())

    @property
    def _can_download(self) -> bool:
        return self.commit is not None and not self.local_files_only and not constants.is_offline_mode()

    def check_links(self, paths: Iterable[str]) -> None:
        """Refuse to copy or publish files of a folder that are links out of it.

        A cloned repository may hold links to anything that its user can read.

        Args:
            paths: The files.

        Raises:
            RepositoryError: With the first such link, and where it leads.
        """
        if self.commit is not None:
            return
        for path in paths:
            if leads_out(Path(self.name), self.path_in_repo(path)):
                found = Path(self.name, self.subfolder, path)
                raise RepositoryError(
                    f"{self}: {path!r} is a link to {found.resolve()}, out of the folder, and is neither copied nor "
                    "published: put the file itself in its place"
                )

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises:
            RepositoryError: If there is none or it is malformed.
        """
        try:
            return self.parse(MANIFEST_FILE, self._read_manifest)
        except MissingFileError as error:
            raise MissingFileError(f"{self} is not a PWL repository: it has no {MANIFEST_FILE}") from error

    def _read_manifest(self, content: bytes) -> Manifest:
        try:
            return Manifest.from_json(content)
        except RepositoryError as error:
            raise RepositoryError(f"{self}: {error}") from error

    def has_shards(self, manifest: Manifest) -> bool:
        """Whether every shard of the teacher is here; the Hub is not asked."""
        count = manifest.num_blocks
        return all(self.local(teacher_shard(block, count)) is not None for block in range(1, count + 1))

    def refines(self, manifest: Manifest, block: int, *, low: bool = False) -> bool:
        """Whether a block of the teacher is made of its low precision, which is here, and a refinement: no shard is.

        Args:
            manifest: The repository's manifest.
            block: The block, from 1.
            low: Whether its low precision will be here by then.
        """
        count = manifest.num_blocks
        return (
            manifest.tier is not None
            and self.local(teacher_shard(block, count)) is None
            and (low or self.local(quantised_file(block, count)) is not None)
        )

    def files_for(
        self, manifest: Manifest, sources: Sources, keep: Collection[Role] = (), low: Collection[int] = ()
    ) -> tuple[FileEntry, ...]:
        """The files that a mask's path needs, given what is here; see `Manifest.files_for`.

        Args:
            manifest: The repository's manifest.
            sources: The mask.
            keep: Networks that are needed whole beside it.
            low: Blocks of the teacher that will be here in low precision by then.
        """
        blocks = range(1, manifest.num_blocks + 1)
        return manifest.files_for(sources, keep, {k for k in blocks if self.refines(manifest, k, low=k in low)})

    def fetch_verified(self, entries: Collection[ListedFile]) -> dict[str, Path]:
        """As `verify`, without the stamps.

        Returns:
            Path in the repository -> local path.
        """
        return {path: local for path, (local, _) in self.verify(entries).items()}

    def verify(
        self,
        entries: Collection[ListedFile],
        fetched: Mapping[str, Path] | None = None,
        *,
        cancelled: Event | None = None,
    ) -> dict[str, Verified]:
        """Fetch weight files and compare each with its size and sha256.

        huggingface_hub never checks a cached file; one that is damaged is downloaded once more, and dropped from the
        cache if it is damaged again.

        Args:
            entries: The files.
            fetched: Local paths of those that are fetched already.
            cancelled: As in `fetch`.

        Returns:
            Path in the repository -> local path, and the stamp of the file that was compared.

        Raises:
            RepositoryError: If a file is not what the manifest says.
            FetchError: If it cannot be downloaded.
            Interrupted: If it was cancelled.
        """
        fetch = partial(self.fetch, cancelled=cancelled)
        local = dict(fetched or {})
        missing = [entry for entry in entries if entry.path not in local]
        local |= self.fetch_all(missing, lambda entry, ended: fetch(entry.path, cancelled=cancelled or ended))
        return {entry.path: self._verify(entry, local[entry.path], fetch) for entry in entries}

    def _verify(self, entry: ListedFile, local: Path, fetch: Callable[..., Path]) -> Verified:
        try:
            return local, check_file(local, entry, str(self))
        except RepositoryError:
            if not self._can_download:
                raise
            # 1. It matches its ETag: download it only if the Hub has another one now.
            if self._is_the_hubs(entry.path, local):
                if not self.refresh(entry.path):
                    self._suspect_manifest()
                    raise
                with self._as_listed(entry):
                    local = self.fetch(entry.path)
            # 2. It is damaged, or may be: download it again, once.
            else:
                with self._as_listed(entry):
                    local = fetch(entry.path, force=True)
        try:
            return local, check_file(local, entry, str(self))
        except RepositoryError as error:
            if is_as_named(local):
                self._suspect_manifest()
            else:
                discard(local)
            raise RepositoryError(
                f"{error}; it came so twice in a row; call again later to fetch it once more"
            ) from error

    def _suspect_manifest(self) -> None:
        """Before a file is refused that matches its ETag: raise if the Hub has another manifest."""
        if self.refresh(MANIFEST_FILE):
            raise RepositoryError(
                f"{self}: the Hub has another {MANIFEST_FILE} now than the one that the model was loaded by; it was "
                "fetched: load the model again"
            )
