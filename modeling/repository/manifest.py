"""`pwl_index.json`: the one manifest of a PWL repository (pure Python, no torch).

Format version 1 lists the files of `layout` without shared tensors, with stage k taking the teacher's blocks 1 to k.
Version 2 adds a schedule (each stage's mask, in any order of blocks), shared tensors, and attachments: files that
belong to a save, such as exported graphs, but hold none of its weights; JSON among them lies in a folder of its own.
Version 3 adds the tier of low precision, and rungs as stages: a block that was in low precision before gets its
refinement rather than its shard. Version 4 adds tensors that the teacher's blocks share with the student's. Each
version is written only where something of it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from ..bounds import MAX_BLOCKS, MAX_FILES, MAX_METRICS, check_count
from ..errors import RepositoryError
from ..schedule import Schedule
from ..sources import Role, Sources
from .layout import (
    MANIFEST_FILE,
    TEXT_FOLDERS,
    file_of,
    quantised_file,
    refinement_file,
    statistics_file,
    tier_block,
)

# The newest format that is read; what needs no more is written as version 1.
FORMAT_VERSION = 4
# Bits of a weight that a tier may have.
BITS = (8, 4)
# What an attachment may be: exported graphs and what describes them.
ATTACHED = (".onnx", ".json")
_STATISTICS = re.compile(r"statistics/([ST]+)\.safetensors")
# In the teacher's folder: its index may name files there alone, or the Hub would not serve them to transformers.
_SHARED = re.compile(r"teacher/shared-[A-Za-z0-9_.-]+\.safetensors")
# The fields of an entry that say which blocks share it.
_SHARERS = ("blocks", "student_blocks")


def stages_of_files(schedule: Schedule, shared: Iterable[FileEntry]) -> dict[str, int]:
    """The stage that first needs a file, if all are gone through; one that no stage needs is not in it."""
    found: dict[str, int] = {}
    first_of_block: dict[int, int] = {}
    low: set[int] = set()
    for stage, mask in enumerate(schedule):
        for path in (*_paths_of(mask, low), statistics_file(mask)):
            found.setdefault(path, stage)
        for block in mask.blocks("teacher"):
            first_of_block.setdefault(block, stage)
        low |= set(mask.low_blocks)
    # Of its blocks, rather than of each mask: the cost is that of what is listed.
    for entry in shared:
        # The first stage has every block of the student.
        found[entry.path] = 0 if entry.student_blocks else min(first_of_block[block] for block in entry.blocks)
    return found


def _paths_of(sources: Sources, refined: Collection[int]) -> Iterator[str]:
    """The files of a mask's blocks and converters, refinements in place of the shards of some blocks."""
    num_blocks = len(sources)
    for part in sources.part_ids:
        if part.kind == "teacher" and part.number in refined:
            yield from (quantised_file(part.number, num_blocks), refinement_file(part.number, num_blocks))
        else:
            yield file_of(part, num_blocks)


@dataclass(frozen=True)
class ListedFile:
    """A file of a repository as its manifest lists it; an attachment, if it holds no weights.

    Args:
        path: Its path in the repository.
        bytes: Its size.
        sha256: Its hash, in hex digits.
    """

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class FileEntry(ListedFile):
    """A weight file.

    Args:
        path: As above.
        bytes: As above.
        sha256: As above.
        parameters: How many parameters it holds.
        blocks: If it is of tensors that blocks of the teacher share, the blocks (from 1) that need them.
        student_blocks: The blocks of the student (from 1) that need them too, if any do.
    """

    parameters: int
    blocks: tuple[int, ...] = ()
    student_blocks: tuple[int, ...] = ()

    @property
    def is_shared(self) -> bool:
        """Whether it is of tensors that blocks of the teacher share, or those of both networks."""
        return _SHARED.fullmatch(self.path) is not None

    @property
    def tier_block(self) -> int | None:
        """If it is a block of the teacher in low precision, or what makes that exact: which block (from 1)."""
        return tier_block(self.path)


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
    """What a stage adds to the one before it, what was measured at it, and its mask."""

    stage: int
    files: tuple[FileEntry, ...]
    metrics: tuple[Metric, ...] = ()
    sources: str = ""


