"""Making a repository out of two checkpoints that exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, BaseImageProcessor, PreTrainedConfig

from pwl_hf import modeling
from pwl_hf.data.errors import DataError
from pwl_hf.data.processing import check_channels, process, upright
from pwl_hf.modeling import PWLConfig, PWLPreTrainedModel
from pwl_hf.modeling.errors import InputError
from pwl_hf.modeling.families.built_in import FAMILIES
from pwl_hf.modeling.plain import one_line
from pwl_hf.modeling.publishing.model_card import card_of, write_card
from pwl_hf.modeling.publishing.processing import load_processing
from pwl_hf.modeling.publishing.saving import save_repository
from pwl_hf.modeling.repository.output_folder import check_output, paths_of_save
from pwl_hf.modeling.schedule import Schedule
from pwl_hf.modeling.task_names import FIRST_TASK, TASKS
from pwl_hf.modeling.transformers_internals import tasks_of

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def convert_pair(
    teacher: str,
    student: str,
    output: str | Path,
    *,
    num_blocks: int | None = None,
    num_stages: int | None = None,
    images: str | Path | None = None,
    texts: str | Path | None = None,
    max_images: int = 256,
    batch_size: int = 16,
    dtype: str | None = None,
    share_embedder: bool = False,
    allow_new_head: bool = False,
    problem_type: str | None = None,
    task: str | None = None,
    license: str | None = None,
    token: str | bool | None = None,
    remote_code: str | None = None,
    overwrite: bool = False,
) -> PWLPreTrainedModel:
    """Join a teacher and a student, and save them as a PWL repository with the teacher's tokenizer or processor.

    Without images or texts the converters are random, and the stages between student and teacher have still to be
    trained. With them, they are fitted in closed form, which is right for two trained networks, and BatchNorm
    statistics are re-estimated for every stage.

    Args:
        teacher: A folder or a Hub id.
        student: The same, of the teacher's family or of one that takes the same inputs.
        output: The folder to write.
        num_blocks: The number of blocks N; 4 by default.
        num_stages: The same.
        images: A folder of images, searched in depth.
        texts: For networks of texts, a file with a text on each line.
        max_images: How many images, or texts, to use.
        batch_size: Images, or texts, a batch.
        dtype: The dtype to save; needed if the networks' differ.
        share_embedder: As in `from_teacher_student`.
        allow_new_head: Save a head drawn at random, to be trained, where a checkpoint has none or one of another shape.
        problem_type: As in transformers' configs; the teacher's by default, needed if the student's is another.
        task: The name of transformers' pipeline, such as `"text-classification"`, where the teacher's config does not
            tell it.
        license: The licence for the model card; the teacher's by default.
        token: As in huggingface_hub.
        remote_code: As in `save_pretrained`.
        overwrite: Write over files in `output` that are not a PWL repository's; never over a teacher or student.

    Returns:
        The model, fully resident.

    Raises:
        TypeError: If `num_blocks` and `num_stages` are given.
        OverwriteError: If files would be written over that are not a PWL repository's, before anything is loaded.
        huggingface_hub.errors.StrictDataclassError: If the two cannot be joined, with the reason.
        RepositoryError: If a checkpoint lacks tensors of its network, or holds others or NaN, or `output` has a card
            that cannot be kept; nothing is saved.
        ValueError: If there are no images or texts, or they cannot be made into what the networks take: the teacher
            has no image processor or tokenizer, or one of other channels.
        InputError: If the networks cannot be joined, or share no embedder; if the task is not known.
        DataError: If an image, or the file of texts, cannot be read.
    """
    if num_blocks is not None and num_stages is not None:
        raise TypeError("num_blocks and num_stages are one thing: give num_blocks")
    num_blocks = num_blocks or num_stages or 4
    # What cannot be written is refused before anything is loaded or fitted.
    card_of(output)
    check_output(output, paths_of_save(num_blocks), inputs=[teacher, student], overwrite=overwrite)
    model_class = _class_of(teacher, task, token)
    for given, samples in ((images, "images"), (texts, "texts")):
        if given is not None and TASKS[model_class.task].samples != samples:
            raise InputError(f"{samples} are given, and {teacher} takes none: leave {samples} out")
    try:
        model = model_class.from_teacher_student(
            teacher,
            student,
            num_blocks=num_blocks,
            share_embedder=share_embedder,
            dtype=dtype,
            allow_new_head=allow_new_head,
            problem_type=problem_type,
            token=token,
        )
    except (TypeError, ImportError) as error:
        # Other architectures: timm's, say, or DeiT's with a head for distillation.
        raise InputError(
            f"{teacher} and {student} cannot be joined: {one_line(str(error))}; give classifiers of transformers, of "
            "one family or of two that take the same"
        ) from error
    model.eval()
    if images is not None or texts is not None:
        processing = load_processing(teacher, model_class.task, token=token)
        if processing is None:
            kind, what = ("image processor", "images") if images is not None else ("tokenizer", "texts")
            raise ValueError(f"{teacher} has no {kind}, so {what} cannot be read for it: leave {what} out")
        batches: list[Any]
        if images is not None:
            batches = list(_batches(Path(images), processing, model.config.num_channels, max_images, batch_size))
        else:
            batches = list(_batches_of_texts(Path(str(texts)), processing, model.config, max_images, batch_size))
        model.fit_converters(batches)
        model.estimate_statistics(batches, model.schedule[1:-1])
    save_repository(model.parts, Schedule.of(model.schedule), output, remote_code=remote_code, overwrite=overwrite)
    write_card(output, card_data={"license": license} if license else None, token=token)
    return model


def _class_of(teacher: str, pipeline: str | None, token: str | bool | None) -> type[Any]:
    """The class of models of a teacher's task, which its config tells, or the name of a pipeline."""
    named = {task.pipeline: task for task in TASKS.values()}
    if pipeline is not None and pipeline not in named:
        raise InputError(f"there is no task {pipeline!r}: give one of {', '.join(sorted(named))}")
    if pipeline is None:
        # What cannot be cut may not even be made without packages of its own.
        model_type = PreTrainedConfig.get_config_dict(teacher, token=token)[0].get("model_type")
        found = tasks_of(AutoConfig.from_pretrained(teacher, token=token), TASKS) if model_type in FAMILIES else []
        if len(found) > 1:
            names = ", ".join(TASKS[task].pipeline for task in found)
            raise InputError(
                f"{teacher} can be of several tasks: give task=, or --task on a command line, as one of {names}"
            )
        # What has none is refused when it is joined, by its architecture.
        pipeline = TASKS[found[0] if found else FIRST_TASK].pipeline
    model_class: type[Any] = getattr(modeling, named[pipeline].class_name)
    return model_class


