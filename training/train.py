#!/usr/bin/env python
"""Train a PWL model on the digits of scikit-learn: a teacher, then the student and converters by distillation.

    accelerate launch training/train.py --output_dir digits
    accelerate launch -m pwl_hf.training.train --output_dir digits --seed 1
    python training/train.py --output_dir digits --teacher path/or/hub-id --epochs 30

The data comes with scikit-learn, so nothing is downloaded. The folder is a PWL repository: the test accuracy of
every stage, measured on the saved files, stands in its `pwl_index.json`. The defaults are for the order of the
stages: masks that begin with the student stay far below it at this size, and a greater `--mask_weight` takes from
the stages.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any, cast

from transformers import HfArgumentParser

from pwl_hf.training.arguments import DigitsArguments

logger = logging.getLogger(__name__)


def train(arguments: DigitsArguments) -> list[float]:
    """Train, save and measure.

    Returns:
        The test accuracy of each stage, the student's first; in processes other than the main one, nothing.

    Raises:
        ValueError: If the given teacher does not fit the digits.
        huggingface_hub.errors.StrictDataclassError: If teacher and student cannot be joined, with the reason.
    """
    # Here rather than above, so that --help and wrong arguments do not wait for torch.
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import set_seed
    from torch.utils.data import TensorDataset
    from transformers import PreTrainedModel

    from pwl_hf import PWLForImageClassification
    from pwl_hf.data.digits import DATASET, image_processor, load_splits, to_tensor
    from pwl_hf.model_card import write_card
    from pwl_hf.modeling import Metric
    from pwl_hf.modeling.saving import write_metrics
    from pwl_hf.training.loop import Supervised, fit, parameter_groups
    from pwl_hf.training.measure import stage_accuracies
    from pwl_hf.training.digits_networks import load_processor, load_teacher, new_student, new_teacher
    from pwl_hf.training.objective import build_objective
    from pwl_hf.training.objective_arguments import ObjectiveArguments

    # Not every step uses every converter: only one random mask runs through decoders.
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    given = arguments.teacher
    processor = image_processor() if given is None else load_processor(given)
    train_images, test_images = load_splits()
    data = TensorDataset(to_tensor(train_images.images, processor), torch.tensor(train_images.labels))

    set_seed(arguments.seed)
    if given is None:
        teacher: PreTrainedModel = new_teacher(arguments)
        groups = [{"params": list(teacher.parameters())}]
        epochs = arguments.teacher_epochs
        fit(accelerator, Supervised(teacher), groups, data, epochs=epochs, arguments=arguments, title="teacher")
    else:
        teacher = load_teacher(given)

    # Again, so that the student's first weights do not depend on how the teacher came about.
    set_seed(arguments.seed)
    student = new_student(arguments, teacher.config, teacher.device)
    model = PWLForImageClassification.from_teacher_student(teacher, student, num_stages=arguments.num_stages)
    options = ObjectiveArguments(
        alpha=arguments.alpha,
        temperature=arguments.temperature,
        prefix_weight=arguments.prefix_weight,
        mask_weight=arguments.mask_weight,
        sync_weight=arguments.feature_weight,
        recon_weight=arguments.feature_weight,
    )
    objective = build_objective(model, options, arguments.seed)
    groups = parameter_groups(model, arguments)
    fit(accelerator, objective, groups, data, epochs=arguments.epochs, arguments=arguments, title="student")

    accuracies: list[float] = []
    if accelerator.is_main_process:
        model.save_pretrained(arguments.output_dir)
        processor.save_pretrained(arguments.output_dir)
        processor.save_pretrained(f"{arguments.output_dir}/teacher")
        labels = torch.tensor(test_images.labels)
        accuracies = stage_accuracies(arguments.output_dir, to_tensor(test_images.images, processor), labels)
        metrics = {
            stage: [Metric(name="accuracy", value=value, dataset=DATASET, split="test", n=len(labels))]
            for stage, value in enumerate(accuracies)
        }
        write_metrics(arguments.output_dir, metrics)
        write_card(arguments.output_dir)
        for stage, value in enumerate(accuracies):
            logger.info("stage %d: test accuracy %.4f on %d images", stage, value, len(labels))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return accuracies


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and train; wrong arguments end the program with a message."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = HfArgumentParser([cast(Any, DigitsArguments)], description=__doc__.splitlines()[0])
    try:
        (arguments,) = parser.parse_args_into_dataclasses(argv)
    except ValueError as error:
        parser.error(str(error))
    train(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
