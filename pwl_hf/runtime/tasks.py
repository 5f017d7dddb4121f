"""What a task makes of samples, and of logits: from images, texts and sounds to the answers of transformers' pipelines.

Notation: B samples, K labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pwl_hf.modeling.errors import InputError, RepositoryError
from pwl_hf.modeling.graphs.index import GraphIndex
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.modeling.task_names import TASKS, TOKENIZER_FILE

Arrays = Mapping[str, NDArray[Any]]
# Runs batches through the sessions of one stage.
Run = Callable[[Sequence[Arrays]], list[NDArray[np.float32]]]

_BY_HAND = "make inputs yourself, and call logits with arrays by name"


class Task(Protocol):
    """What is particular to a task."""

    def batches(self, samples: Any) -> list[Arrays]:
        """What the networks take, in one batch or several.

        Raises:
            InputError: If a sample is none.
        """
        ...

    def predict(self, run: Run, samples: Any, **parameters: Any) -> Any:
        """The answers of transformers' pipeline.

        Args:
            run: Runs batches.
            samples: One sample or several.
            parameters: As the pipeline takes them.
        """
        ...


def task_of(index: GraphIndex, repository: Repository) -> Task:
    """The task of a repository.

    Args:
        index: What its graphs are.
        repository: Where its tokenizer lies.

    Raises:
        RepositoryError: If it has nothing that makes inputs of samples, or what is not supported, by name.
    """
    return _TASKS[index.task](index, repository)


def check_parameters(parameters: Mapping[str, Any], known: Sequence[str], index: GraphIndex) -> None:
    """Refuse what a task does not have.

    Raises:
        InputError: With the parameters that it has.
    """
    if other := next((name for name in parameters if name not in known), None):
        raise InputError(f"{TASKS[index.task].pipeline} has no parameter {other!r:.100}, but {', '.join(known)}")


class _Ranked:
    """A task whose answer is a ranking of labels."""

    known: tuple[str, ...] = ("top_k", "function_to_apply")

    def __init__(self, index: GraphIndex) -> None:
        self.index = index

    def checked(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of the ranking, which are looked at before a sample is."""
        from pwl_hf.runtime.ranking import check_function, check_top_k

        check_parameters(parameters, self.known, self.index)
        found = {"top_k": parameters.get("top_k", 5), "function_to_apply": parameters.get("function_to_apply")}
        check_top_k(found["top_k"])
        check_function(found["function_to_apply"])
        return found

    def ranked(self, logits: Sequence[NDArray[np.float32]], ranking: Mapping[str, Any], *, is_one: bool) -> Any:
        """Labels and scores of each sample, or of the only one."""
        from pwl_hf.runtime.ranking import rank

        answers = rank(np.concatenate(logits), self.index.labels, self.index.problem_type, **ranking)
        return answers[0] if is_one else answers


class ImageTask(_Ranked):
    """Image classification."""

    def __init__(self, index: GraphIndex, repository: Repository) -> None:
        # Pillow is imported for images alone.
        from pwl_hf.runtime.preprocessing import Preprocessing

        super().__init__(index)
        if index.processor is None:
            raise RepositoryError(f"{repository} has no preprocessor_config.json: {_BY_HAND}")
        if len(index.inputs) != 1:
            raise RepositoryError(f"the model takes {', '.join(index.inputs)}: give each by name")
        ((self.name, shape),) = index.inputs.items()
        try:
            self.preprocessing = Preprocessing.of(index.processor, shape[1] if len(shape) == 4 else 3)
        except ValueError as error:
            raise RepositoryError(f"{repository}: {error}; or {_BY_HAND}") from error

    def batches(self, samples: Any) -> list[Arrays]:
        """See `Task`."""
        return [{self.name: self.preprocessing(samples)}]

    def predict(self, run: Run, samples: Any, **parameters: Any) -> Any:
        """See `Task`."""
        from pwl_hf.runtime.images import is_one

        ranking = self.checked(parameters)
        return self.ranked(run(self.batches(samples)), ranking, is_one=is_one(samples))


