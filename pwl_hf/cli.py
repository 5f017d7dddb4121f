"""The command line, `pwl-hf`. Each command imports what it needs when it runs, so `--help` is quick."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pwl_hf import cli_options as options
from pwl_hf.cli_options import (
    CreatePR,
    Handler,
    License,
    Message,
    Overwrite,
    Private,
    RemoteCode,
    Repo,
    Revision,
    Subfolder,
    Token,
)
from pwl_hf.data.source import DataSource

app = typer.Typer(
    name="pwl-hf",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        from pwl_hf.versions import versions

        _say(versions())
        raise typer.Exit


@app.callback()
def families(
    family_module: options.FamilyModule = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the versions, for a report."),
    ] = False,
) -> None:
    """Progressive Weight Loading: models that answer after their first shard and grow into their teacher."""
    if family_module is not None:
        from pwl_hf.own_families import import_families

        import_families(family_module)


@app.command()
def info(repo: Repo, revision: Revision = None, subfolder: Subfolder = "", token: Token = None) -> None:
    """Show the stages of a repository: what each adds, and its accuracy if it was measured."""
    from pwl_hf.console import stage_table
    from pwl_hf.modeling.publishing.model_card import human_bytes
    from pwl_hf.modeling.repository.source import Repository

    opened = Repository.open(repo, revision=revision, subfolder=subfolder, token=token)
    manifest = opened.manifest()
    tier = f", the teacher in {manifest.tier} bits too" if manifest.tier is not None else ""
    _say(f"{opened}: {manifest.num_blocks} blocks, {manifest.dtype}{tier}, fingerprint {manifest.fingerprint[:16]}")
    if manifest.shared_embedder is not None:
        size = human_bytes(manifest.shared_embedder.bytes)
        _say(f"teacher and student share an embedder of {size}, which comes with stage 0")
    stage_table(manifest)


@app.command()
def convert(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="A folder or a Hub id.")],
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="The same, for the same inputs and labels.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")],
    num_blocks: Annotated[
        int, typer.Option("--num-blocks", "--num-stages", min=1, metavar="N", help="The number of blocks.")
    ] = 4,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", exists=True, help="Images to fit the converters to, if both networks are trained."),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, help="The same for networks of texts: one text a line."),
    ] = None,
    max_images: Annotated[
        int, typer.Option("--max-images", "--max-texts", min=1, metavar="N", help="At most so many of them.")
    ] = 256,
    dtype: Annotated[str | None, typer.Option(help="The dtype to save; needed if the networks' differ.")] = None,
    share_embedder: Annotated[
        bool,
        typer.Option(
            "--share-embedder",
            help="Let the student have the teacher's embedder, frozen, which is sent once; for networks of one width.",
        ),
    ] = False,
    allow_new_head: Annotated[
        bool,
        typer.Option("--allow-new-head", help="Draw a head at random, to be trained, if a checkpoint has none."),
    ] = False,
    problem_type: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="transformers' problem_type; the teacher's by default, needed if the student's is another.",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Such as text-classification, if the teacher's config does not say.")
    ] = None,
    push_to_hub: Annotated[str | None, typer.Option(metavar="REPO", help="Publish it as well.")] = None,
    private: Private = None,
    license: License = None,
    remote_code: RemoteCode = None,
    overwrite: Overwrite = False,
    token: Token = None,
) -> None:
    """Join a teacher and a student into a PWL repository."""
    from pwl_hf.conversion import convert_pair

    convert_pair(
        teacher,
        student,
        output,
        num_blocks=num_blocks,
        images=images,
        texts=texts,
        max_images=max_images,
        dtype=dtype,
        share_embedder=share_embedder,
        allow_new_head=allow_new_head,
        problem_type=problem_type,
        task=task,
        token=token,
        license=license,
        remote_code=remote_code,
        overwrite=overwrite,
    )
    _say(f"saved {output}")
    if push_to_hub is not None:
        card_data = {"license": license} if license else None
        _push(output, push_to_hub, private=private, token=token, card_data=card_data, overwrite=overwrite)


@app.command()
def push(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A saved PWL repository.", exists=True, file_okay=False)
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="The Hub id.")],
    commit_message: Message = "Upload PWL model",
    private: Private = None,
    revision: Revision = None,
    create_pr: CreatePR = False,
    license: License = None,
    inference_handler: Handler = False,
    remote_code: RemoteCode = None,
    overwrite: Overwrite = False,
    token: Token = None,
) -> None:
    """Publish a saved repository in one commit, after checking every file."""
    card_data = {"license": license} if license else None
    _push(
        directory,
        repo,
        commit_message=commit_message,
        private=private,
        token=token,
        revision=revision,
        create_pr=create_pr,
        card_data=card_data,
        inference_handler=inference_handler,
        remote_code=remote_code,
        overwrite=overwrite,
    )


@app.command()
def upgrade(
    repo: Repo,
    remote_code: Annotated[
        str, typer.Option(help="none: remove the code; standalone: put one file in its place.")
    ] = "none",
    revision: Revision = None,
    create_pr: CreatePR = False,
    token: Token = None,
) -> None:
    """Remove the code that older versions saved with every model, or replace it with one file."""
    from pwl_hf.upgrading import upgrade as upgrade_repository

    removed, commit = upgrade_repository(repo, remote_code, revision=revision, create_pr=create_pr, token=token)
    _say(f"{len(removed)} code file(s) removed from {repo}")
    if commit is not None:
        _say(commit.pr_url or str(commit))


@app.command()
def download(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="The Hub id.")],
    stage: Annotated[str, typer.Option(help="The last stage to fetch, or 'teacher'.")] = "0",
    revision: Revision = None,
    subfolder: Subfolder = "",
    local_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder to put the files into, instead of the cache alone.")
    ] = None,
    overwrite: Overwrite = False,
    token: Token = None,
) -> None:
    """Fetch and check the files of stages 0 to STAGE, for images and containers; imports no torch."""
    from pwl_hf.downloading import download_stages

    wanted = stage if stage == "teacher" else _whole_number(stage)
    place, size, count = download_stages(
        repo, wanted, revision=revision, subfolder=subfolder, token=token, local_dir=local_dir, overwrite=overwrite
    )
    from pwl_hf.modeling.publishing.model_card import human_bytes

    _say(f"{count} weight file(s), {human_bytes(size)}, checked: {place}")


@app.command()
@options.with_source
def evaluate(
    repo: Repo,
    source: DataSource,
    split: Annotated[str, typer.Option(help="The dataset's split.")] = "test",
    streaming: Annotated[bool, typer.Option("--streaming", help="Read the rows as they come.")] = False,
    orders: Annotated[
        str, typer.Option(help="Which masks: prefix (the stages), suffix, contiguous or all.")
    ] = "prefix",
    batch_size: options.BatchSize = 64,
    num_workers: options.NumWorkers = 0,
    device: options.Device = None,
    dtype: Annotated[str | None, typer.Option(help="The dtype of the weights; the stored one by default.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="A JSON file to write.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture to draw: .png, .svg or .pdf.")] = None,
    record: Annotated[
        bool, typer.Option("--write-metrics", help="Write the stages' accuracies into the folder's manifest and card.")
    ] = False,
    quiet: options.Quiet = False,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
) -> None:
    """Measure the accuracy of every stage, or of other masks, on a labelled dataset."""
    source = replace(source, streaming=streaming)
    # What cannot be written is refused before anything is measured.
    if record and (not Path(repo).is_dir() or orders not in ("prefix", "all") or dtype is not None):
        raise typer.BadParameter("it needs a folder, all stages and the stored dtype", param_hint="--write-metrics")
    if plot is not None:
        from pwl_hf.evaluation.plot import check_plot_path, plot_report

        check_plot_path(plot)
    from pwl_hf.evaluation.repositories import check_results_path, evaluate_repository, record_metrics
    from pwl_hf.evaluation.table import print_report
    from pwl_hf.modeling.repository.files import write_text

    for path in (output, plot):
        if path is not None:
            check_results_path(path, Path(repo, subfolder))
    report = evaluate_repository(
        repo,
        source,
        split,
        orders=orders,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        dtype=dtype,
        revision=revision,
        subfolder=subfolder,
        token=token,
        progress=not quiet,
    )
    print_report(report)
    if output is not None:
        write_text(output, report.to_json())
    if plot is not None:
        plot_report(report, plot)
    if record:
        record_metrics(Path(repo, subfolder), report)


@app.command()
def quantise(
    repo: Repo,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where to write it with its tier; in place by default."),
    ] = None,
    bits: Annotated[
        int, typer.Option(metavar="N", help="Bits of a weight: 8, or 4, which is smaller and less exact.")
    ] = 8,
    commit_message: Message = "Add the teacher in low precision",
    revision: Revision = None,
    subfolder: Subfolder = "",
    create_pr: CreatePR = False,
    overwrite: Overwrite = False,
    token: Token = None,
) -> None:
    """Add the teacher in low precision, with what makes it exact, as further stages; trains nothing."""
    from pwl_hf.console import stage_table
    from pwl_hf.modeling.publishing.push import Target
    from pwl_hf.quantising import quantise_repository

    commit, manifest = quantise_repository(
        repo,
        output,
        bits=bits,
        subfolder=subfolder,
        overwrite=overwrite,
        target=Target(repo, commit_message, revision=revision, create_pr=create_pr, token=token),
    )
    if manifest is not None:
        stage_table(manifest)
    if commit is not None:
        _say(commit.pr_url or str(commit))


@app.command()
@options.with_source
def schedule(
    repo: Repo,
    source: DataSource,
    split: Annotated[
        str, typer.Option(help="The dataset's split: neither training data nor the final test's.")
    ] = "validation",
    search: Annotated[
        str | None,
        typer.Option(
            help="all: measure all 2^N masks; swaps: swap two blocks at a time. By default all, up to 6 blocks.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    batch_size: options.BatchSize = 64,
    num_workers: options.NumWorkers = 0,
    device: options.Device = None,
    commit_message: Message = "Change the order of stages",
    quiet: options.Quiet = False,
    revision: Revision = None,
    subfolder: Subfolder = "",
    create_pr: CreatePR = False,
    token: Token = None,
) -> None:
    """Find the best order of the teacher's blocks by measurement, and write it if it is better."""
    from pwl_hf.evaluation.table import print_schedule
    from pwl_hf.modeling.publishing.push import Target
    from pwl_hf.scheduling import schedule_repository

    report = schedule_repository(
        repo,
        source,
        split,
        target=Target(repo, commit_message, revision=revision, create_pr=create_pr, token=token),
        search=search,  # type: ignore[arg-type]
        dry_run=dry_run,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        subfolder=subfolder,
        progress=not quiet,
    )
    print_schedule(report, f"{source.name}, split {split}")
    if report.commit is not None:
        _say(report.commit.pr_url or str(report.commit))


