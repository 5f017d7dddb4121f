"""The options of the networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pwl_hf.modeling.task_names import TASKS

_OVERRIDES = "as NAME=VALUE ..., VALUE in JSON (in a recipe: a mapping)"
_FAMILY_MODULE = (
    "A Python module of yours, by name or file, that registers families (register_family); it is imported first."
)
_TASKS = [task.pipeline for task in TASKS.values()]


@dataclass
class TaskArguments:
    """The task, and what prepares samples for a network that says nothing of it."""

    task: str | None = field(
        default=None,
        metadata={
            "help": f"{', '.join(_TASKS)}; where the teacher's config does not tell.",
            "choices": _TASKS,
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "Pixels a side that images are resized to, if the network has no image processor."},
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a tokenizer, if the network has none."}
    )
    sampling_rate: int | None = field(
        default=None,
        metadata={"help": "Samples a second of sounds, if the network has no feature extractor; 16000 by default."},
    )
    family_module: str | None = field(default=None, metadata={"help": _FAMILY_MODULE})


@dataclass
class NetworkArguments(TaskArguments):
    """The teacher, the student, and how both are cut.

    Raises:
        ValueError: For options that exclude each other, by name.
    """

    model: str | None = field(
        default=None, metadata={"help": "A PWL repository (folder or Hub id) to train further, in place of a pair."}
    )
    teacher: str | None = field(
        default=None, metadata={"help": "The teacher: folder or Hub id. Without one, teacher_recipe trains it first."}
    )
    teacher_recipe: str | None = field(
        default=None,
        metadata={"help": "Recipe of train_teacher.py by which a teacher is trained on the same data first."},
    )
    teacher_options: list[str] | None = field(
        default=None, metadata={"help": f"Options over that recipe, {_OVERRIDES}."}
    )
    student: str | None = field(
        default=None,
        metadata={
            "help": "The student: a JSON file of its config, for fresh weights; a folder or Hub id, with weights."
        },
    )
    allow_new_head: bool = field(
        default=False,
        metadata={"help": "Give the student a fresh head if its checkpoint has none. The teacher must have one."},
    )
    student_preset: str | None = field(
        default=None,
        metadata={
            "help": "A student with fresh weights, by its part of the teacher's layers and channels: half-depth, "
            "half-width, half (of both), slim (half, a quarter), quarter (of both)."
        },
    )
    student_config_overrides: list[str] | None = field(
        default=None,
        metadata={"help": f"What differs in the student's config from the preset's, or the teacher's, {_OVERRIDES}."},
    )
    init_student_from_teacher: Literal["spread", "first"] | None = field(
        default=None,
        metadata={
            "help": "Let the student begin as the teacher's layers, sliced where it is narrower: those spread evenly "
            "over each block, or the first ones of it."
        },
    )
    init_converters: Literal["random", "identity", "matched"] = field(
        default="random",
        metadata={
            "help": "The converters' first weights: random; the identity, which needs equal widths; or matched to the "
            "slices of init_student_from_teacher, the better start for it (at equal widths the identity)."
        },
    )
    remote_code: Literal["standalone", "none"] | None = field(
        default=None,
        metadata={
            "help": "Save one file of code with the model (standalone), so that transformers opens it without pwl-hf; "
            "by default none, or as the model that is trained further has it."
        },
    )
    num_blocks: int | None = field(
        default=None,
        metadata={
            "help": "Number of blocks N; stages go from 0 to N. By default 4, or as many as cuts.",
            "aliases": ["--num_stages"],
        },
    )
    teacher_cuts: list[int] | None = field(
        default=None, metadata={"help": "Where the teacher's blocks end, in layers; equal depth if not given."}
    )
    student_cuts: list[int] | None = field(default=None, metadata={"help": "Where the student's blocks end."})
    share_embedder: bool = field(
        default=False,
        metadata={
            "help": "Let the student have the teacher's embedder, frozen, in place of its own: it is sent once. Needs "
            "a student of the teacher's model_type and width."
        },
    )
    fit_converters: Literal["before", "after"] | None = field(
        default=None,
        metadata={
            "help": "Solve the converters by least squares on training samples, before training (of two trained "
            "networks only: for a student with fresh weights it is harmful) or after it."
        },
    )
    statistics_images: int = field(
        default=1024,
        metadata={
            "help": "Training samples from which masks get BatchNorm statistics of their own after training, where "
            "their cross entropy is lower then; 0 for never."
        },
    )
    quantised_tier: Literal[8, 4] | None = field(
        default=None,
        metadata={
            "help": "Save the teacher in low precision too, of so many bits, with stages that go by it; nothing more "
            "is trained for it."
        },
    )

    def __post_init__(self) -> None:
        sources = ("teacher", "student", "student_preset", "student_config_overrides", "init_student_from_teacher")
        if self.model is not None:
            for name in (*sources, "num_blocks", "teacher_cuts", "student_cuts"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} does not go with model: the PWL repository {self.model!r} has its own")
            if self.share_embedder:
                raise ValueError(f"share_embedder does not go with model: {self.model!r} has joined networks")
            if self.init_converters != "random":
                raise ValueError(f"init_converters does not go with model: {self.model!r} has trained ones")
        elif self.student is None and self.student_preset is None and self.student_config_overrides is None:
            raise ValueError("no student: give student, student_preset or student_config_overrides (or model)")
        elif self.teacher is None and self.teacher_recipe is None:
            raise ValueError("no teacher: give teacher, or teacher_recipe to train one first (or model)")
        if self.allow_new_head and (self.student is None or self.student.endswith(".json")):
            raise ValueError("allow_new_head goes with student, a folder or Hub id: leave it out")
        if self.student is not None and self.student_preset is not None:
            raise ValueError("student and student_preset exclude each other: give one")
        if self.init_converters != "random" and self.fit_converters == "before":
            raise ValueError(
                f"init_converters={self.init_converters} and fit_converters=before exclude each other: give one"
            )
        if self.init_converters == "matched" and self.init_student_from_teacher is None and self.model is None:
            raise ValueError("init_converters=matched goes with init_student_from_teacher: give it too")
        if self.num_blocks is not None and self.num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {self.num_blocks}")
        if self.statistics_images < 0 or self.statistics_images == 1:
            raise ValueError(
                f"statistics_images must be 0, or at least 2 to estimate and to measure, got {self.statistics_images}"
            )


@dataclass
class TeacherArguments(TaskArguments):
    """The network that `train_teacher.py` trains.

    Raises:
        ValueError: If not exactly one of `model`, `config` and `model_type` is given; for overrides of weights, or a
            new head without any.
    """

    model: str | None = field(default=None, metadata={"help": "Folder or Hub id of a network to fine-tune."})
    allow_new_head: bool = field(
        default=False, metadata={"help": "Give that network a fresh head if its checkpoint has none."}
    )
    config: str | None = field(
        default=None, metadata={"help": "JSON file, folder or Hub id of a config, for fresh weights."}
    )
    model_type: str | None = field(
        default=None, metadata={"help": "A family (vit, resnet, pwl_vgg, ...) in its default size, for fresh weights."}
    )
    config_overrides: list[str] | None = field(
        default=None, metadata={"help": f"What differs in the config, {_OVERRIDES}."}
    )

    def __post_init__(self) -> None:
        given = [name for name in ("model", "config", "model_type") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of model, config and model_type, got {', '.join(given) or 'none'}")
        if self.allow_new_head and self.model is None:
            raise ValueError("allow_new_head goes with model: fresh weights have a fresh head anyway; leave it out")
        if self.model is not None and self.config_overrides:
            raise ValueError(f"config_overrides do not go with model: the weights of {self.model!r} have their config")
