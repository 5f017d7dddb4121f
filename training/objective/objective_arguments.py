"""The options of the objective (no torch, so that wrong ones are told at once)."""

from __future__ import annotations

from dataclasses import dataclass, field

MASK_DISTRIBUTIONS = ("suffix-scattered", "uniform", "method")
# Of queries, keys and values: which are related to which.
RELATIONS = ("QK", "QQ", "KK", "VV")


@dataclass
class ObjectiveArguments:
    """What a step of the distillation minimises. The defaults are our recipe.

    Other recipes are settings of the same terms: `prefix_weight=0 mask_weight=0 sync_weight=0 recon_weight=0` is plain
    distillation of the student, and with `alpha=1` the student on labels alone.

    Raises:
        ValueError: For a value that cannot be, by name.
    """

    alpha: float = field(
        default=0.4, metadata={"help": "Weight of the labels in a path's loss; the teacher's answers get the rest."}
    )
    temperature: float = field(default=2.0, metadata={"help": "Temperature T of the distillation."})
    student_weight: float = field(default=1.0, metadata={"help": "Weight of the student's own loss."})
    prefix_weight: float = field(default=1.0, metadata={"help": "Weight of the mean loss of stages 1 to N-1."})
    prefix_share: int = field(
        default=4,
        metadata={"help": "Each stage sees every n-th image of a batch, another part at every step; saves time."},
    )
    prefix_every: int = field(default=1, metadata={"help": "Stages are trained at every such step."})
    mask_weight: float = field(default=2.0, metadata={"help": "Weight of the mean loss of the drawn masks."})
    mask_count: int = field(default=4, metadata={"help": "Masks drawn for a step."})
    mask_every: int = field(default=1, metadata={"help": "Masks are drawn at every such step."})
    mask_share: int = field(
        default=4, metadata={"help": "Each drawn mask sees every n-th image of a batch; saves time."}
    )
    mask_distribution: str = field(
        default="suffix-scattered",
        metadata={
            "help": "What masks are drawn from: 'suffix-scattered' (half suffixes, half any other mask that is no "
            "stage), 'uniform' (all masks that are no stage), or 'method' (half stages and suffixes, half any mixed "
            "mask).",
            "choices": list(MASK_DISTRIBUTIONS),
        },
    )
    mask_alpha: float | None = field(
        default=None, metadata={"help": "Weight of the labels in a drawn mask's loss; alpha if not given."}
    )
    sync_weight: float = field(
        default=1.0, metadata={"help": "Weight of the distance of converted features to those they stand for."}
    )
    recon_weight: float = field(
        default=1.0, metadata={"help": "Weight of the distance of features to themselves, converted there and back."}
    )
    feature_share: int = field(
        default=4, metadata={"help": "sync and recon see every n-th image of a batch; saves time."}
    )
    feature_every: int = field(default=1, metadata={"help": "sync and recon are trained at every such step."})
    normalize_features: bool = field(
        default=False, metadata={"help": "Divide each feature distance's squared error by the target's own power."}
    )
    attention_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of attention transfer: the student's features are strong where the teacher's are."},
    )
    attention_blocks: list[int] | None = field(
        default=None, metadata={"help": "Ends of which blocks it compares, from 1 to N; all if not given."}
    )
    relation_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of MiniLM's relations between tokens in the last layers (ViT, DeiT, DINOv2)."},
    )
    relation_pairs: list[str] = field(
        default_factory=lambda: ["QK", "VV"],
        metadata={
            "help": "Which of queries, keys and values are related: QK VV is MiniLM, QQ KK VV is MiniLMv2.",
            "choices": list(RELATIONS),
        },
    )
    relation_heads: int | None = field(
        default=None,
        metadata={"help": "Heads that both networks' widths are split into; each network's own if not given."},
    )
    mixup_alpha: float | None = field(
        default=None,
        metadata={
            "help": "Mix training images and their labels in pairs; the parts are drawn from Beta(alpha, alpha)."
        },
    )
    mixup_probability: float = field(default=1.0, metadata={"help": "Part of the images that mixup mixes."})
    shared_statistics: bool = field(
        default=False,
        metadata={"help": "Let mixed passes update the networks' BatchNorm statistics, as the method's own code does."},
    )
    teacher_drift: bool = field(
        default=False,
        metadata={
            "help": "Train with the teacher in training mode, as the method's own code does: its BatchNorm statistics "
            "drift, and it does not stay the teacher. For comparisons; needs shared_statistics."
        },
    )
    identity_converters: bool = field(
        default=False,
        metadata={"help": "Fix all converters to the identity, as the method's own code does; needs equal widths."},
    )

    def __post_init__(self) -> None:
        weights = ("student_weight", "prefix_weight", "mask_weight", "sync_weight", "recon_weight")
        for name in (*weights, "attention_weight", "relation_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not any(getattr(self, name) for name in weights[:3]):
            raise ValueError(
                "student_weight, prefix_weight and mask_weight are all 0: nothing would be trained to answer"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        for name in ("alpha", "mask_alpha", "mixup_probability"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {value}")
        if self.mixup_alpha is not None and not 0 < self.mixup_alpha < float("inf"):
            raise ValueError(f"mixup_alpha must be positive and finite, got {self.mixup_alpha}")
        if not self.relation_pairs or not set(self.relation_pairs) <= set(RELATIONS):
            raise ValueError(f"relation_pairs must be of {', '.join(RELATIONS)}, got {self.relation_pairs}")
        shares = ("prefix_share", "prefix_every", "mask_share", "mask_every", "feature_share", "feature_every")
        for name in (*shares, "mask_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.mask_distribution not in MASK_DISTRIBUTIONS:
            raise ValueError(
                f"mask_distribution must be one of {', '.join(MASK_DISTRIBUTIONS)}, got {self.mask_distribution!r}"
            )
        if self.teacher_drift and not self.shared_statistics:
            raise ValueError("teacher_drift is of the method's own code, as is shared_statistics: give both")

    @property
    def uses_labels(self) -> bool:
        """Whether any term looks at labels; without one, the teacher's answers alone are learnt from."""
        return self.alpha > 0 or bool(self.mask_alpha)
