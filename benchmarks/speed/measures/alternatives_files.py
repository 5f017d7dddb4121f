"""The files of what users would do instead: the teacher's weights in other forms, each a file that is written once.

- config.json, model.safetensors: the teacher as transformers saves it
- int8.safetensors: its matrices as int8, each output channel with its own scale
- bf16/: the teacher in bfloat16, as transformers saves it
- modules.safetensors: its tensors under the names of its modules, as accelerate reads them
- both.safetensors, student.json: teacher and student in one file
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.speed.figures import Place
from benchmarks.speed.hub import plain_teacher
from benchmarks.speed.measures.alternatives_forms import BF16, BOTH, INT8, MODULES, STUDENT_CONFIG, quantised
from pwl_hf.modeling.families.registry import family_of

# accelerate asks for it.
_METADATA = {"format": "pt"}


def alternatives(place: Place) -> Path:
    """The folder of a pair's files, made if it is not there."""
    folder = place.data / f"{place.name}-alternatives"
    if not (folder / BOTH).is_file():
        teacher, student = plain_teacher(place), place.repository() / "student"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(student / "config.json", folder / STUDENT_CONFIG)
        for path in teacher.iterdir():
            (folder / path.name).unlink(missing_ok=True)
            os.link(path, folder / path.name)
        network = family_of(place.pair.teacher).model_class()
        whole = network.from_pretrained(teacher)
        states = {"teacher": whole.state_dict(), "student": network.from_pretrained(student).state_dict()}
        save_file(states["teacher"], folder / MODULES, metadata=_METADATA)
        save_file(quantised(states["teacher"]), folder / INT8, metadata=_METADATA)
        whole.to(torch.bfloat16).save_pretrained(folder / BF16)
        # The last one: it tells that all are there.
        both = {f"{part}.{name}": tensor for part, state in states.items() for name, tensor in state.items()}
        save_file(both, folder / BOTH, metadata=_METADATA)
    return folder
