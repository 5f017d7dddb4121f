"""Where a repository is: a folder, or a pinned commit on the Hub, and how it may be asked (no torch)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from .retrying import RetryPolicy


@dataclass(frozen=True)
class Location:
    """A folder, or a pinned commit of a Hub repository.

    Args:
        name: The folder's path, or the Hub id.
        commit: The 40-hex commit for a Hub repository, None for a folder.
        subfolder: Where in it the model lies.
        token: As in huggingface_hub; never shown, saved or pickled.
        cache_dir: As in huggingface_hub.
        local_files_only: As in huggingface_hub.
        force_download: As in huggingface_hub.
        retry: How long to try when the network fails.
    """

    name: str
    commit: str | None = None
    subfolder: str = ""
    token: str | bool | None = field(default=None, repr=False, compare=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False
    retry: RetryPolicy = field(default_factory=RetryPolicy, repr=False)

    def __str__(self) -> str:
        place = f"{self.name}@{self.commit}" if self.commit else self.name
        return f"{place}/{self.subfolder}" if self.subfolder else place

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"token": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # It is immutable, and a copied model needs the token for later stages.
        return self

    def path_in_repo(self, path: str) -> str:
        """A file's path from the root of the Hub repository."""
        return f"{self.subfolder}/{path}" if self.subfolder else path

    def local(self, path: str) -> Path | None:
        """The local path of a file; None if it is not here. The Hub is not asked."""
        if self.commit is None:
            found = Path(self.name, self.subfolder, path)
            return found if found.is_file() else None
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(
            self.name, self.path_in_repo(path), cache_dir=self.cache_dir, revision=self.commit
        )
        return Path(cached) if isinstance(cached, str) else None
