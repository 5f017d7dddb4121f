"""Evaluating a repository, in a folder or on the Hub, on a data set: what `pwl-hf evaluate` does."""

from __future__ import annotations

import os
import platform
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import Dataset

from pwl_hf.data import DataSource, ImageSplit, SoundSplit, open_split
from pwl_hf.data.inputs import inputs_of
from pwl_hf.data.processing import check_channels
from pwl_hf.data.source import DIGITS
from pwl_hf.evaluation.labels import check_one_label, class_numbers
from pwl_hf.evaluation.orders import ORDERS, masks_of
from pwl_hf.evaluation.report import DatasetEvaluated, Report, RepositoryEvaluated, Settings
from pwl_hf.evaluation.running import evaluate_masks, evaluate_stages
from pwl_hf.modeling import PWLConfig, PWLPreTrainedModel
from pwl_hf.modeling.errors import InputError, OverwriteError, RepositoryError
from pwl_hf.modeling.loading import read_config
from pwl_hf.modeling.plain import one_line
from pwl_hf.modeling.publishing.model_card import CARD_FILE, stage_rows, write_card
from pwl_hf.modeling.publishing.processing import load_processing
from pwl_hf.modeling.publishing.saving import write_metrics
from pwl_hf.modeling.repository.layout import PROCESSOR_FILE
from pwl_hf.modeling.repository.manifest import Manifest, Metric
from pwl_hf.modeling.repository.output_folder import Contents, text_paths
from pwl_hf.modeling.repository.processing import fetch_those_there
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.modeling.task_names import TASKS
from pwl_hf.opening import class_of, samples_of

if TYPE_CHECKING:
    from pwl_hf.data.opening import Split
    from pwl_hf.data.pixels import Item

# Images and sounds of a split are kept as tensors for all stages if they take no more than this.
_KEPT_BYTES = 2**31

# What an error calls them.
_CALLED = {
    "AutoImageProcessor": "image processor",
    "AutoTokenizer": "tokenizer",
    "AutoFeatureExtractor": "feature extractor",
}


def evaluate_repository(
    repo: str | os.PathLike[str],
    source: DataSource,
    split: str = "test",
    *,
    orders: str = "prefix",
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    progress: bool = False,
) -> Report:
    """Evaluate the masks of an order on a split of a data set.

    The stages are stepped through as a server would, from the first file on; images and sounds that fit into memory
    are decoded once for all of them, as texts are made into tokens. For the other orders, and for a stream, everything
    is loaded, and one pass over the data serves all masks. The data's labels are brought into the model's order (see
    `class_numbers`).

    Args:
        repo: A folder or a Hub id; its image processor, tokenizer or feature extractor makes tensors of the samples.
        source: Where these lie.
        split: The split.
        orders: Which masks (see `masks_of`).
        batch_size: How many samples run at once.
        num_workers: Processes that read images and sounds which do not fit into memory.
        device: Where it runs; on the first GPU if there is one, by default.
        dtype: The floating dtype; the stored one by default.
        revision: Branch, tag or commit of a Hub repository; what it is at the start holds to the end.
        subfolder: Where in the repository the model lies.
        token: As in huggingface_hub.
        progress: Show progress bars.

    Raises:
        InputError: For a device that is not there, or a package that is missing.
        ValueError: For another order, a model that does not choose one label of several, or data that does not fit the
            model (see `evaluate_masks`).
        DataError: If the data cannot be read.
        RepositoryError: If the repository is malformed, or has nothing that makes inputs of its samples.

    Example:

        >>> from pwl_hf.data import DataSource
        >>> report = evaluate_repository("digits-pwl", DataSource("digits"))  # doctest: +SKIP
        >>> [round(accuracy, 3) for accuracy in report.evaluation.accuracies]  # doctest: +SKIP
        [0.932, 0.957, 0.969, 0.976, 0.976]
    """
    if orders not in ORDERS:
        raise ValueError(f"orders must be one of {', '.join(ORDERS)}, got {orders!r}")
    in_steps = orders == "prefix" and not source.streaming
    opened, manifest, model, samples = open_to_measure(
        repo,
        source,
        split,
        keep_all=not in_steps,
        keep_images=in_steps,
        device=device,
        dtype=dtype,
        revision=revision,
        subfolder=subfolder,
        token=token,
    )
    masks = model.schedule if orders == "prefix" else masks_of(orders, model.num_blocks)
    measure = evaluate_stages if in_steps else partial(evaluate_masks, masks=masks)
    evaluation = measure(
        model,
        samples,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
    )
    return Report(
        RepositoryEvaluated(os.fspath(repo), subfolder, opened.commit, manifest.fingerprint),
        DatasetEvaluated(
            source.name,
            source.config,
            source.revision,
            split,
            source.max_samples,
            evaluation.total,
            samples_of(model.task),
        ),
        Settings(_device_name(model.device), str(model.dtype).removeprefix("torch."), batch_size),
        orders,
        evaluation,
        model.schedule,
        tuple(row["total_bytes"] for row in stage_rows(manifest)),
        {"python": platform.python_version()}
        | {name: version(name) for name in ("pwl-hf", "torch", "transformers", "datasets")},
    )