@dataclass(frozen=True)
class Manifest:
    """The manifest of a repository.

    Args:
        dtype: The dtype of every floating tensor, such as `"float32"`.
        stages: The stages in order, from the student to the teacher.
        other_files: Files that no stage needs: decoders and other masks' statistics, usually.
        attachments: Files that belong to the save and hold none of its weights.
        tier: The bits of a weight in the teacher's tier of low precision; None without one.

    Raises:
        RepositoryError: If a file is listed more than once.
    """

    dtype: str
    stages: tuple[Stage, ...]
    other_files: tuple[FileEntry, ...] = ()
    attachments: tuple[ListedFile, ...] = ()
    tier: int | None = None
    _by_path: dict[str, FileEntry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        listed = [entry for stage in self.stages for entry in stage.files] + list(self.other_files)
        object.__setattr__(self, "_by_path", {entry.path: entry for entry in listed})
        paths = Counter(entry.path for entry in (*listed, *self.attachments))
        if twice := sorted(path for path, count in paths.items() if count > 1):
            raise RepositoryError(f"{MANIFEST_FILE} lists {twice[0]!r} more than once")

    @classmethod
    def build(
        cls,
        dtype: str,
        schedule: Schedule,
        files: Iterable[FileEntry],
        metrics: Mapping[int, tuple[Metric, ...]] = MappingProxyType({}),
        attachments: Iterable[ListedFile] = (),
        tier: int | None = None,
    ) -> Manifest:
        """The manifest of these files, each put at the stage that first needs it."""
        files = list(files)
        stage_of = stages_of_files(schedule, (entry for entry in files if entry.is_shared))
        by_stage: dict[int | None, list[FileEntry]] = {}
        for entry in files:
            by_stage.setdefault(stage_of.get(entry.path), []).append(entry)
        stages = tuple(
            Stage(k, tuple(by_stage.get(k, ())), tuple(metrics.get(k, ())), mask.mask)
            for k, mask in enumerate(schedule)
        )
        return cls(dtype, stages, tuple(by_stage.get(None, ())), tuple(attachments), tier)

    @cached_property
    def schedule(self) -> Schedule:
        """The mask of each stage."""
        return Schedule.of(stage.sources for stage in self.stages)

    @property
    def num_stages(self) -> int:
        """The last stage: there are stages 0 to `num_stages`."""
        return len(self.stages) - 1

    @property
    def num_blocks(self) -> int:
        """The number of blocks N."""
        return len(self.stages[0].sources)

    @property
    def format_version(self) -> int:
        """The oldest format that can say all of this."""
        if self.shared_embedder is not None:
            return 4
        if self.tier is not None:
            return 3
        is_new = self.attachments or any(entry.is_shared for entry in self.files) or not self.schedule.is_prefixes
        return 2 if is_new else 1

    @property
    def min_reader(self) -> int:
        """The oldest format that a reader must know: one that knew less would lose what it holds."""
        return self.format_version

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every weight file."""
        return tuple(self._by_path.values())

    @property
    def shared_embedder(self) -> FileEntry | None:
        """The embedder that the student shares with its teacher; None if it has its own."""
        return next((entry for entry in self.files if entry.student_blocks), None)

    @property
    def paths(self) -> frozenset[str]:
        """The paths of all files that it lists, attachments included."""
        return frozenset(entry.path for entry in (*self.files, *self.attachments))

    @property
    def fingerprint(self) -> str:
        """sha256 over the sorted paths and hashes of the weight files: two repositories agree or do not mix.

        The tier is left out: it follows from the teacher, and what was made for the weights stays right with it.
        """
        lines = sorted(f"{entry.path} {entry.sha256}\n" for entry in self.files if entry.tier_block is None)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def masks(self) -> tuple[Sources, ...]:
        """The masks whose BatchNorm statistics are stored."""
        found = (_STATISTICS.fullmatch(entry.path) for entry in self.files)
        return tuple(Sources(match[1]) for match in found if match)

    def get(self, path: str) -> FileEntry | None:
        """The entry of a file, None if it is not listed."""
        return self._by_path.get(path)

    def files_for(
        self, sources: Sources, keep: Collection[Role] = (), refined: Collection[int] = ()
    ) -> tuple[FileEntry, ...]:
        """The files that a mask's path needs, its statistics last if there are any.

        Args:
            sources: The mask.
            keep: Networks that are needed whole beside it.
            refined: Blocks of the teacher that are made of their low precision and its refinement, not of their shards.

        Raises:
            RepositoryError: If a file is not listed.
        """
        whole = [
            Sources(letter * self.num_blocks) for letter, role in (("S", "student"), ("T", "teacher")) if role in keep
        ]
        needed = [sources, *whole]
        blocks = {block for mask in needed for block in mask.blocks("teacher")}
        of_student = {block for mask in needed for block in mask.blocks("student")}
        shared = [
            entry.path
            for entry in self.files
            if not blocks.isdisjoint(entry.blocks) or not of_student.isdisjoint(entry.student_blocks)
        ]
        paths = sorted({*(path for mask in needed for path in _paths_of(mask, refined)), *shared})
        self._check_listed(paths, sources)
        statistics = self.get(statistics_file(sources))
        return tuple(self._by_path[path] for path in paths) + ((statistics,) if statistics else ())

    def with_metrics(self, metrics: Mapping[int, tuple[Metric, ...]]) -> Manifest:
        """The same files with other metrics, by stage."""
        stages = tuple(replace(s, metrics=tuple(metrics.get(s.stage, s.metrics))) for s in self.stages)
        return replace(self, stages=stages)

    def with_metrics_of(self, other: Manifest) -> Manifest:
        """The same files with what was measured of the same weights: it is of a mask, whatever stage that is."""
        found = {stage.sources: stage.metrics for stage in other.stages}
        return self.with_metrics({stage.stage: found.get(stage.sources, ()) for stage in self.stages})

    def with_schedule(self, schedule: Schedule) -> Manifest:
        """The same weight files with other stages; attachments go, which are of those before.

        Raises:
            RepositoryError: If a stage needs a file that is not listed.
        """
        built = Manifest.build(self.dtype, schedule, self.files).with_metrics_of(self)
        kept = self.attachments if schedule.without_tier() == self.schedule.without_tier() else ()
        manifest = replace(self, stages=built.stages, other_files=built.other_files, attachments=kept)
        manifest._check_places()
        return manifest

    def to_json(self) -> str:
        """The text of `pwl_index.json`.

        Raises:
            ValueError: If a metric is not a finite number.
        """
        hidden = () if self.format_version > 1 else ("sources",)
        data: dict[str, Any] = {
            "format_version": self.format_version,
            "min_reader": self.min_reader,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "stages": [_without_empty(asdict(stage), hidden) for stage in self.stages],
            "other_files": [_without_empty(asdict(entry)) for entry in self.other_files],
        }
        if self.tier is not None:
            data["tier"] = {"bits": self.tier}
        if self.attachments:
            data["attachments"] = [asdict(entry) for entry in self.attachments]
        return json.dumps(data, indent=2, allow_nan=False) + "\n"

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
        _typed(data.get("format_version"), int, "format_version")
        items = [_typed(item, dict, "a stage") for item in _typed(data.get("stages"), list, "stages")]
        if len(items) < 2:
            raise RepositoryError(f"{MANIFEST_FILE} has {len(items)} stage(s), a PWL repository has at least 2")
        others = _typed(data.get("other_files", []), list, "other_files")
        attached = _typed(data.get("attachments", []), list, "attachments") if min_reader > 1 else []
        _check_counts(items, others, attached)
        schedule = _schedule(items, min_reader)
        manifest = cls(
            dtype=_typed(data.get("dtype"), str, "dtype"),
            stages=tuple(_stage(k, item, schedule, min_reader) for k, item in enumerate(items)),
            other_files=tuple(_entry(f, "other_files", min_reader) for f in others),
            attachments=tuple(_attachment(item) for item in attached),
            tier=_tier(data.get("tier")) if min_reader > 2 else None,
        )
        if data.get("fingerprint") != manifest.fingerprint:
            raise RepositoryError(
                f"{MANIFEST_FILE}: its fingerprint {data.get('fingerprint')!r} is not that of the files it lists, "
                f"{manifest.fingerprint}"
            )
        manifest._check_places()
        return manifest

    def _check_places(self) -> None:
        """Refuse statistics, shared tensors and tiers that cannot be; files at the wrong stages; missing files."""
        for entry, sharers in ((e, found) for e in self.files for found in (e.blocks, e.student_blocks)):
            if list(sharers) != sorted(set(sharers).intersection(range(1, self.num_blocks + 1))):
                raise RepositoryError(
                    f"{MANIFEST_FILE}: {entry.path!r} is shared by blocks {list(sharers)!r:.100}, which must be "
                    f"blocks from 1 to {self.num_blocks}, each once and in order"
                )
        for mask in self.masks:
            if len(mask) != self.num_blocks or not mask.is_mixed:
                raise RepositoryError(
                    f"{MANIFEST_FILE} lists {statistics_file(mask)!r}, but the model has {self.num_blocks} blocks "
                    "and only masks of both networks have statistics of their own"
                )
        stage_of = stages_of_files(self.schedule, (entry for entry in self.files if entry.is_shared))
        places = [(stage.stage, entry) for stage in self.stages for entry in stage.files]
        for place, entry in [*places, *((None, entry) for entry in self.other_files)]:
            needed_at = stage_of.get(entry.path)
            if needed_at not in (None, place):
                where = "other_files" if place is None else f"stage {place}"
                raise RepositoryError(
                    f"{MANIFEST_FILE} lists {entry.path!r} in {where}, it belongs to stage {needed_at}"
                )
        if self.schedule.has_tier and self.tier is None:
            raise RepositoryError(
                f"{MANIFEST_FILE} has stages with blocks in low precision, and says nothing of a tier of them"
            )
        blocks = range(1, self.num_blocks + 1) if self.tier is not None else ()
        paths = {of(block, self.num_blocks) for block in blocks for of in (quantised_file, refinement_file)}
        if foreign := sorted({entry.path for entry in self.files if entry.tier_block is not None} - paths):
            raise RepositoryError(f"{MANIFEST_FILE} lists {foreign[0]!r}, which is of no block in low precision")
        if missing := min(paths - self._by_path.keys(), default=None):
            raise RepositoryError(f"{MANIFEST_FILE} does not list {missing!r}, which its tier of low precision needs")
        for mask in self.schedule:
            self._check_listed(_paths_of(mask.exact, ()), mask)

    def _check_listed(self, paths: Iterable[str], sources: Sources) -> None:
        """Refuse a mask some of whose files are not listed."""
        if missing := min((path for path in paths if path not in self._by_path), default=None):
            raise RepositoryError(f"{MANIFEST_FILE} does not list {missing!r}, which sources {sources} needs")


def entry_of(path: str, content: bytes) -> ListedFile:
    """The entry of a file with these contents."""
    return ListedFile(path, len(content), hashlib.sha256(content).hexdigest())


def check_path(path: str, suffixes: tuple[str, ...] = (".safetensors",)) -> None:
    """Refuse a path that could leave the repository's folder, or that names a file of another kind.

    Args:
        path: The path.
        suffixes: What it may end with.

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
        or not path.endswith(suffixes)
    ):
        kinds = " or ".join(suffix.removeprefix(".") for suffix in suffixes)
        raise RepositoryError(
            f"{MANIFEST_FILE} lists the file {path!r}: it must be a relative path with '/', without '..', to a "
            f"{kinds} file"
        )


