"""BERTs of one width that share an embedder, and the same two networks alone."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from pwl_hf import PWLForSequenceClassification

SHARED = "teacher/shared-with-student.safetensors"
# Of its five tensors.
EMBEDDER = 50 * 16 + 40 * 16 + 2 * 16 + 2 * 16


def bert_config(num_hidden_layers: int, **others: Any) -> BertConfig:
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
    return BertConfig(**{**sizes, "num_hidden_layers": num_hidden_layers, "max_position_embeddings": 40, **others})


def bert(num_hidden_layers: int, seed: int = 0, **others: Any) -> BertForSequenceClassification:
    """A network whose tensors are all other than those of another seed."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = BertForSequenceClassification(bert_config(num_hidden_layers, num_labels=3, **others)).eval()
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


@cache
def _plain() -> tuple[BertForSequenceClassification, BertForSequenceClassification]:
    teacher, student = bert(8), bert(4, seed=1)
    student.bert.embeddings.load_state_dict(teacher.bert.embeddings.state_dict())
    return teacher, student


def plain() -> tuple[BertForSequenceClassification, BertForSequenceClassification]:
    """The two networks, each whole: the student's embedder is a copy of the teacher's."""
    teacher, student = _plain()
    return copy.deepcopy(teacher), copy.deepcopy(student)


def joined(*, share: bool = True, num_blocks: int = 4) -> PWLForSequenceClassification:
    """Both as a model, whose converters are the same whether they share or not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return PWLForSequenceClassification.from_teacher_student(
            *plain(), num_blocks=num_blocks, share_embedder=share
        ).eval()


def embedder(network: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters of a BERT's embedder."""
    return dict(network.bert.embeddings.named_parameters())
