"""The accuracy of every stage as a metric of the `evaluate` library, without the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pwl_hf.evaluation.area import area_over_bytes, is_monotone
from pwl_hf.modeling.errors import PWLError

try:
    import datasets
    import evaluate
    import numpy as np
except ImportError as error:
    raise PWLError('StagedAccuracy needs datasets and evaluate: pip install "pwl-hf[evaluate]"') from error

_DESCRIPTION = """
The accuracy of each stage of a Progressive Weight Loading model over the same images, whether it rises from stage to
stage, and the area under the accuracy over the bytes loaded.
"""
_INPUTS = """
Args:
    predictions: For each image its class at stages 0 to N, such as [3, 8, 8].
    references: For each image its class.
    total_bytes: Optional: N + 1 sizes, those of all files loaded at each stage, for the area.

Returns:
    accuracies: N + 1 fractions, the student's first.
    monotone: Whether no stage is less accurate than the one before it.
    area_over_bytes: With total_bytes b: sum over k < N of accuracies[k] * (b[k+1] - b[k]) / b[N].
"""
_CITATION = "Kim et al., Progressive Weight Loading, arXiv 2509.22319"


class StagedAccuracy(evaluate.Metric):  # type: ignore[misc]
    """The accuracy of every stage, and the area under them.

    It is a class rather than a script, so `evaluate.load` and the network have no part in it. In one process
    predictions are kept in memory and nothing is written, also where the home folder may not be written to; in
    several, `evaluate` gathers them through files in `cache_dir`.

    It is for models that choose one label of several for an image: scores of several labels, or of a regression, are
    refused.

    Args:
        options: As in `evaluate.Metric`; `keep_in_memory` is the default in one process.

    Example:

        >>> from pwl_hf.staged_accuracy import StagedAccuracy
        >>> metric = StagedAccuracy()
        >>> metric.add_batch(predictions=[[3, 8, 8], [1, 1, 1]], references=[8, 1])
        >>> metric.compute(total_bytes=[10, 50, 100])
        {'accuracies': [0.5, 1.0, 1.0], 'monotone': True, 'area_over_bytes': 0.7}
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("keep_in_memory", options.get("num_process", 1) == 1)
        super().__init__(**options)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """As `evaluate`'s.

        Raises:
            ValueError: If predictions or references are no class numbers.
        """
        _check_classes("predictions", [value for row in predictions for value in row])
        _check_classes("references", references)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """As `evaluate`'s.

        Raises:
            ValueError: If prediction or reference are no class numbers.
        """
        _check_classes("prediction", prediction)
        _check_classes("reference", [reference])
        super().add(prediction=prediction, reference=reference, **kwargs)

    def _build_data_dir(self) -> str:
        # Only for files that it will write.
        root: str = self._data_dir_root
        return root if self.keep_in_memory else str(super()._build_data_dir())

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("int64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self,
        *,
        predictions: Sequence[Sequence[int]],
        references: Sequence[int],
        total_bytes: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        counts = {len(row) for row in predictions}
        if len(counts) != 1 or counts == {0}:
            raise ValueError(
                "predictions must have one class a stage for every image, as many for each; "
                f"got {sorted(counts) if counts else 'no images'}"
            )
        right = np.asarray(predictions) == np.asarray(references)[:, None]
        accuracies = [float(value) for value in right.mean(0)]
        found = {"accuracies": accuracies, "monotone": is_monotone(accuracies)}
        return found if total_bytes is None else found | {"area_over_bytes": area_over_bytes(accuracies, total_bytes)}


def _check_classes(name: str, values: Sequence[Any]) -> None:
    # `evaluate` would cut 0.9 to 0.
    found = np.asarray(values)
    if found.dtype.kind == "f" and (wrong := found[found != np.floor(found)]).size:
        raise ValueError(
            f"{name} must be class numbers, got {wrong[0]}: give the class of the greatest logit, of a model that "
            "chooses one label of several for an image"
        )
