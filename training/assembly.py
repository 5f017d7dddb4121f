"""The model that is trained: from a teacher and a student, from a repository, or from a checkpoint of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, TrainingArguments, set_seed

from pwl_hf.evaluation.labels import check_one_label
from pwl_hf.modeling import PWLPreTrainedModel
from pwl_hf.modeling.publishing.processing import load_processing, refuse_other_tokens
from pwl_hf.modeling.publishing.remote_code import choose_code
from pwl_hf.modeling.task_names import TASKS
from pwl_hf.training.data_arguments import DataArguments
from pwl_hf.training.networks.building import load_network, new_student
from pwl_hf.training.networks.identity import set_identity
from pwl_hf.training.networks.inheritance import inherit
from pwl_hf.training.networks.network_arguments import NetworkArguments
from pwl_hf.training.networks.processing import processing_for
from pwl_hf.training.pairs import parse_pairs
from pwl_hf.training.samples import some_inputs
from pwl_hf.training.supervised import fit_teacher, trained
from pwl_hf.training.tasks import class_of_task
from pwl_hf.training.trainer.checkpoints import last_checkpoint

logger = logging.getLogger(__name__)

# By which a narrower student's channels are chosen.
_SAMPLES = 512

# Of a run, what its teacher's training shares with it.
_SHARED = ("seed", "disable_tqdm", "use_cpu", "hub_token")


class Assembled(NamedTuple):
    """What is trained.

    Args:
        model: With everything resident.
        processing: What prepares its samples.
    """

    model: PWLPreTrainedModel
    processing: Any


def assemble(
    networks: NetworkArguments,
    data: DataArguments,
    args: TrainingArguments,
    label_names: Sequence[str] | None,
    task: str,
    checkpoint: str | None = None,
) -> Assembled:
    """Build, load or first train what the options ask for.

    Args:
        networks: Which networks.
        data: The data, for a teacher that is to be trained first.
        args: The run's arguments; the student's first weights depend on `seed` alone.
        label_names: The labels of the data, if it has any.
        task: The task.
        checkpoint: A checkpoint of this run to go on from; teacher and student are those in it.

    Raises:
        ValueError: If networks, options and data do not fit together.
        huggingface_hub.errors.StrictDataclassError: If teacher and student cannot be joined, with the reason.
        RepositoryError: If a checkpoint is not what its network needs, with the tensors' names.
    """
    name = checkpoint if checkpoint is not None else networks.model
    if name is not None:
        model = class_of_task(task).from_pretrained(name, keep_all=True, dtype=torch.float32)
        check_one_label(model.config, repr(name))
        if label_names is not None and model.config.num_labels != len(label_names):
            raise ValueError(f"{name!r} has {model.config.num_labels} labels, the data has {len(label_names)}")
        choose_code(model.config, networks.remote_code)
        return Assembled(model, processing_for(task, name, model.config.teacher_config, networks))
    teacher, processing = _teacher(networks, data, args, label_names, task)
    # Anew, so that the student's first weights do not depend on how the teacher came about.
    set_seed(args.seed)
    student = new_student(networks, teacher.config, label_names, task).to(teacher.device)  # type: ignore[arg-type]
    if networks.student is not None and TASKS[task].samples == "texts":
        refuse_other_tokens(processing, load_processing(networks.student, task))
    model = class_of_task(task).from_teacher_student(
        teacher,
        student,
        num_blocks=networks.num_blocks,
        teacher_cuts=networks.teacher_cuts,
        student_cuts=networks.student_cuts,
        share_embedder=networks.share_embedder,
        processing_class=processing,
    )
    if networks.teacher is not None and not Path(networks.teacher).exists():
        model.config.base_model = networks.teacher
    choose_code(model.config, networks.remote_code)
    return Assembled(model, processing)


def begin_as_teacher(model: PWLPreTrainedModel, networks: NetworkArguments, dataset: Any) -> None:
    """Give the student and the converters of a new model the first weights that the options ask for, in place.

    Args:
        model: As it was assembled of a teacher and a student.
        networks: The options.
        dataset: Training samples, not augmented; some are looked at, without labels, where the student is narrower.

    Raises:
        ValueError: If the student does not fit; nothing is changed then.
    """
    if networks.init_student_from_teacher is not None:
        matched = networks.init_converters == "matched"
        try:
            inherit(model, networks.init_student_from_teacher, some_inputs(dataset, _SAMPLES), converters=matched)
        except ValueError as error:
            if networks.student_config_overrides is None:
                raise
            # A recipe's, with a teacher of another size: the line does not show them.
            given = " ".join(networks.student_config_overrides)
            raise ValueError(
                f"{error}. The student has student_config_overrides {given}: with a teacher that they do not fit, give "
                "others on the line"
            ) from error
    if networks.init_converters == "identity":
        set_identity(model, "init_converters")


def _teacher(
    networks: NetworkArguments,
    data: DataArguments,
    args: TrainingArguments,
    label_names: Sequence[str] | None,
    task: str,
) -> tuple[PreTrainedModel, Any]:
    if networks.teacher is not None:
        model = load_network(networks.teacher, label_names, replace_head=False, task=task)
        return model.eval(), processing_for(task, networks.teacher, model.config, networks)
    # Here, for that script's options are read by this module's.
    from pwl_hf.training.train_teacher import command_line

    over: dict[str, Any] = {name: getattr(args, name) for name in _SHARED} | {"dataset": data.dataset}
    over["output_dir"] = str(Path(str(args.output_dir), "teacher-training"))
    over |= {} if networks.task is None else {"task": networks.task}
    over |= parse_pairs(networks.teacher_options or (), "teacher_options")
    words = [str(networks.teacher_recipe)]
    teacher, _, teacher_args = command_line().parse(words, over=over, origin="teacher_options").parts
    logger.info("training the teacher by the recipe %s", networks.teacher_recipe)
    trainer, metrics = fit_teacher(teacher, data, teacher_args)
    logger.info("teacher: training loss %.4f after %d steps", metrics["train_loss"], trainer.state.global_step)
    if trainer.is_world_process_zero():
        # The Trainer makes its folder, also where nothing is saved in it.
        with suppress(OSError):
            Path(str(teacher_args.output_dir)).rmdir()
    return trained(trainer), trainer.processing_class


def checkpoint_of(args: TrainingArguments) -> str | None:
    """The checkpoint to go on from: `resume_from_checkpoint` is its folder, or `last` for the last whole one.

    Raises:
        ValueError: If there is none.
    """
    wanted = args.resume_from_checkpoint
    if wanted is None:
        return None
    folder = last_checkpoint(str(args.output_dir)) if wanted == "last" else wanted
    if folder is None or not Path(folder).is_dir():
        raise ValueError(
            f"resume_from_checkpoint={wanted}: there is no checkpoint {folder or 'in ' + str(args.output_dir)}"
        )
    return str(folder)