@app.command()
def export(
    repo: Repo,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where to write it with its graphs; in place by default."),
    ] = None,
    format: Annotated[str, typer.Option(help="The format of the graphs: onnx.")] = "onnx",
    image_size: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="The images' height and width; by default the config's or the processor's."
        ),
    ] = None,
    commit_message: Message = "Add ONNX graphs",
    revision: Revision = None,
    subfolder: Subfolder = "",
    create_pr: CreatePR = False,
    overwrite: Overwrite = False,
    token: Token = None,
) -> None:
    """Add ONNX graphs of every stage, for runtimes without torch; they hold no weights."""
    if format != "onnx":
        raise typer.BadParameter(f"{format!r} is not a format that is exported: give onnx", param_hint="--format")
    from pwl_hf.modeling.lazy import missing_extra

    try:
        from pwl_hf.exporting import export_repository
    except ModuleNotFoundError as error:
        if (advice := missing_extra(error, "onnx")) is None:
            raise
        _say(f"pwl-hf: export {advice}", err=True)
        raise typer.Exit(1) from error
    from pwl_hf.modeling.publishing.push import Target

    commit, sizes, differences = export_repository(
        repo,
        output,
        image_size=image_size,
        subfolder=subfolder,
        overwrite=overwrite,
        target=Target(repo, commit_message, revision=revision, create_pr=create_pr, token=token),
    )
    for stage, difference in differences.items():
        _say(f"stage {stage}: {difference:.1e} of the logits' range from torch")
    _say(f"{len(sizes)} files, {sum(sizes.values()) / 1000:,.0f} kB; the weights stay in the repository's own files")
    if commit is not None:
        _say(commit.pr_url or str(commit))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")] = Path(
        "digits-pwl"
    ),
    seed: Annotated[int, typer.Option(metavar="N", help="The seed of everything.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Train a tiny teacher and student on handwritten digits, and watch the model grow."""
    from pwl_hf.demo import run_demo

    run_demo(output, seed=seed, quiet=quiet)


def _push(directory: Path, repo: str, **options: Any) -> None:
    from pwl_hf.modeling.publishing.push import Target, push_folder

    commit = push_folder(directory, Target(repo, **options))
    _say(commit.pr_url or str(commit))


def _say(text: str, *, err: bool = False) -> None:
    # What a repository, a server or a file name says may hold control characters, and lines of its own.
    from pwl_hf.modeling.plain import one_line

    typer.echo(one_line(text), err=err)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a whole number nor 'teacher'", param_hint="--stage") from None


def main() -> None:
    """Run the command line; errors of ours and of the Hub end it with one line and status 1, wrong input with 2."""
    try:
        app()
    except ModuleNotFoundError as error:
        from pwl_hf.modeling.lazy import missing_extra

        if (advice := missing_extra(error)) is None:
            raise
        _say(f"pwl-hf: this command {advice}", err=True)
        sys.exit(1)
    except Exception as error:
        from huggingface_hub.errors import HfHubHTTPError, RevisionResolutionError, StrictDataclassError

        from pwl_hf.modeling.errors import InputError, PWLError

        known = PWLError | HfHubHTTPError | RevisionResolutionError | StrictDataclassError | OSError | ValueError
        if isinstance(error, known):
            # The reason alone: which validator found it fills a line of its own.
            reason = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
            _say(f"pwl-hf: {reason}", err=True)
            # A package that is missing is no wrong input.
            is_wrong = isinstance(error, InputError) and not isinstance(error.__cause__, ModuleNotFoundError)
            sys.exit(2 if is_wrong else 1)
        raise


if __name__ == "__main__":
    main()
