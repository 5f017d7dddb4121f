"""The arguments of `training/train.py`, checked before anything heavy is imported."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


@dataclass
class DigitsArguments:
    """What to train, and how. Lengths are in epochs over the training split; defaults take minutes on a CPU.

    Raises:
        ValueError: For a value that cannot be, by name.
    """

    output_dir: str = field(metadata={"help": "Folder of the PWL repository to write."})
    teacher: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a ViT of ten labels; one is trained if this is not given."}
    )
    num_stages: int = field(default=4, metadata={"help": "Number of blocks N; stages go from 0 to N."})
    teacher_layers: int = field(default=8, metadata={"help": "Layers of the teacher that is trained."})
    teacher_width: int = field(default=48, metadata={"help": "Its hidden size; the feed-forward part has twice that."})
    teacher_heads: int = field(default=4, metadata={"help": "Its attention heads."})
    teacher_epochs: float = field(default=40, metadata={"help": "Epochs of its training."})
    student_layers: int = field(default=4, metadata={"help": "Layers of the student."})
    student_width: int = field(default=6, metadata={"help": "Its hidden size; the feed-forward part has twice that."})
    student_heads: int = field(default=2, metadata={"help": "Its attention heads."})
    epochs: float = field(default=40, metadata={"help": "Epochs of the distillation."})
    batch_size: int = field(default=64, metadata={"help": "Images in a step of one process."})
    learning_rate: float = field(default=3e-3, metadata={"help": "Peak learning rate of AdamW, for both trainings."})
    converter_lr_scale: float = field(default=1.0, metadata={"help": "Learning rate of the converters, relative."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    warmup: float = field(default=0.1, metadata={"help": "Part of the steps over which the learning rate rises."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Gradients are clipped to this norm."})
    alpha: float = field(default=0.4, metadata={"help": "Weight of the labels; the teacher's answers get the rest."})
    temperature: float = field(default=2.0, metadata={"help": "Temperature of the distillation."})
    prefix_weight: float = field(default=1.0, metadata={"help": "Weight of the mean loss of all prefix paths."})
    mask_weight: float = field(default=0.5, metadata={"help": "Weight of the loss of one random other path a step."})
    feature_weight: float = field(default=0.0, metadata={"help": "Weight of the feature terms, sync and recon."})
    max_steps: int = field(default=-1, metadata={"help": "Ends each training after so many steps, if positive."})
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bars."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, order, augmentation and masks."})

    def __post_init__(self) -> None:
        if os.path.isfile(self.output_dir):
            raise ValueError(f"output_dir must be a folder, {self.output_dir!r} is a file")
        whole = ("num_stages", "teacher_layers", "teacher_width", "teacher_heads", "batch_size")
        for name in (*whole, "student_layers", "student_width", "student_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("teacher_epochs", "epochs", "learning_rate", "temperature", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("converter_lr_scale", "weight_decay", "prefix_weight", "mask_weight", "feature_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("alpha", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        for role in ("teacher", "student"):
            width, heads = getattr(self, f"{role}_width"), getattr(self, f"{role}_heads")
            if width % heads:
                raise ValueError(f"{role}_width must be a multiple of {role}_heads, got {width} and {heads}")
