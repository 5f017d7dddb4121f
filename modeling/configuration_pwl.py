"""Configuration of a PWL model: two networks, and where each is cut."""

# No `from __future__ import annotations`: `@strict` checks the types of fields only where they are not strings.

import copy
from typing import TYPE_CHECKING, Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from .bounds import MAX_BLOCKS, check_claims, check_document, check_values
from .families.built_in import FAMILIES, OWN_CONFIGS, family_of, most_tokens
from .routes.cuts import check_cuts, default_cuts
from .task_names import FIRST_TASK
from .transformers_internals import SubConfigSpec, attention_of, choose_attention

logger = logging.get_logger(__name__)

if TYPE_CHECKING:
    # What the fields are once the config is made.
    NetworkConfig = Any
    Cuts = list[int]
else:
    # What they may be given as, for the check at run time.
    NetworkConfig = PreTrainedConfig | dict | None
    Cuts = list[int] | tuple[int, ...] | None

_NETWORKS = ("teacher_config", "student_config")
_CUTS = ("teacher_cuts", "student_cuts")
_NO_LIMIT = 1 << 30
# What transformers' image-classification pipeline makes scores with, by problem type.
_FUNCTIONS = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}


@strict
class PWLConfig(PreTrainedConfig):
    """Configuration of a PWL model.

    Args:
        teacher_config: The teacher's config, or its dict, of a `model_type` that has a family (`register_family`).
        student_config: The student's config, of any depth and width: of the teacher's `model_type`, or of one that
            takes the same inputs, such as DistilBERT beside BERT.
        num_blocks: The number of blocks N; `num_stages` is taken for it as well, and is its name in `config.json`.
        teacher_cuts: N block ends of the teacher, counted in its finest residual units: increasing, the
            last one its depth. Equal depth by default.
        student_cuts: The same for the student.
        share_embedder: Whether the student has the teacher's embedder, frozen, and none of its own: both must be of one
            `model_type`, width and settings.
        task: The networks' Auto class, such as `"AutoModelForSequenceClassification"`; the model's class enters it.
        base_model: The Hub id of the teacher, for the model card.
        fingerprint: The fingerprint of the repository the weights are saved in; set on saving.

    Labels (`id2label`, `num_labels`) and `problem_type` are the teacher's unless given, and hold for both networks.

    Raises:
        huggingface_hub.errors.StrictDataclassError: For values that cannot be, each named: too few units,
            cuts that do not cover a network, networks of different families, labels, problem types, input channels
            or sizes, token grids or resolutions. Unknown keys are kept, as transformers does.
        ValueError: For a config dict, or labels, that claim more than there can be (see `bounds`).

    Example:

        >>> from transformers import ViTConfig
        >>> from pwl_hf import PWLConfig
        >>> config = PWLConfig(
        ...     teacher_config=ViTConfig(num_hidden_layers=12),
        ...     student_config=ViTConfig(num_hidden_layers=6, hidden_size=192, num_attention_heads=3),
        ...     num_blocks=3,
        ... )
        >>> config.teacher_cuts, config.student_cuts
        ([4, 8, 12], [2, 4, 6])
    """

    model_type = "pwl"
    # Blocks and stages were once the same number.
    attribute_map: ClassVar[dict[str, str]] = {"num_stages": "num_blocks"}
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "teacher_config": SubConfigSpec(config_class=AutoConfig, model_type="vit"),
        "student_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="vit",
            init_kwargs={"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
        ),
    }

    teacher_config: NetworkConfig = None
    student_config: NetworkConfig = None
    num_blocks: int = 4
    teacher_cuts: Cuts = None  # type: ignore[assignment]
    student_cuts: Cuts = None  # type: ignore[assignment]
    share_embedder: bool = False
    task: str | None = None
    base_model: str | None = None
    fingerprint: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if "num_stages" in kwargs:
            self.num_blocks = kwargs.pop("num_stages")
        check_claims("config", kwargs)
        if self.task is None and self.fingerprint is not None:
            self.task = FIRST_TASK
        for key in _NETWORKS:
            if isinstance(getattr(self, key), dict):
                check_claims(key, getattr(self, key))
        # AutoConfig knows only what is registered with it: our own families are resolved first.
        for key in _NETWORKS:
            value = getattr(self, key)
            if isinstance(value, dict) and value.get("model_type") in OWN_CONFIGS:
                setattr(self, key, OWN_CONFIGS[value["model_type"]](**value))
            elif isinstance(value, dict) and isinstance(value.get("model_type"), str):
                family_of(value["model_type"])
        labels_given = self.id2label is not None or kwargs.get("num_labels") is not None
        chosen = {
            key: attention_of(value)
            for key in _NETWORKS
            if kwargs.get("attn_implementation") is None and isinstance(value := getattr(self, key), PreTrainedConfig)
        }
        super().__post_init__(**kwargs)
        # transformers hands its own choice, none yet, down to configs that may belong to models already.
        for key, attn_implementation in chosen.items():
            choose_attention(getattr(self, key), attn_implementation)
        # Without names of labels it is refused below.
        if not labels_given and self.teacher_config.id2label is not None:
            self.id2label = dict(self.teacher_config.id2label)
            self.label2id = dict(self.teacher_config.label2id)
        if self.problem_type is None and _other_problem(self.teacher_config, self.student_config) is None:
            self.problem_type = self.teacher_config.problem_type
        for key in _NETWORKS:
            cuts = key.replace("_config", "_cuts")
            if getattr(self, cuts) is None:
                setattr(self, cuts, self._default_cuts(getattr(self, key)))
            else:
                setattr(self, cuts, list(getattr(self, cuts)))

    def _default_cuts(self, network: PreTrainedConfig) -> list[int] | None:
        # None where there are none: the validation below says why, after the checks that come before it.
        if network.model_type not in FAMILIES or not isinstance(self.num_blocks, int):
            return None
        try:
            return default_cuts(FAMILIES[network.model_type].depths(network), self.num_blocks)
        except ValueError:
            return None

    def validate_pwl(self) -> None:
        """Refuse values that cannot be, each by name; later checks rely on earlier ones."""
        # 1. Each network alone.
        if self.num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {self.num_blocks}")
        if self.num_blocks > MAX_BLOCKS:
            raise ValueError(f"num_blocks must be at most {MAX_BLOCKS}, got {self.num_blocks}")
        teacher, student = self.teacher_config, self.student_config
        for key in _NETWORKS:
            check_values(key, getattr(self, key))
            try:
                family_of(getattr(self, key)).check_config(getattr(self, key))
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
        check_values("config", self)
        # 2. Both together: the same inputs and labels.
        family, of_student = family_of(teacher), family_of(student)
        if family is not of_student and (family.takes is None or family.takes != of_student.takes):
            raise ValueError(
                f"teacher and student must be of one family, got model_type {teacher.model_type!r} for the teacher and "
                f"{student.model_type!r} for the student: two families join if both take the same, such as token ids"
            )
        settings = of_student.input_settings(student)
        for name, value in family.input_settings(teacher).items():
            if settings.get(name) != value:
                raise ValueError(
                    f"teacher and student must take the same inputs, got {name} {value} for the teacher and "
                    f"{settings.get(name)} for the student"
                )
        self._check_labels(teacher, student)
        self._check_problem(teacher, student)
        if self.share_embedder:
            self._check_embedder(teacher, student)
        # 3. Their blocks, which must fit at each boundary.
        for key in _NETWORKS:
            network, cuts = getattr(self, key), key.replace("_config", "_cuts")
            if getattr(self, cuts) is None:
                default_cuts(family_of(network).depths(network), self.num_blocks)
            check_cuts(cuts, getattr(self, cuts), family_of(network).num_units(network), self.num_blocks)
        for i, (units, student_units) in enumerate(zip(self.teacher_cuts, self.student_cuts, strict=True), start=1):
            ends = family.boundary(teacher, units), of_student.boundary(student, student_units)
            if not ends[0].joins(ends[1]):
                raise ValueError(
                    f"teacher and student cannot be joined after block {i}: the teacher has {ends[0]} after "
                    f"{units} unit(s), the student has {ends[1]} after {student_units} unit(s)"
                )

    @staticmethod
    def _check_embedder(teacher: Any, student: Any) -> None:
        # What else must be equal is seen on the networks.
        if teacher.model_type != student.model_type:
            raise ValueError(
                f"share_embedder needs networks of one model_type, got {teacher.model_type!r} for the teacher and "
                f"{student.model_type!r} for the student: leave it out"
            )
        widths = [family_of(network).boundary(network, 1).width for network in (teacher, student)]
        if widths[0] != widths[1]:
            raise ValueError(
                f"share_embedder needs networks of one width, got {widths[0]} for the teacher and {widths[1]} for the "
                "student: leave it out, or give a student that is less deep and as wide"
            )

    @staticmethod
    def _check_labels(teacher: Any, student: Any) -> None:
        for name, network in (("teacher", teacher), ("student", student)):
            # PVT's config takes the number and the names of labels as two things.
            if network.id2label is None or len(network.id2label) != network.num_labels:
                count = 0 if network.id2label is None else len(network.id2label)
                raise ValueError(
                    f"the config of the {name} has num_labels {network.num_labels} and names {count} labels: give it "
                    "num_labels, id2label and label2id that agree"
                )
            if network.id2label.keys() != set(range(network.num_labels)):
                raise ValueError(
                    f"the labels of the {name} must be numbered from 0, got id2label with {min(network.id2label)} to "
                    f"{max(network.id2label)}: number them by the place of their logits"
                )
        if teacher.num_labels != student.num_labels:
            raise ValueError(
                f"teacher and student must have the same labels, got num_labels {teacher.num_labels} for the "
                f"teacher and {student.num_labels} for the student"
            )
        if _names_labels(teacher) and _names_labels(student) and teacher.id2label != student.id2label:
            i = next(i for i in teacher.id2label if teacher.id2label[i] != student.id2label.get(i))
            raise ValueError(
                f"teacher and student must have the same labels in the same order, but label {i} is "
                f"{teacher.id2label[i]!r} for the teacher and {student.id2label.get(i)!r} for the student"
            )

    def _check_problem(self, teacher: Any, student: Any) -> None:
        if self.problem_type not in (None, *_FUNCTIONS):
            raise ValueError(f"problem_type must be one of {', '.join(_FUNCTIONS)}, got {self.problem_type!r}")
        # An explicit problem_type wins over the networks'; without one they must agree.
        if self.problem_type is None and (other := _other_problem(teacher, student)) is not None:
            raise ValueError(
                f"teacher and student must have the same problem_type, got {teacher.problem_type!r} for the teacher "
                f"and {other!r} for the student: give problem_type to choose one"
            )
        if self.problem_type == "single_label_classification" and self.num_labels == 1:
            raise ValueError(
                "problem_type 'single_label_classification' needs at least 2 labels, got num_labels 1: choose "
                "'regression' or 'multi_label_classification'"
            )

    @property
    def num_channels(self) -> int:
        """The channels of the images that both networks take."""
        found: int = family_of(self.teacher_config).input_settings(self.teacher_config).get("num_channels", 3)
        return found

    @property
    def max_tokens(self) -> int | None:
        """The most tokens of a text that both networks have positions for; None if neither sets a limit."""
        return most_tokens(self.teacher_config, self.student_config)

    def max_tokens_of(self, tokenizer: Any) -> int | None:
        """The most tokens of a text that a tokenizer and both networks take; None if none of them sets a limit.

        Args:
            tokenizer: The model's tokenizer.
        """
        limits = (tokenizer.model_max_length, self.max_tokens)
        # A tokenizer without a limit has a number beyond any text.
        return min((limit for limit in limits if limit is not None and limit < _NO_LIMIT), default=None)

    def align_labels(self) -> None:
        """Give both networks this config's labels, if their number was changed, and its problem type.

        The networks' configs are copied first: they may belong to models of the caller's.
        """
        for key in _NETWORKS:
            network = getattr(self, key)
            problem_type = self.problem_type or network.problem_type
            if network.num_labels == self.num_labels and network.problem_type == problem_type:
                continue
            network = copy.deepcopy(network)
            if network.num_labels != self.num_labels:
                network.id2label, network.label2id = copy.copy(self.id2label), copy.copy(self.label2id)
                network.num_labels = self.num_labels
            network.problem_type = problem_type
            setattr(self, key, network)

    def take_task(self, task: str) -> None:
        """Enter the task of a model's class.

        Args:
            task: Its Auto class.

        Raises:
            ValueError: If the config is of another task.
        """
        if self.task not in (None, task):
            raise ValueError(
                f"the config is of task {self.task!r:.100}, the model's class of {task!r}: open it by the Auto class "
                "that the config names"
            )
        self.task = task

    def keep_layers(self) -> None:
        """Let the student skip none of its layers at random in training; its config is copied first."""
        if family_of(self.student_config).layer_skipping(self.student_config):
            self.student_config = copy.deepcopy(self.student_config)
            skip_no_layers(self.student_config)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers' own; a `problem_type` given as a keyword is checked as if it stood in the dict.

        Raises:
            ValueError: If it is longer or deeper than any config (see `bounds`).
        """
        check_document("config", config_dict)
        if kwargs.get("problem_type") is not None:
            config_dict = {**config_dict, "problem_type": kwargs["problem_type"]}
        return super().from_dict(config_dict, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """As transformers' own, with blocks and cuts always written: a repository outlives a default."""
        written = super().to_diff_dict()
        written.pop("num_blocks", None)
        if not self.share_embedder:  # as it was before there was such a thing
            written.pop("share_embedder", None)
        # The name that format 1 has for the number of blocks.
        return written | {"num_stages": self.num_blocks} | {key: getattr(self, key) for key in _CUTS}


def skip_no_layers(student: PreTrainedConfig) -> None:
    """Let a student's config skip no layers at random in training: a mask says which run. A warning tells of it."""
    for name, rate in family_of(student).layer_skipping(student).items():
        logger.warning("the student's %s was %s, and is 0 from now on: a mask says which layers run", name, rate)
        setattr(student, name, 0.0)


def _names_labels(config: Any) -> bool:
    return any(name != f"LABEL_{i}" for i, name in config.id2label.items())


def _other_problem(teacher: Any, student: Any) -> str | None:
    """The student's problem type, if scores made by it are not the teacher's; one without any takes the teacher's."""
    # Without a type, the pipeline goes by the number of labels.
    untyped = "sigmoid" if teacher.num_labels == 1 else "softmax"
    wanted = _FUNCTIONS.get(teacher.problem_type, untyped)
    other: str | None = student.problem_type
    return other if other is not None and _FUNCTIONS.get(other) != wanted else None
