"""The folder that a repository is saved into: what in it may be replaced or removed (no torch).

The rule: weights that the manifest in the folder lists are the repository's own, and so are its config, index and code
files; everything else is the user's, never removed, and overwritten only on request.

A save notes its files in `pwl_saving.txt` until it ends: after a killed save the next one may replace them.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError

from ..errors import OverwriteError, PWLError, RepositoryError, SaveError
from ..sources import WITH_STUDENT
from ..task_names import TOKENIZER_FILES
from .files import leads_out
from .layout import (
    CONFIG_FILE,
    MANIFEST_FILE,
    PROCESSOR_FILE,
    STUDENT_FILE,
    TEXT_FOLDERS,
    converter_file,
    quantised_file,
    refinement_file,
    shared_file,
    teacher_shard,
)
from .manifest import ATTACHED, Manifest, check_path

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None  # type: ignore[assignment]

TEACHER_INDEX_FILE = "teacher/model.safetensors.index.json"
UNFINISHED_FILE = "pwl_saving.txt"

_NOTE = (
    "# A save into this folder is under way or was cut short. The next one replaces the files that are named here.\n"
)
_LOCK_SECONDS = 600.0

_TEXTS = (".json", ".jinja", ".md", ".py", ".txt")
_LISTED = (".safetensors", *ATTACHED)

# Device, inode, size, and the time of the last change.
FileState = tuple[int, int, int, int]

_ADVICE = "save into another folder, or give overwrite=True (--overwrite on the command line) to write over them"
_NAMED = 3

# `.model.safetensors.<process>.<thread>.tmp`, see `files.temporary_name`; an older version left out the thread.
_TEMPORARY = (re.compile(r"\.(.+)\.(\d+)\.\d+\.tmp"), re.compile(r"\.(.+)\.(\d+)\.tmp"))


def text_paths() -> set[str]:
    """The paths that each save writes besides weights: configs, the teacher's index, the manifest."""
    return {CONFIG_FILE, f"teacher/{CONFIG_FILE}", TEACHER_INDEX_FILE, MANIFEST_FILE}


def paths_of_save(num_blocks: int) -> set[str]:
    """Every path that a save of a model with N blocks may write, but for statistics and what the teacher's share."""
    blocks, boundaries = range(1, num_blocks + 1), range(1, num_blocks)
    return text_paths() | {
        *(path for name in (PROCESSOR_FILE, *TOKENIZER_FILES) for path in (name, f"teacher/{name}")),
        STUDENT_FILE,
        shared_file(WITH_STUDENT),
        *(of(block, num_blocks) for block in blocks for of in (teacher_shard, quantised_file, refinement_file)),
        *(converter_file("encoder", boundary) for boundary in boundaries),
        *(converter_file("decoder", boundary) for boundary in boundaries),
    }


@dataclass(frozen=True)
class Contents:
    """A folder's manifest and notes, as a save finds them.

    Args:
        manifest: Its manifest; None if there is none, or it cannot be read.
        unfinished: The paths that a killed save has noted.
        complaint: Why the manifest cannot be read.
    """

    manifest: Manifest | None
    unfinished: frozenset[str]
    complaint: str = ""

    @classmethod
    def of(cls, root: Path) -> Contents:
        """Read a folder, which need not exist."""
        manifest, complaint = None, ""
        try:
            manifest = Manifest.from_json((root / MANIFEST_FILE).read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, RepositoryError) as error:
            complaint = str(error)
        return cls(manifest, frozenset(_noted(root)), complaint)

    def owns(self, path: str) -> bool:
        """True if the file at this path is the repository's, so that a save may replace it."""
        if path in self.unfinished:
            return True
        if self.manifest is None:
            return False
        return _is_text(path) or path in self.manifest.paths

    def listed(self) -> set[str]:
        """The files with weights, and those attached to them, that are the repository's."""
        listed = set(self.manifest.paths) if self.manifest is not None else set()
        return listed | {path for path in self.unfinished if path.endswith(_LISTED) and not _is_text(path)}


def _is_text(path: str) -> bool:
    """Whether a file is one of the texts that lie at a repository's root and with the teacher."""
    return path.endswith(_TEXTS) and PurePosixPath(path).parent.as_posix() in TEXT_FOLDERS


