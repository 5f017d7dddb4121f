"""`pwl_index.json`: the one manifest of a PWL repository (pure Python, no torch).

The layout, format version 1 (N blocks):

    config.json, model.safetensors                    the student alone: stage 0
    pwl_index.json                                    this manifest, written last
    teacher/model-0000k-of-0000N.safetensors          what stage k adds, a standard sharded checkpoint
    converters/encoder-0000i.safetensors              boundary i, teacher to student
    converters/decoder-0000i.safetensors              boundary i, student to teacher
    statistics/TTSS.safetensors                       BatchNorm statistics of one mask
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ..errors import RepositoryError
from ..sources import Direction, Piece, Sources

FORMAT_VERSION = 1
MANIFEST_FILE = "pwl_index.json"
CONFIG_FILE = "config.json"
STUDENT_FILE = "model.safetensors"

_STATISTICS = re.compile(r"statistics/([ST]+)\.safetensors")


def teacher_shard(block: int, num_stages: int) -> str:
    """The file of teacher block `block` (from 1)."""
    return f"teacher/model-{block:05d}-of-{num_stages:05d}.safetensors"


def converter_file(direction: Direction, boundary: int) -> str:
    """The file of the converter at boundary `boundary` (from 1)."""
    return f"converters/{direction}-{boundary:05d}.safetensors"


def statistics_file(sources: Sources) -> str:
    """The file of a mask's BatchNorm statistics."""
    return f"statistics/{sources}.safetensors"


def file_of(piece: Piece, num_stages: int) -> str:
    """The file that holds a piece of a model."""
    if piece.kind == "student":
        return STUDENT_FILE
    if piece.kind == "teacher":
        return teacher_shard(piece.number, num_stages)
    return converter_file(piece.kind, piece.number)


def stage_of(path: str, num_stages: int) -> int | None:
    """The stage that first needs a file, None for files that no prefix stage needs."""
    if path == STUDENT_FILE:
        return 0
    for block in range(1, num_stages + 1):
        if path in (teacher_shard(block, num_stages), converter_file("encoder", block)):
            return block
    if mask := _STATISTICS.fullmatch(path):
        return Sources(mask[1]).stage
    return None


@dataclass(frozen=True)
class FileEntry:
    """A weight file: its path in the repository, its size in bytes, its hash, and how many parameters it holds."""

    path: str
    bytes: int
    sha256: str
    parameters: int


@dataclass(frozen=True)
class Metric:
    """What was measured at a stage: `value` of `name` on `n` samples of a dataset's split."""

    name: str
    value: float
    dataset: str
    split: str
    n: int


