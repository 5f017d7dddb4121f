"""What the processes of tests/training/test_distributed.py run: `python distributed_runs.py FOLDER BATCH FAMILIES`.

Each process writes the tensors that it ends with; the main one what it logged.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.training.tiny_runs import everything, tiny_trainer


def run(family: str, folder: Path, batch_size: int, **options: object) -> None:
    """Train for four steps, evaluate and save on the way, and write what came of it."""
    trainer = tiny_trainer(
        folder,
        family,
        eval_images=10,
        per_device_train_batch_size=batch_size,
        max_steps=4,
        # Adam makes a large step of the smallest difference of two small gradients.
        optim="sgd",
        optim_args="momentum=0.9",
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        **options,
    )
    resume = next(folder.glob("checkpoint-2"), None)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    save_file(everything(trainer.model), folder / f"rank-{trainer.args.process_index}.safetensors")
    if trainer.is_world_process_zero():
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    for name in sys.argv[3].split(","):
        run(name, Path(sys.argv[1], name), int(sys.argv[2]))
