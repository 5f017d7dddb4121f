"""The options of a training run: transformers' own, with what is different for PWL models."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy, SchedulerType

# Options that cannot hold for a PWL model, and why.
_REFUSED = {
    "deepspeed": "the paths of a step share modules, which it would take apart; launch with DDP",
    "fsdp": "the paths of a step share modules, which it would take apart; launch with DDP",
    "bf16_full_eval": "it casts the model itself, and the teacher would no longer be the teacher; bf16 alone does",
    "fp16_full_eval": "it casts the model itself, and the teacher would no longer be the teacher; fp16 alone does",
    "label_smoothing_factor": "the objective weighs labels and the teacher's answers; set alpha and temperature",
    "neftune_noise_alpha": "it is for token embeddings",
    "use_liger_kernel": "the last stage is the teacher bit for bit",
    "batch_eval_metrics": "evaluation keeps one number for each image and stage",
}


@dataclass
class PWLTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` for a `PWLTrainer`.

    What differs: other defaults, the learning rate of the converters, a data order that depends on `data_seed` alone
    (`seed` if it is not given), and `load_best_model_at_end` goes by `accuracy`, the mean over all stages, unless
    told otherwise. Names not listed here mean what they mean in transformers.

    Raises:
        ValueError: For a value that cannot be, or an option that does not apply to PWL models, by name.
    """

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of the student."})
    converter_lr_scale: float = field(
        default=1.0, metadata={"help": "Learning rate of the converters, relative to the student's."}
    )
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine", metadata={"help": "The scheduler of the learning rates."}
    )
    max_grad_norm: float = field(default=5.0, metadata={"help": "Gradients are clipped to this norm; 0 for never."})
    logging_steps: float = field(
        default=50, metadata={"help": "Log at every so many steps; below 1, a part of all steps."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Keep so many checkpoints, the best one among them."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Drop all but pixel_values, labels and sample_ids from batches."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata={"help": "The key of the labels in batches."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=True,
        metadata={"help": "Let DDP look for parameters that a step's paths did not use."},
    )
    ddp_broadcast_buffers: bool | None = field(
        default=False,
        metadata={
            "help": "Let DDP copy the first process's BatchNorm statistics to all at each step. Without it each "
            "process gathers its own, and their means are taken before every evaluation, save and end."
        },
    )

    def __post_init__(self) -> None:
        for name, reason in _REFUSED.items():
            if getattr(self, name):
                raise ValueError(f"{name} does not apply to PWL models: {reason}; leave it out")
        if not self.converter_lr_scale >= 0:
            raise ValueError(f"converter_lr_scale must not be negative, got {self.converter_lr_scale}")
        if self.data_seed is None:
            self.data_seed = self.seed
        wants_best = self.load_best_model_at_end or SaveStrategy(self.save_strategy) == SaveStrategy.BEST
        if wants_best and self.metric_for_best_model is None:
            self.metric_for_best_model = "accuracy"
        super().__post_init__()
        if self.n_gpu > 1:
            raise ValueError(
                f"one process sees {self.n_gpu} GPUs, and PWL models train with one process for each: start with "
                "`accelerate launch` or torchrun, or set CUDA_VISIBLE_DEVICES to one of them"
            )
