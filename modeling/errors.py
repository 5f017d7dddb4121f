"""The errors of the library. Each names the thing, the value it has, and what to do."""

from __future__ import annotations

from .plain import plain


class PWLError(Exception):
    """Base of every error that this library raises on its own account.

    Args:
        arguments: What it says; as it may quote a repository, without control characters.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(plain(a) if isinstance(a, str) else a for a in arguments))


class InputError(PWLError, ValueError):
    """Something given, such as a device, a checkpoint or a folder of images, that cannot be used: what to give instead.

    The command line ends with status 2, as for a wrong option.
    """


class RepositoryError(PWLError, ValueError):
    """A repository that cannot be trusted: a malformed manifest, a wrong hash, a wrong tensor.

    Nothing of the file has been attached when it is raised: the model stays at its stage.
    """


class MissingFileError(RepositoryError):
    """A file that a repository does not have."""


class StageError(PWLError, RuntimeError):
    """A change of stage that is refused. The model stays at the stage it was at."""


class SaveError(PWLError, OSError):
    """A model that cannot be saved as it is, or a file of a repository that could not be written. The model is intact.

    It names the tensor or module, or folder, file and cause, and what to do.

    What the folder held before may be written over in part; it is then refused, or loads as what it was.
    """


class OverwriteError(SaveError, ValueError):
    """A save that is refused before anything is written: it would write over what is not the repository's own.

    Over files that no save of this library put there, or over the folder that the model was made from.
    """


class PublishError(PWLError, OSError):
    """A push that did not go through, after all tries. What was sent is kept: call again to resume."""


class FetchError(PWLError, OSError):
    """A file that could not be fetched, after all tries: names repository, commit, file, cause and what to do.

    The model stays at its stage and keeps answering: call again later to resume.
    """


class StateDictError(PWLError, RuntimeError):
    """A state dict that would leave the model a mixture of two. Nothing of it has been loaded."""


class TrainingError(PWLError, RuntimeError):
    """A training whose loss or weights are no longer finite numbers: names step, value, what to do, and what is left.

    Nothing of it was saved: the checkpoints that were written before stay as they are.
    """
