"""Where the files of a PWL repository lie (pure Python, no torch).

N blocks:

    config.json, model.safetensors                    the student alone: stage 0
    pwl_index.json                                    this manifest, written last
    teacher/model-0000k-of-0000N.safetensors          teacher block k, a shard of a standard checkpoint
    converters/encoder-0000i.safetensors              boundary i, teacher to student
    converters/decoder-0000i.safetensors              boundary i, student to teacher
    statistics/TTSS.safetensors                       BatchNorm statistics of one mask
    teacher/shared-NAME.safetensors                   what several of the teacher's blocks share: tied tensors, say
    teacher/shared-with-student.safetensors           the embedder, where teacher and student share it: stage 0
    quantised/model-0000k-of-0000N.safetensors        teacher block k in low precision
    refinements/model-0000k-of-0000N.safetensors      what makes that the shard, bit for bit
"""

from __future__ import annotations

import re

from ..sources import Direction, PartId, Sources

MANIFEST_FILE = "pwl_index.json"
CONFIG_FILE = "config.json"
STUDENT_FILE = "model.safetensors"
PROCESSOR_FILE = "preprocessor_config.json"
# Where configs and code of the repository's own lie.
TEXT_FOLDERS = (".", "teacher")

_TIER = re.compile(r"(?:quantised|refinements)/model-(\d{5})-of-\d{5}\.safetensors")


def teacher_shard(block: int, num_blocks: int) -> str:
    """The file of teacher block `block` (from 1)."""
    return f"teacher/model-{block:05d}-of-{num_blocks:05d}.safetensors"


def quantised_file(block: int, num_blocks: int) -> str:
    """The file of teacher block `block` (from 1) in low precision."""
    return f"quantised/model-{block:05d}-of-{num_blocks:05d}.safetensors"


def refinement_file(block: int, num_blocks: int) -> str:
    """The file of what makes a block of low precision exact."""
    return f"refinements/model-{block:05d}-of-{num_blocks:05d}.safetensors"


def tier_block(path: str) -> int | None:
    """Which block (from 1) a file is of in low precision, or refines; None for other files."""
    found = _TIER.fullmatch(path)
    return int(found[1]) if found else None


def converter_file(direction: Direction, boundary: int) -> str:
    """The file of the converter at boundary `boundary` (from 1)."""
    return f"converters/{direction}-{boundary:05d}.safetensors"


def statistics_file(sources: Sources) -> str:
    """The file of a mask's BatchNorm statistics; low precision has those of the teacher's own blocks."""
    return f"statistics/{sources.exact}.safetensors"


def shared_file(name: str) -> str:
    """The file of what blocks of the teacher share."""
    return f"teacher/shared-{name}.safetensors"


def file_of(part: PartId, num_blocks: int) -> str:
    """The file that holds a part of a model."""
    if part.role == "student":
        return STUDENT_FILE
    if part.kind == "teacher":
        return teacher_shard(part.number, num_blocks)
    if part.kind == "quantised":
        return quantised_file(part.number, num_blocks)
    if part.kind == "shared":
        return shared_file(part.name)
    return converter_file("encoder" if part.kind == "encoder" else "decoder", part.number)