class Opened(NamedTuple):
    """A repository and the samples that it is measured on.

    Args:
        repository: The repository, at one commit.
        manifest: Its manifest.
        model: Its model.
        samples: Items with the model's inputs and `labels`, numbered as the model's are.
    """

    repository: Repository
    manifest: Manifest
    model: PWLPreTrainedModel
    samples: Dataset[Item]


def open_to_measure(
    repo: str | os.PathLike[str],
    source: DataSource,
    split: str,
    *,
    keep_all: bool,
    keep_images: bool,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
) -> Opened:
    """Open a repository and the samples that it is to be measured on; what cannot be measured is refused first.

    Args:
        repo: As in `evaluate_repository`.
        source: As there.
        split: As there.
        keep_all: Load both networks whole.
        keep_images: Keep images and sounds in memory, if they are not streamed and fit.
        device: As in `evaluate_repository`.
        dtype: As there.
        revision: As there.
        subfolder: As there.
        token: As there.

    Raises:
        InputError: As `evaluate_repository`, and all that follow.
        ValueError: As there.
        DataError: As there.
        RepositoryError: As there.
    """
    if device is not None:
        _check_device(device)
    opened = Repository.open(repo, revision=revision, subfolder=subfolder, token=token)
    manifest = opened.manifest()
    # What cannot be measured is refused before data and weights are loaded.
    config: Any = read_config(opened, PWLConfig, {})
    model_class = class_of(config, str(opened))
    check_one_label(config, str(opened))
    samples = samples_of(config.task)
    if samples == "images":
        check_channels(config.num_channels)
    data: Split = open_split(source, split, samples)
    data = data.renumbered(class_numbers(data.label_names, config.id2label, data=data.title, model=str(opened)))
    model: PWLPreTrainedModel = model_class.from_pretrained(
        repo,
        keep_all=keep_all,
        dtype=dtype,
        device_map=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        revision=opened.commit,
        subfolder=subfolder,
        token=token,
    )
    inputs = partial(
        inputs_of,
        data,
        _processing(opened, config.task),
        num_channels=config.num_channels if samples == "images" else 3,
        max_length=config.max_tokens,
    )
    lazy = inputs()
    return Opened(opened, manifest, model, inputs(keep_in_memory=True) if keep_images and _fits(data, lazy) else lazy)