def _texting_of(index: GraphIndex, repository: Repository) -> Any:
    try:
        from pwl_hf.runtime.texts import Texting
    except ModuleNotFoundError as error:
        raise ImportError(
            f'texts need {error.name}, which is not installed: pip install "pwl-hf[runtime]"', name=error.name
        ) from error

    if index.tokenizer is None:
        raise RepositoryError(f"{repository} has no {TOKENIZER_FILE}: {_BY_HAND}")
    return Texting(repository.fetch_text(TOKENIZER_FILE), index.tokenizer, str(repository))


def _is_true(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InputError(f"{name} must be true or false, got {value!r:.100}")
    return value


class TextTask(_Ranked):
    """Text classification."""

    known = ("top_k", "function_to_apply", "truncation")

    def __init__(self, index: GraphIndex, repository: Repository) -> None:
        super().__init__(index)
        self.texting = _texting_of(index, repository)

    def batches(self, samples: Any, *, truncation: bool = False) -> list[Arrays]:
        """See `Task`."""
        return [self.texting.arrays(self.texting.encodings(samples, truncation=truncation), tuple(self.index.inputs))]

    def predict(self, run: Run, samples: Any, **parameters: Any) -> Any:
        """See `Task`."""
        from pwl_hf.runtime.texts import is_one

        ranking, truncation = self.checked(parameters), _is_true(parameters, "truncation")
        return self.ranked(run(self.batches(samples, truncation=truncation)), ranking, is_one=is_one(samples))


class TokenTask:
    """Token classification."""

    known = ("aggregation_strategy", "ignore_labels", "stride", "truncation")

    def __init__(self, index: GraphIndex, repository: Repository) -> None:
        self.index = index
        self.texting = _texting_of(index, repository)

    def batches(self, samples: Any) -> list[Arrays]:
        """See `Task`."""
        return [self.texting.arrays(self.texting.encodings(samples), tuple(self.index.inputs))]

    def predict(self, run: Run, samples: Any, **parameters: Any) -> Any:
        """See `Task`."""
        from pwl_hf.runtime.texts import is_one, read_texts
        from pwl_hf.runtime.tokens import OUTSIDE, entities_of

        # 1. Parameters, before a text is looked at.
        strategy, ignored, stride, truncation = self._checked(parameters)
        texts = list(read_texts(samples))
        if pair := next((name for name, _, pair in texts if pair is not None), None):
            raise InputError(f"{pair} is a pair, and tokens are those of one text: give a string")
        # 2. Each text as one piece, or as several that share tokens.
        pieces = [
            self.texting.encodings(text, truncation=truncation) if stride is None else self.texting.pieces(text, stride)
            for _, text, _ in texts
        ]
        encodings = [encoding for own in pieces for encoding in own]
        (logits,) = run([self.texting.arrays(encodings, tuple(self.index.inputs))])
        # 3. The logits of each token, without padding.
        rows, answers = iter(logits), []
        on_left = self.texting.settings.padding_side == "left"
        for (_, text, _), own in zip(texts, pieces, strict=True):
            found = []
            for encoding in own:
                row, length = next(rows), len(encoding.ids)
                found.append((encoding, row[len(row) - length :] if on_left else row[:length]))
            answers.append(
                entities_of(
                    text,
                    found,
                    self.index.labels,
                    self.texting.tokenizer,
                    unk_token_id=self.texting.settings.unk_token_id,
                    aggregation_strategy=strategy,
                    ignore_labels=OUTSIDE if ignored is None else ignored,
                )
            )
        return answers[0] if is_one(samples) else answers

    def _checked(self, parameters: Mapping[str, Any]) -> tuple[str, Sequence[str] | None, int | None, bool]:
        from pwl_hf.runtime.tokens import STRATEGIES

        check_parameters(parameters, self.known, self.index)
        strategy, stride = parameters.get("aggregation_strategy", "none"), parameters.get("stride")
        ignored, truncation = parameters.get("ignore_labels"), _is_true(parameters, "truncation")
        if strategy not in STRATEGIES:
            raise InputError(f"aggregation_strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r:.100}")
        if ignored is not None and (
            not isinstance(ignored, list | tuple) or not all(isinstance(label, str) for label in ignored)
        ):
            raise InputError(f"ignore_labels must be a list of labels, got {ignored!r:.100}")
        if stride is not None and (isinstance(stride, bool) or not isinstance(stride, int) or stride < 0):
            raise InputError(f"stride must be a whole number of tokens, got {stride!r:.100}")
        if stride is not None and (strategy == "none" or truncation):
            raise InputError(
                "stride is for a text in pieces, whose entities are put together: give an aggregation_strategy other "
                "than none, and no truncation"
            )
        return str(strategy), ignored, stride, truncation


class SoundTask(_Ranked):
    """Audio classification."""

    known = ("top_k", "function_to_apply", "sampling_rate")

    def __init__(self, index: GraphIndex, repository: Repository) -> None:
        from pwl_hf.runtime.sound_features import extractor_of

        super().__init__(index)
        if index.processor is None:
            raise RepositoryError(f"{repository} has no preprocessor_config.json: {_BY_HAND}")
        try:
            self.extractor = extractor_of(index.processor)
        except ValueError as error:
            raise RepositoryError(f"{repository}: {error}; {_BY_HAND}") from error
        name = next(name for name in index.inputs if name != "attention_mask")
        _, *wanted = index.inputs[name]
        if tuple(wanted) != self.extractor.shape:
            raise RepositoryError(
                f"{repository}: preprocessor_config.json makes {name} of shape {self.extractor.shape} of a sound, and "
                f"the networks take {tuple(wanted)} (-1 is any length): save the feature extractor that they were "
                f"trained with; {_BY_HAND}"
            )

    def batches(self, samples: Any) -> list[Arrays]:
        """See `Task`."""
        from pwl_hf.runtime.sounds import read_sounds

        named = list(read_sounds(samples, self.extractor.sampling_rate))
        least = self.index.min_length or 1
        if short := next(((name, wave) for name, wave in named if len(wave) < least), None):
            raise InputError(
                f"{short[0]} has {len(short[1])} samples, and the network needs {least}: give a longer one"
            )
        names = self.index.inputs
        return [{name: made[name] for name in names} for made in self.extractor.batches(named)]

    def predict(self, run: Run, samples: Any, **parameters: Any) -> Any:
        """See `Task`."""
        from pwl_hf.runtime.sounds import is_one

        ranking = self.checked(parameters)
        if (rate := parameters.get("sampling_rate")) is not None:
            samples = _at_rate(samples, rate)
        if ranking["function_to_apply"] is None and self.index.problem_type is None:
            # The pipeline of sounds has a softmax for a single label too.
            ranking["function_to_apply"] = "softmax"
        return self.ranked(run(self.batches(samples)), ranking, is_one=is_one(samples))


def _at_rate(samples: Any, rate: Any) -> Any:
    """Arrays with the rate that they are of."""
    from pwl_hf.runtime.sounds import is_one

    several = [samples] if is_one(samples) else samples
    if not all(isinstance(sample, np.ndarray) for sample in several):
        raise InputError("sampling_rate is for arrays: files tell theirs")
    found = [{"array": sample, "sampling_rate": rate} for sample in several]
    return found[0] if is_one(samples) else found


_TASKS: Mapping[str, Callable[[GraphIndex, Repository], Task]] = {
    "AutoModelForImageClassification": ImageTask,
    "AutoModelForSequenceClassification": TextTask,
    "AutoModelForTokenClassification": TokenTask,
    "AutoModelForAudioClassification": SoundTask,
}
