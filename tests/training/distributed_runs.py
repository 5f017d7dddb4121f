"""What the processes of tests/training/test_distributed.py run: `python distributed_runs.py FOLDER BATCH RUNS`.

A run is called by its family and what it tries. Each process writes the tensors that it ends with; the main one what
it logged.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pwl_hf import TrainingError
from pwl_hf.data.digits import image_processor
from pwl_hf.training.images.gradient_arguments import GradientArguments
from pwl_hf.training.images.overlay import gradient_overlay
from tests.training.tiny_runs import everything, text_trainer, tiny_trainer

# Options beside the defaults: of the objective, and of the Trainer.
OBJECTIVES = {
    "terms": {"relation_weight": 1.0, "attention_weight": 10.0, "feature_share": 2},
    # Converters of boundaries that no path of a step changes at get no gradient.
    "unused": {"prefix_weight": 0.0, "sync_weight": 0.0, "recon_weight": 0.0, "mask_every": 2, "mask_count": 1},
    "relations": {"relation_weight": 1.0, "relation_heads": 2, "feature_share": 2},
    "mixup": {"mixup_alpha": 1.0, "mixup_probability": 0.75},
}
ARGUMENTS = {"accumulated": {"gradient_accumulation_steps": 2, "activation_checkpointing": True}}


def run(name: str, folder: Path, batch_size: int) -> None:
    """Train for four steps and write what came of it; a run that tries nothing evaluates and saves on the way."""
    family, _, tried = name.partition("-")
    trainer = (text_trainer if family == "bert" else tiny_trainer)(
        folder,
        *(() if family == "bert" else (family,)),
        objective=OBJECTIVES.get(tried),
        eval_images=10,
        per_device_train_batch_size=batch_size,
        max_steps=4,
        # Adam makes a large step of the smallest difference of two small gradients.
        optim="sgd",
        optim_args="momentum=0.9",
        logging_steps=1,
        # What is evaluated and saved is the plain runs' matter.
        eval_strategy="no" if tried else "steps",
        eval_steps=2,
        save_strategy="no" if tried else "steps",
        save_steps=2,
        **ARGUMENTS.get(tried, {}),
    )
    if tried == "overlay":
        trainer.augmentation = gradient_overlay(
            GradientArguments(ig_probability=0.5, ig_steps=4, ig_batch_size=4),
            trainer.model.teacher,
            image_processor(),
            trainer.train_dataset,
            title="pictures",
            folder=folder / "gradient-maps",
            then=trainer.augmentation,
            disable_tqdm=True,
        )
    resume = next(folder.glob("checkpoint-2"), None)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    save_file(everything(trainer.model), folder / f"rank-{trainer.args.process_index}.safetensors")
    if trainer.is_world_process_zero():
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))


def diverge(folder: Path) -> None:
    """Train on images of which one process has NaN in its third step, and write how the run ended in each."""
    trainer = tiny_trainer(folder, logging_steps=3, save_strategy="steps", save_steps=2, eval_images=0)
    rank = trainer.args.process_index

    class Augment:
        def augment(self, pixel_values, sample_ids, seed, step):
            return pixel_values * float("nan") if (rank, step) == (1, 2) else pixel_values

    trainer.augmentation = Augment()
    try:
        trainer.train()
    except TrainingError as error:
        folder.joinpath(f"rank-{rank}.txt").write_text(f"step {trainer.state.global_step}: {error}")


if __name__ == "__main__":
    for wanted in sys.argv[3].split(","):
        if wanted == "diverge":
            diverge(Path(sys.argv[1], wanted))
        else:
            run(wanted, Path(sys.argv[1], wanted), int(sys.argv[2]))