def check_output(
    directory: str | os.PathLike[str],
    paths: Collection[str],
    *,
    inputs: Collection[str | os.PathLike[str]] = (),
    overwrite: bool = False,
    advice: str = _ADVICE,
) -> None:
    """Refuse a folder that a repository must not be written into.

    Args:
        directory: The folder; it need not exist.
        paths: The paths in it to write.
        inputs: What the repository is made from: folders among these may not be written into.
        overwrite: Write over files that are not a repository's.
        advice: What the error advises.

    Raises:
        OverwriteError: If files would be written over that are not the repository's own.

    Example:

        >>> check_output("a-new-folder", paths_of_save(num_blocks=4), inputs=["teacher", "student"])
    """
    # 1. Not into what the model is made from, not into links, no folder where a file must be.
    root = Path(directory)
    folders = sorted({str(PurePosixPath(path).parent) for path in paths} | {"."})
    for given in inputs:
        for folder in folders:
            place = root / folder
            if os.path.isdir(given) and place.exists() and place.samefile(given):
                raise OverwriteError(
                    f"{place} is the folder that the model is made from ({os.fspath(given)}), and saving into {root} "
                    "would write over it: save into another folder"
                )
    for path in sorted({*folders, *paths}):
        place, is_folder = root / path, path in folders
        if place.exists() and place.is_dir() != is_folder:
            found, needed = ("file", "folder") if is_folder else ("folder", "file")
            raise OverwriteError(
                f"{place} is a {found}, and saving needs a {needed} of that name: move it away, or save into another "
                "folder"
            )
    for folder in folders:
        if folder != "." and leads_out(root, folder):
            raise OverwriteError(
                f"{root / folder} is a link to {(root / folder).resolve()}, out of the folder that is saved into: "
                "replace the link by a folder, or save into another one"
            )
    if not _is_ours(root / UNFINISHED_FILE):
        raise OverwriteError(
            f"{root} holds {UNFINISHED_FILE}, which is not this library's, and saving needs a file of that name: move "
            "it away, or save into another folder"
        )
    # 2. Not over files of others, unless that was asked for.
    if overwrite:
        return
    contents = Contents.of(root)
    taken = sorted(path for path in paths if os.path.lexists(root / path) and not contents.owns(path))
    if taken:
        named = ", ".join(taken[:_NAMED]) + (f" and {len(taken) - _NAMED} more" if len(taken) > _NAMED else "")
        if contents.manifest is not None:
            reason = f"which its {MANIFEST_FILE} does not list"
        elif contents.complaint:
            reason = f"and its {MANIFEST_FILE}, which would tell whose they are, cannot be read ({contents.complaint})"
        else:
            reason = f"and no {MANIFEST_FILE} that says they are a PWL repository's"
        raise OverwriteError(f"{root} holds {named}, {reason}; nothing was written: {advice}")


