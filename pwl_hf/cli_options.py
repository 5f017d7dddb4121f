"""Options that several commands have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from pwl_hf.data.source import DataSource

FamilyModule = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE",
        help="A Python module of yours, by name or file, that registers families (register_family); imported first.",
        show_default=False,
    ),
]
Repo = Annotated[str, typer.Argument(metavar="REPO", help="A folder or a Hub id.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit.")]
Subfolder = Annotated[str, typer.Option(metavar="DIR", help="Where in the repository the model is.")]
Token = Annotated[str | None, typer.Option(help="A Hub token; the stored one by default.", show_default=False)]
Private = Annotated[bool | None, typer.Option("--private/--public", help="For a new repository.")]
Message = Annotated[str, typer.Option("--commit-message", "-m", help="The commit's title.")]
CreatePR = Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")]
Handler = Annotated[bool, typer.Option("--inference-handler", help="Add handler.py, for Inference Endpoints.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Overwrite files that are not a PWL repository's.")]
RemoteCode = Annotated[
    str | None,
    typer.Option(
        help="standalone: add one file of code, so that transformers opens it without pwl-hf; none: leave code out. By "
        "default nothing changes.",
        show_default=False,
    ),
]
License = Annotated[str | None, typer.Option(help="The licence for the model card; the teacher's by default.")]

# What is measured, and how it runs.
Dataset = Annotated[
    str,
    typer.Option(help="'digits', an id on the Hub, a folder, or files (parquet, csv, json).", show_default=False),
]
Config = Annotated[str | None, typer.Option(help="The dataset's configuration.")]
DatasetRevision = Annotated[str | None, typer.Option(help="The dataset's branch, tag or commit.")]
ImageColumn = Annotated[str | None, typer.Option(metavar="NAME", help="The column of the images, if it is not found.")]
TextColumn = Annotated[str | None, typer.Option(metavar="NAME", help="That of the texts, or of the lists of words.")]
TextPairColumn = Annotated[str | None, typer.Option(metavar="NAME", help="That of second texts, for pairs.")]
AudioColumn = Annotated[str | None, typer.Option(metavar="NAME", help="That of the sounds.")]
LabelColumn = Annotated[str | None, typer.Option(metavar="NAME", help="That of the labels.")]
LabelNames = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="The labels' names in the order of their numbers, once for each label."),
]
Holdout = Annotated[
    float | None, typer.Option(metavar="PART", help="Hold this part of 'train' out as 'validation', as training does.")
]
HoldoutBy = Annotated[
    str | None, typer.Option(metavar="COLUMN=VALUE", help="Hold these rows out instead, such as those of a speaker.")
]
MaxSamples = Annotated[int | None, typer.Option(min=1, metavar="N", help="Take so many samples, always the same.")]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="How many samples run at once.")]
NumWorkers = Annotated[int, typer.Option(min=0, metavar="N", help="Processes that read images and sounds.")]
Device = Annotated[str | None, typer.Option(help="Where to run; a GPU if there is one.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def with_source(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of a data set in place of its parameter `source`.

    Args:
        command: The command; it has a parameter `source`, a `DataSource`, and one `token`.
    """
    own = inspect.signature(command, eval_str=True).parameters
    of_data = {
        name: parameter
        for name, parameter in inspect.signature(_source, eval_str=True).parameters.items()
        if name not in own
    }

    @functools.wraps(command)
    def run(**given: Any) -> None:
        source = _source(**{name: given.pop(name) for name in of_data}, token=given["token"])
        command(source=source, **given)

    parameters = [p for name in own for p in (of_data.values() if name == "source" else [own[name]])]
    # What typer reads the options from.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _source(
    dataset: Dataset,
    config: Config = None,
    holdout: Holdout = None,
    holdout_by: HoldoutBy = None,
    dataset_revision: DatasetRevision = None,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    text_pair_column: TextPairColumn = None,
    audio_column: AudioColumn = None,
    label_column: LabelColumn = None,
    label_names: LabelNames = None,
    max_samples: MaxSamples = None,
    token: Token = None,
) -> DataSource:
    return DataSource(
        dataset,
        config=config,
        holdout=holdout,
        holdout_by=holdout_by,
        revision=dataset_revision,
        image_column=image_column,
        text_column=text_column,
        text_pair_column=text_pair_column,
        audio_column=audio_column,
        label_column=label_column,
        label_names=label_names or None,
        max_samples=max_samples,
        token=token,
    )
