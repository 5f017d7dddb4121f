"""Token classification: a text in, a class label for each of its tokens out.

Notation: N blocks; B texts of L tokens.
"""

from __future__ import annotations

import torch
from transformers.modeling_outputs import TokenClassifierOutput

from ..configuration_pwl import PWLConfig
from .classification import Answer, Classifier
from .sequence_classification import text_inputs


class PWLForTokenClassification(Classifier):
    """A tagger that answers as its student and grows into its teacher; see `PWLForSequenceClassification`.

    Args:
        config: The configuration.
        teacher: The teacher, if it exists already; of `config.teacher_config`.
        student: The student, if it exists already; of `config.student_config`.
        vacant: Build it with nothing in it, to be filled from a repository.
    """

    task = "AutoModelForTokenClassification"
    main_input_name = "input_ids"
    input_modalities = ("text",)  # type: ignore[assignment]
    output_class = TokenClassifierOutput

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
    ) -> TokenClassifierOutput | Answer:
        """Classify tokens along the current route.

        Args:
            input_ids: As in `PWLForSequenceClassification`, with the further inputs.
            attention_mask: (B, L), 1 for tokens and 0 for padding.
            token_type_ids: (B, L), for the networks that have them.
            position_ids: (B, L) or (1, L).
            labels: For a loss, which is transformers' own: (B, L) class numbers, int64, -100 where none counts.
            output_hidden_states: Also return the output of each block.
            return_dict: Return a `ModelOutput` rather than a tuple; the config's choice by default.
            sources: Take the path of this mask, once; all it needs must be resident.

        Returns:
            `loss` (scalar, with labels), `logits` (B, L, num_labels) and, if asked for, `hidden_states`.

        Raises:
            StageError: If `sources` needs what is not resident.
            ValueError: If `sources` is malformed.
        """
        inputs = text_inputs(input_ids, attention_mask, token_type_ids, position_ids)
        return self.classify(
            inputs, labels, output_hidden_states=output_hidden_states, return_dict=return_dict, sources=sources
        )

    def loss_of(self, logits: torch.Tensor, labels: torch.Tensor, config: PWLConfig) -> torch.Tensor:
        """See `Classifier`; of tokens transformers' loss takes the logits first."""
        loss: torch.Tensor = self.loss_function(logits, labels, config)
        return loss