def record_metrics(directory: str | os.PathLike[str], report: Report) -> Manifest:
    """Enter accuracy and F1 of all stages into the manifest of a folder, in place of those there, and into its card.

    Args:
        directory: The folder of the repository, with the weights that were evaluated.
        report: What was measured.

    Returns:
        The new manifest.

    Raises:
        ValueError: If not all stages were evaluated, or not in the dtype that is stored.
        RepositoryError: If it is no PWL repository, or holds other weights.
    """
    manifest = Repository.open(directory).manifest()
    if manifest.fingerprint != report.repository.fingerprint:
        raise RepositoryError(
            f"{os.fspath(directory)} holds other weights (fingerprint {manifest.fingerprint[:16]}) than those that "
            f"were evaluated ({report.repository.fingerprint[:16]}): evaluate it again"
        )
    if [mask.sources for mask in report.stages] != [stage.sources for stage in manifest.stages]:
        raise ValueError(f"a manifest holds the accuracy of every stage, the order {report.orders!r} lacks some")
    if report.settings.dtype != manifest.dtype:
        raise ValueError(
            f"a manifest holds what was measured on the weights as they are stored, in {manifest.dtype}, not in "
            f"{report.settings.dtype}: leave out dtype"
        )
    name, split = dataset_title(report.dataset.name), report.dataset.split
    metrics = {
        stage: [
            Metric(kind, value, name, split, mask.total)
            for kind in ("accuracy", "macro_f1", "span_f1")
            if (value := getattr(mask, kind)) is not None
        ]
        for stage, mask in enumerate(report.stages)
    }
    written = write_metrics(directory, metrics)
    write_card(Path(directory))
    return written


def check_results_path(path: str | os.PathLike[str], directory: str | os.PathLike[str]) -> None:
    """Refuse to write results over a file of the repository that is measured.

    Args:
        path: Where they are to be written.
        directory: The repository's folder, or a Hub id.

    Raises:
        OverwriteError: If a file of the repository lies there.
    """
    root = Path(directory)
    if not root.is_dir() or not os.path.exists(path):
        return
    own = text_paths() | Contents.of(root).listed() | {CARD_FILE, PROCESSOR_FILE, f"teacher/{PROCESSOR_FILE}"}
    for name in sorted(own):
        if (root / name).exists() and (root / name).samefile(path):
            raise OverwriteError(f"{path} is the {name} of the repository that is measured: write to another file")


def dataset_title(name: str) -> str:
    """What a manifest and a card call a data set.

    An id on the Hub stays as it is; files here get a name that tells no path and cannot be taken for an id.

    Args:
        name: The name of a `DataSource`.
    """
    if name == DIGITS:
        from pwl_hf.data.digits import DATASET

        return DATASET
    path = Path(name)
    if not path.exists() and path.suffix != ".parquet":
        return name
    return f"{(path if path.is_dir() else path.parent).resolve().name} (local files)"


def _check_device(device: str | torch.device) -> None:
    """Refuse a device that holds no tensors here, before anything is loaded.

    Raises:
        InputError: If nothing can be put on it, or (`meta`) got from it.
    """
    try:
        torch.zeros(1, device=device).cpu()
    # Each kind of device raises what it likes: AssertionError, RuntimeError, NotImplementedError and more.
    except Exception as error:
        raise InputError(
            f"the device {str(device)!r} cannot be used here ({one_line(str(error))[:200]}): give another, such "
            "as 'cpu'"
        ) from error


def _processing(opened: Repository, task: str) -> Any:
    """What makes inputs of samples: the repository's image processor, tokenizer or feature extractor."""
    files = TASKS[task].files
    # Compared with what the Hub has: one that was damaged on the way would give other inputs, without a word.
    if not fetch_those_there(files, opened.fetch_text):
        what = _CALLED[TASKS[task].processing_class]
        raise RepositoryError(
            f"{opened} has no {what} ({files[0]}), so its {TASKS[task].samples} cannot be prepared: save the teacher's "
            "into it"
        )
    found = load_processing(str(opened.fetch(files[0]).parent), task)
    if found is None:
        raise RepositoryError(f"{opened}: transformers cannot open its {files[0]}: save the teacher's into it again")
    return found


def _fits(split: Split, lazy: Any) -> bool:
    """Whether images or sounds are few enough to be kept as tensors."""
    if split.num_rows is None or not isinstance(split, ImageSplit | SoundSplit):
        return False
    # Of sounds of different lengths, as if the first were as long as they are on average.
    lengths = getattr(lazy, "lengths", None) or [1]
    first = sum(value.nbytes for value in lazy[0].values() if hasattr(value, "nbytes"))
    return bool(first * split.num_rows * (sum(lengths) / len(lengths) / lengths[0]) <= _KEPT_BYTES)


def _device_name(device: torch.device) -> str:
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
