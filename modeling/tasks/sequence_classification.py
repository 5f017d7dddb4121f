"""Sequence classification: a text in, class labels out.

Notation: N blocks; B texts of L tokens.
"""

from __future__ import annotations

import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from .classification import Answer, Classifier


class PWLForSequenceClassification(Classifier):
    """A text classifier that answers as its student and grows into its teacher; see `PWLForImageClassification`.

    Teacher and student may be of different families with one vocabulary, such as BERT and DistilBERT.

    Args:
        config: The configuration.
        teacher: The teacher, if it exists already; of `config.teacher_config`.
        student: The student, if it exists already; of `config.student_config`.
        vacant: Build it with nothing in it, to be filled from a repository.

    Example:

        >>> import torch
        >>> from transformers import BertConfig
        >>> from pwl_hf import PWLConfig, PWLForSequenceClassification
        >>> size = dict(vocab_size=50, num_attention_heads=2)
        >>> model = PWLForSequenceClassification(PWLConfig(
        ...     teacher_config=BertConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=4, **size),
        ...     student_config=BertConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, **size),
        ...     num_blocks=2,
        ... )).eval()
        >>> model.load_next_stage(), model.sources
        (1, 'TS')
        >>> model(torch.tensor([[5, 6, 7]])).logits.shape
        torch.Size([1, 2])
    """

    task = "AutoModelForSequenceClassification"
    main_input_name = "input_ids"
    input_modalities = ("text",)  # type: ignore[assignment]
    output_class = SequenceClassifierOutput

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        sources: str | None = None,
    ) -> SequenceClassifierOutput | Answer:
        """Classify texts along the current route.

        There are no `inputs_embeds`: each network has embeddings of its own.

        Args:
            input_ids: (B, L), int64.
            attention_mask: (B, L), 1 for tokens and 0 for padding.
            token_type_ids: (B, L), for the networks that have them.
            position_ids: (B, L) or (1, L).
            labels: For a loss, which is transformers' own for the config's `problem_type`: (B,) class numbers, int64;
                of several labels or a regression (B, num_labels), floating.
            output_hidden_states: Also return the output of each block.
            return_dict: Return a `ModelOutput` rather than a tuple; the config's choice by default.
            sources: Take the path of this mask, once; all it needs must be resident.

        Returns:
            `loss` (scalar, with labels), `logits` (B, num_labels) and, if asked for, `hidden_states`: N tensors (B, L,
            width), each in its block's own width.

        Raises:
            StageError: If `sources` needs what is not resident.
            ValueError: If `sources` is malformed.
        """
        inputs = text_inputs(input_ids, attention_mask, token_type_ids, position_ids)
        return self.classify(
            inputs, labels, output_hidden_states=output_hidden_states, return_dict=return_dict, sources=sources
        )


def text_inputs(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    token_type_ids: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> dict[str, torch.Tensor | bool | None]:
    """What networks of texts take, by name; a decoder keeps no cache, which a classifier has no use for."""
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
        "position_ids": position_ids,
        "use_cache": False,
    }