@dataclass(frozen=True)
class Stage:
    """What a stage adds to the one before it, and what was measured at it."""

    stage: int
    files: tuple[FileEntry, ...]
    metrics: tuple[Metric, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """The manifest of a repository.

    Args:
        dtype: The dtype of every floating tensor, such as `"float32"`.
        stages: Stages 0 to N in order.
        other_files: Files that no prefix stage needs: decoders and other masks' statistics.
        format_version: The version of the layout.
        min_reader: The oldest version a reader must know.
    """

    dtype: str
    stages: tuple[Stage, ...]
    other_files: tuple[FileEntry, ...] = ()
    format_version: int = FORMAT_VERSION
    min_reader: int = FORMAT_VERSION
    _by_path: dict[str, FileEntry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        listed = [entry for stage in self.stages for entry in stage.files] + list(self.other_files)
        object.__setattr__(self, "_by_path", {entry.path: entry for entry in listed})
        if len(self._by_path) != len(listed):
            twice = sorted({e.path for e in listed if sum(e.path == other.path for other in listed) > 1})
            raise RepositoryError(f"{MANIFEST_FILE} lists {twice[0]!r} more than once")

    @classmethod
    def build(
        cls, dtype: str, num_stages: int, files: Iterable[FileEntry], metrics: dict[int, tuple[Metric, ...]]
    ) -> Manifest:
        """The manifest of these files, each put at the stage that first needs it."""
        by_stage: dict[int | None, list[FileEntry]] = {}
        for entry in files:
            by_stage.setdefault(stage_of(entry.path, num_stages), []).append(entry)
        stages = tuple(Stage(k, tuple(by_stage.get(k, ())), metrics.get(k, ())) for k in range(num_stages + 1))
        return cls(dtype=dtype, stages=stages, other_files=tuple(by_stage.get(None, ())))

    @property
    def num_stages(self) -> int:
        """The number of blocks N."""
        return len(self.stages) - 1

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every weight file."""
        return tuple(self._by_path.values())

    @property
    def fingerprint(self) -> str:
        """sha256 over the sorted paths and hashes of the weight files: two repositories agree or do not mix."""
        lines = sorted(f"{entry.path} {entry.sha256}\n" for entry in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def masks(self) -> tuple[Sources, ...]:
        """The masks whose BatchNorm statistics are stored."""
        found = (_STATISTICS.fullmatch(entry.path) for entry in self.files)
        return tuple(Sources(match[1]) for match in found if match)

    def get(self, path: str) -> FileEntry | None:
        """The entry of a file, None if it is not listed."""
        return self._by_path.get(path)

    def files_for(self, sources: Sources) -> tuple[FileEntry, ...]:
        """The files that a mask's path needs, its statistics last if there are any.

        Raises:
            RepositoryError: If a file is not listed.
        """
        paths = sorted({file_of(piece, self.num_stages) for piece in sources.pieces})
        missing = [path for path in paths if path not in self._by_path]
        if missing:
            raise RepositoryError(f"{MANIFEST_FILE} does not list {missing[0]!r}, which sources {sources} needs")
        statistics = self.get(statistics_file(sources))
        return tuple(self._by_path[path] for path in paths) + ((statistics,) if statistics else ())

    def with_metrics(self, metrics: dict[int, tuple[Metric, ...]]) -> Manifest:
        """The same files with other metrics, by stage."""
        stages = tuple(Stage(s.stage, s.files, tuple(metrics.get(s.stage, s.metrics))) for s in self.stages)
        return Manifest(self.dtype, stages, self.other_files, self.format_version, self.min_reader)

    def to_json(self) -> str:
        """The text of `pwl_index.json`.

        Raises:
            ValueError: If a metric is not a finite number.
        """
        return (
            json.dumps(
                {
                    "format_version": self.format_version,
                    "min_reader": self.min_reader,
                    "fingerprint": self.fingerprint,
                    "dtype": self.dtype,
                    "stages": [asdict(stage) for stage in self.stages],
                    "other_files": [asdict(entry) for entry in self.other_files],
                },
                indent=2,
                allow_nan=False,
            )
            + "\n"
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read a manifest, ignoring keys it does not know.

        Raises:
            RepositoryError: If it is not a manifest, wants a newer reader, lists a path that leaves the
                repository, or disagrees with itself.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RepositoryError(f"{MANIFEST_FILE} is not JSON: {error}") from error
        data = _typed(data, dict, "the manifest")
        min_reader = _typed(data.get("min_reader"), int, "min_reader")
        if min_reader > FORMAT_VERSION:
            raise RepositoryError(
                f"{MANIFEST_FILE} needs a reader of format version {min_reader}, this one reads up to "
                f"{FORMAT_VERSION}: upgrade pwl-hf"
            )
        stages = []
        for k, item in enumerate(_typed(data.get("stages"), list, "stages")):
            item = _typed(item, dict, f"stages[{k}]")
            if item.get("stage") != k:
                raise RepositoryError(f"{MANIFEST_FILE}: stages[{k}] is of stage {item.get('stage')!r}, expected {k}")
            listed = _typed(item.get("files"), list, f"stages[{k}].files")
            files = tuple(_entry(f, f"stages[{k}].files") for f in listed)
            found = _typed(item.get("metrics", []), list, f"stages[{k}].metrics")
            stages.append(Stage(k, files, tuple(_metric(m, f"stages[{k}].metrics") for m in found)))
        if len(stages) < 2:
            raise RepositoryError(f"{MANIFEST_FILE} has {len(stages)} stage(s), a PWL repository has at least 2")
        others = _typed(data.get("other_files", []), list, "other_files")
        manifest = cls(
            dtype=_typed(data.get("dtype"), str, "dtype"),
            stages=tuple(stages),
            other_files=tuple(_entry(f, "other_files") for f in others),
            format_version=_typed(data.get("format_version"), int, "format_version"),
            min_reader=min_reader,
        )
        if data.get("fingerprint") != manifest.fingerprint:
            raise RepositoryError(
                f"{MANIFEST_FILE}: its fingerprint {data.get('fingerprint')!r} is not that of the files it lists, "
                f"{manifest.fingerprint}"
            )
        for mask in manifest.masks:
            if len(mask) != manifest.num_stages or not mask.is_mixed:
                raise RepositoryError(
                    f"{MANIFEST_FILE} lists {statistics_file(mask)!r}, but the model has {manifest.num_stages} blocks "
                    "and only masks of both networks have statistics of their own"
                )
        places = [(stage.stage, entry) for stage in manifest.stages for entry in stage.files]
        for place, entry in [*places, *((None, entry) for entry in manifest.other_files)]:
            needed_at = stage_of(entry.path, manifest.num_stages)
            if needed_at not in (None, place):
                where = "other_files" if place is None else f"stage {place}"
                raise RepositoryError(
                    f"{MANIFEST_FILE} lists {entry.path!r} in {where}, it belongs to stage {needed_at}"
                )
        for k in range(manifest.num_stages + 1):
            manifest.files_for(Sources.prefix(k, manifest.num_stages))
        return manifest


def check_path(path: str) -> None:
    """Refuse a path that could leave the repository's folder, or that names no safetensors file.

    Raises:
        RepositoryError: With the path.
    """
    parts = PurePosixPath(path).parts
    if (
        not parts
        or path != "/".join(parts)
        or path.startswith("/")
        or any(part in ("..", ".") for part in parts)
        or any(character in path for character in '\\:*?"<>|')
        or not path.isprintable()
        or not path.endswith(".safetensors")
    ):
        raise RepositoryError(
            f"{MANIFEST_FILE} lists the file {path!r}: it must be a relative path with '/', without '..', to a "
            "safetensors file"
        )


def _typed(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise RepositoryError(f"{MANIFEST_FILE}: {where} must be {kind.__name__}, got {value!r:.100}")
    return value


def _entry(data: Any, where: str) -> FileEntry:
    data = _typed(data, dict, where)
    entry = FileEntry(
        path=_typed(data.get("path"), str, f"{where}.path"),
        bytes=_typed(data.get("bytes"), int, f"{where}.bytes"),
        sha256=_typed(data.get("sha256"), str, f"{where}.sha256"),
        parameters=_typed(data.get("parameters"), int, f"{where}.parameters"),
    )
    check_path(entry.path)
    if not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
        raise RepositoryError(f"{MANIFEST_FILE}: sha256 of {entry.path!r} must be 64 hex digits, got {entry.sha256!r}")
    if entry.bytes < 0 or entry.parameters < 0:
        raise RepositoryError(f"{MANIFEST_FILE}: bytes and parameters of {entry.path!r} must not be negative")
    return entry


def _metric(data: Any, where: str) -> Metric:
    data = _typed(data, dict, where)
    value = data.get("value")
    value = _typed(value, int if isinstance(value, int) else float, f"{where}.value")
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise RepositoryError(f"{MANIFEST_FILE}: {where}.value must be a finite number, got {value}")
    return Metric(
        name=_typed(data.get("name"), str, f"{where}.name"),
        value=value,
        dataset=_typed(data.get("dataset"), str, f"{where}.dataset"),
        split=_typed(data.get("split"), str, f"{where}.split"),
        n=_typed(data.get("n"), int, f"{where}.n"),
    )