def _without_empty(data: dict[str, Any], hidden: tuple[str, ...] = ()) -> dict[str, Any]:
    """An entry or a stage as it is written: without what its format lacks, or what says nothing."""
    data = {key: value for key, value in data.items() if key not in hidden and (key not in _SHARERS or value)}
    if "files" in data:
        data["files"] = [_without_empty(entry) for entry in data["files"]]
    return data


def _check_counts(items: list[dict[str, Any]], others: list[Any], attached: list[Any]) -> None:
    """Refuse more stages, blocks, files or metrics than there can be, before anything is made for each."""
    masks, files, metrics = ([item.get(key) for item in items] for key in ("sources", "files", "metrics"))
    try:
        check_count(MANIFEST_FILE, len(items) - 1, 2 * MAX_BLOCKS, "stages")
        check_count(MANIFEST_FILE, max(len(m) for m in [*masks, ""] if isinstance(m, str)), MAX_BLOCKS, "blocks")
        check_count(MANIFEST_FILE, len(_lists([*files, others, attached])), MAX_FILES, "files")
        check_count(MANIFEST_FILE, len(_lists(metrics)), MAX_METRICS, "metrics")
    except ValueError as error:
        raise RepositoryError(f"{error}: pwl-hf reads no more than that") from error


def _lists(values: Iterable[Any]) -> list[Any]:
    """The items of those that are lists; of what else there is, its reader will say so."""
    return [item for value in values if isinstance(value, list) for item in value]