@contextmanager
def saving_into(
    directory: str | os.PathLike[str],
    paths: Collection[str],
    *,
    inputs: Collection[str | os.PathLike[str]] = (),
    overwrite: bool = False,
) -> Iterator[Contents]:
    """Hold a folder while a repository is written into it; afterwards remove what an earlier save left there.

    Removed are the files of the manifest that was there, where the new one has none at their paths, and
    temporary files of processes that are gone.

    Args:
        directory: The folder; it is made if need be.
        paths: The paths in it to write, with the manifest, which is written last.
        inputs: As in `check_output`.
        overwrite: As in `check_output`.

    Yields:
        The folder as it was.

    Raises:
        OverwriteError: As `check_output`; nothing was written.
        SaveError: If another save into the folder does not end.
    """
    root = Path(directory)
    if not root.is_dir() and os.path.lexists(root):
        check_output(root, paths, inputs=inputs, overwrite=overwrite)
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    with exclusive_folder(root) as alone:
        # Not before: the files of a save under way are in no manifest yet.
        check_output(root, paths, inputs=inputs, overwrite=overwrite)
        contents = Contents.of(root)
        stale = contents.listed() - set(paths)
        found = states(root, paths)
        with writing(root / UNFINISHED_FILE):
            _note(root, {*paths, *stale})
        try:
            yield contents
        except BaseException:
            # A save that failed before its first file leaves nothing to note.
            if not contents.unfinished and states(root, paths) == found:
                (root / UNFINISHED_FILE).unlink(missing_ok=True)
            raise
        for path in sorted(stale):
            if not leads_out(root, str(PurePosixPath(path).parent)):
                with writing(root / path):
                    (root / path).unlink(missing_ok=True)
        if alone:
            _remove_temporary(root, {*paths, *contents.listed()})
        (root / UNFINISHED_FILE).unlink(missing_ok=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn errors of the system and of safetensors into a `SaveError` with the file and the cause.

    Args:
        target: The file or folder to name.

    Raises:
        SaveError: For such an error.
    """
    try:
        yield
    except PWLError:
        raise
    except (OSError, SafetensorError) as error:
        # safetensors has the error number in its text only.
        found = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else found and int(found[1])
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = "the disk is full; make room and save again"
        elif number in (errno.EROFS, errno.EACCES, errno.EPERM):
            advice = "the folder may not be written to; save elsewhere"
            if os.name == "nt":
                # There a mapped file is not replaced.
                advice = (
                    "the folder may not be written to, or a model has the file open (load it with disable_mmap=True); "
                    "save elsewhere"
                )
        else:
            advice = "save again, or elsewhere"
        raise SaveError(f"{target} could not be written: {advice} ({type(error).__name__}: {error})") from error


@contextmanager
def exclusive_folder(root: Path) -> Iterator[bool]:
    """Let other saves into a folder wait, in all threads and processes of this machine.

    The lock is the folder itself: it leaves no file behind, and ends with the process that holds it.

    Yields:
        True if the lock is held; False where there are no locks for folders.

    Raises:
        SaveError: If another save holds it for too long.
    """
    try:
        descriptor = os.open(root, os.O_RDONLY) if fcntl is not None else None
    except OSError:
        descriptor = None
    if descriptor is None:
        yield False
        return
    held = False
    try:
        held = _acquire(descriptor, root)
        yield held
    finally:
        if held:
            # Closing is not enough: a forked child has the descriptor, too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _acquire(descriptor: int, root: Path) -> bool:
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise SaveError(
                    f"{root}: another process has been saving into it for {_LOCK_SECONDS:.0f} seconds; nothing was "
                    "written: save again when it has ended, or into another folder"
                ) from error
            time.sleep(0.02)
        except OSError:
            return False


def states(root: Path, paths: Collection[str]) -> dict[str, FileState]:
    """The identity of each file that exists."""
    found: dict[str, FileState] = {}
    for path in paths:
        with suppress(OSError):
            stat = (root / path).lstat()
            found[path] = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
    return found


def _is_ours(note: Path) -> bool:
    """True if there is no file, or it is a note of this library, perhaps cut short."""
    if not os.path.lexists(note):
        return True
    try:
        text = note.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    # Not a link: the note would be appended to its target.
    return not note.is_symlink() and (text.startswith(_NOTE) or _NOTE.startswith(text))


def _noted(root: Path) -> Iterator[str]:
    """The paths in the note of a save that did not end; of what may be removed, only valid ones."""
    note = root / UNFINISHED_FILE
    if not note.is_file() or not _is_ours(note):
        return
    for line in note.read_text(encoding="utf-8").splitlines(keepends=True):
        path = line.rstrip("\n")
        # A line without its end was cut short by the kill.
        if not line.endswith("\n") or line.startswith("#"):
            continue
        with suppress(RepositoryError):
            if path.endswith(_LISTED) and not _is_text(path):
                check_path(path, _LISTED)
            yield path


def _note(root: Path, paths: Collection[str]) -> None:
    # Appended: a kill here must not lose the note of an earlier save.
    with (root / UNFINISHED_FILE).open("a", encoding="utf-8", newline="\n") as file:
        file.write(_NOTE + "".join(f"{path}\n" for path in sorted(paths)))


def _remove_temporary(root: Path, paths: Collection[str]) -> None:
    """Remove the repository's temporary files of processes that have ended."""
    names = {PurePosixPath(path).name for path in paths}
    for folder in {root, *(root / PurePosixPath(path).parent for path in paths)}:
        if leads_out(root, str(folder.relative_to(root))):
            continue
        for found in folder.glob(".*.tmp"):
            match = next((match for form in _TEMPORARY if (match := form.fullmatch(found.name))), None)
            if match is None or match[1] not in names or _may_run(int(match[2])):
                continue
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink(missing_ok=True)


def _may_run(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