def _batches(
    folder: Path, processor: BaseImageProcessor, num_channels: int, limit: int, batch_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    check_channels(num_channels)
    found = (path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES and path.is_file())
    # Hidden files are none: systems leave "._1.png" beside "1.png".
    paths = sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))[:limit]
    if not paths:
        raise DataError(f"{folder} holds no images ({', '.join(_IMAGE_SUFFIXES)})")
    for start in range(0, len(paths), batch_size):
        opened = [_open(path, num_channels) for path in paths[start : start + batch_size]]
        yield process(opened, processor, num_channels)


def _batches_of_texts(
    path: Path, tokenizer: Any, config: PWLConfig, limit: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"the texts {path} cannot be read: {error}") from error
    found = [line for line in lines if line.strip()][:limit]
    if not found:
        raise DataError(f"{path} holds no texts, one on each line")
    longest = config.max_tokens_of(tokenizer)
    for start in range(0, len(found), batch_size):
        texts = found[start : start + batch_size]
        yield dict(
            tokenizer(texts, padding=True, truncation=longest is not None, max_length=longest, return_tensors="pt")
        )


def _open(path: Path, num_channels: int) -> Image.Image:
    try:
        with Image.open(path) as image:
            return upright(image, num_channels)
    # Decoders raise what they like: OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        raise DataError(f"the image {path} cannot be read: {type(error).__name__}: {error}") from error