def _schedule(items: list[dict[str, Any]], min_reader: int) -> Schedule:
    """The schedule of the stages as they are written; readers of version 1 know one."""
    if min_reader < 2:
        return Schedule.prefixes(len(items) - 1)
    masks = [_typed(item.get("sources"), str, f"stages[{k}].sources") for k, item in enumerate(items)]
    try:
        return Schedule.of(masks)
    except ValueError as error:
        raise RepositoryError(f"{MANIFEST_FILE}: {error}") from error


def _stage(k: int, item: dict[str, Any], schedule: Schedule, min_reader: int) -> Stage:
    if item.get("stage") != k:
        raise RepositoryError(f"{MANIFEST_FILE}: stages[{k}] is of stage {item.get('stage')!r}, expected {k}")
    listed = _typed(item.get("files"), list, f"stages[{k}].files")
    metrics = _typed(item.get("metrics", []), list, f"stages[{k}].metrics")
    return Stage(
        k,
        tuple(_entry(entry, f"stages[{k}].files", min_reader) for entry in listed),
        tuple(_metric(metric, f"stages[{k}].metrics") for metric in metrics),
        schedule.masks[k].mask,
    )


def _tier(data: Any) -> int | None:
    if data is None:
        return None
    bits: int = _typed(_typed(data, dict, "tier").get("bits"), int, "tier.bits")
    if bits not in BITS:
        raise RepositoryError(f"{MANIFEST_FILE}: tier.bits must be {' or '.join(map(str, BITS))}, got {bits}")
    return bits


