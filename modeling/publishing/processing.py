"""What makes a model's inputs of samples: an image processor, a feature extractor or a tokenizer.

In a repository they are texts at the root, for pipelines, and once more with the teacher, which may be opened alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..errors import FetchError, RepositoryError
from ..repository.processing import fetch_those_there
from ..task_names import FIRST_TASK, TASKS

if TYPE_CHECKING:
    from ..parts.parts import Parts

logger = logging.get_logger(__name__)

# Words, numbers, case, accents, another script and blanks: what tokenizers of one vocabulary may treat differently.
_PROBE = "The Quick brown fox's 1,984 naïve cafés: {x} != [y]  mañana 東京 é\t#42\n"


def processing_files(processing_class: Any) -> dict[str, str]:
    """The text files that an image processor, a feature extractor or a tokenizer is saved as, for a repository.

    Args:
        processing_class: What is saved.

    Raises:
        ValueError: If it is saved as more than text.
    """
    with tempfile.TemporaryDirectory() as folder:
        processing_class.save_pretrained(folder)
        found = {}
        for path in Path(folder).iterdir():
            try:
                found[path.name] = path.read_text(encoding="utf-8")
            except ValueError as error:
                raise ValueError(
                    f"{type(processing_class).__name__} saves {path.name}, which is no text, and a PWL repository has "
                    "no place for it: give a tokenizer that is saved as tokenizer.json"
                ) from error
    return _both_places(found)


def stored_processing(parts: Parts) -> dict[str, str]:
    """The files that a model's repository is to have, by path: those it was joined with, or its own repository's.

    Raises:
        RepositoryError: If one is damaged each time, or a link out of its folder.
    """
    if parts.store is None:
        return dict(parts.processing)
    repository = parts.store.repository
    names = TASKS.get(parts.config.task or "", TASKS[FIRST_TASK]).files
    repository.check_links(names)
    try:
        contents = fetch_those_there(names, repository.fetch_text)
    except FetchError as error:
        # Whether it has them cannot be known now; that must not keep the weights from being saved.
        logger.warning("saved without %s: %s", names[0], error)
        return {}
    found = {}
    for name, content in contents.items():
        try:
            found[name] = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RepositoryError(
                f"{repository}: {name} is not UTF-8 text and would not be saved: put a sound one in its place"
            ) from error
    return _both_places(found)


def load_processing(name: str, task: str, **options: Any) -> Any:
    """What makes a network's inputs, of a folder or the Hub; None if there is none.

    Args:
        name: The network's folder or Hub id.
        task: Its task.
        options: For `from_pretrained`, such as `token`.
    """
    if task not in TASKS:
        return None
    try:
        return getattr(transformers, TASKS[task].processing_class).from_pretrained(name, **options)
    # A folder without one; of a config alone some tokenizers fail with what they run into.
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return None


def refuse_other_tokens(teacher: Any, student: Any) -> None:
    """Refuse two tokenizers that make different numbers of one text; what is no tokenizer is passed over.

    Args:
        teacher: The teacher's.
        student: The student's.

    Raises:
        ValueError: With the first token that has two numbers, or with what they make of a text.
    """
    if not isinstance(teacher, PreTrainedTokenizerBase) or not isinstance(student, PreTrainedTokenizerBase):
        return
    reason = "the student would read other words than the teacher: give a student of the teacher's tokenizer"
    own, other = teacher.get_vocab(), student.get_vocab()
    for token in sorted(own.keys() | other.keys()):
        if own.get(token) != other.get(token):
            raise ValueError(
                f"teacher and student must have one tokenizer, but the token {token!r} is number {own.get(token)} for "
                f"the teacher and {other.get(token)} for the student: {reason}"
            )
    words = sorted(token for token in own if token.isalpha())
    some = words[:: max(1, len(words) // 20)]
    for text in (_PROBE, *(word for token in some for word in (token, token.capitalize()))):
        made = [list(tokenizer(text)["input_ids"]) for tokenizer in (teacher, student)]
        if made[0] != made[1]:
            raise ValueError(
                f"teacher and student must have one tokenizer, but of the text {text!r} the teacher's makes {made[0]}, "
                f"the student's {made[1]}: {reason}"
            )


def _both_places(found: Mapping[str, str]) -> dict[str, str]:
    return {**found, **{f"teacher/{name}": text for name, text in found.items()}}