def _typed(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise RepositoryError(f"{MANIFEST_FILE}: {where} must be {kind.__name__}, got {value!r:.100}")
    return value


def _entry(data: Any, where: str, min_reader: int) -> FileEntry:
    data = _typed(data, dict, where)
    path = _typed(data.get("path"), str, f"{where}.path")
    check_path(path)
    blocks = _blocks(data, "blocks", where)
    of_student = _blocks(data, "student_blocks", where) if min_reader > 3 else ()
    entry = FileEntry(
        path=path,
        bytes=_size(data, "bytes", path),
        sha256=_digest(data, path),
        parameters=_size(data, "parameters", path),
        blocks=blocks,
        student_blocks=of_student,
    )
    if entry.is_shared != bool(blocks) or (of_student and not blocks):
        raise RepositoryError(f"{MANIFEST_FILE}: {path!r} must name the blocks that share it, and no other file may")
    return entry


def _blocks(data: dict[str, Any], key: str, where: str) -> tuple[int, ...]:
    listed = _typed(data.get(key, []), list, f"{where}.{key}")
    return tuple(_typed(block, int, f"{where}.{key}") for block in listed)


def _attachment(data: Any) -> ListedFile:
    data = _typed(data, dict, "attachments")
    path = _typed(data.get("path"), str, "attachments.path")
    check_attachment(path)
    return ListedFile(path, _size(data, "bytes", path), _digest(data, path))


def check_attachment(path: str) -> None:
    """Refuse the path of a file that cannot be attached to a save.

    Raises:
        RepositoryError: With the path.
    """
    check_path(path, ATTACHED)
    # There each save writes texts of its own: an attachment would take the place of one of them.
    if path.endswith(".json") and PurePosixPath(path).parent.as_posix() in TEXT_FOLDERS:
        raise RepositoryError(
            f"{MANIFEST_FILE} cannot have the attachment {path!r}: JSON files at the top and in teacher/ are configs, "
            "so put it into another folder, such as onnx/"
        )


def _size(data: dict[str, Any], key: str, path: str) -> int:
    size: int = _typed(data.get(key), int, f"{key} of {path!r}")
    if size < 0:
        raise RepositoryError(f"{MANIFEST_FILE}: {key} of {path!r} must not be negative, got {size}")
    return size


def _digest(data: dict[str, Any], path: str) -> str:
    digest: str = _typed(data.get("sha256"), str, f"sha256 of {path!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise RepositoryError(f"{MANIFEST_FILE}: sha256 of {path!r} must be 64 hex digits, got {digest!r}")
    return digest


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
