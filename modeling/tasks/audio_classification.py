"""Audio classification: sound in, class labels out.

Notation: N blocks; B sounds.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from .classification import Answer, Classifier


class PWLForAudioClassification(Classifier):
    """A classifier of sounds that answers as its student and grows into its teacher; see `PWLForImageClassification`.

    Its main input is what its networks call theirs: `input_values`, a waveform (wav2vec 2.0 and kin) or a spectrogram
    (AST), or `input_features` (Wav2Vec2-BERT, Whisper's encoder), as their feature extractor makes them.

    Args:
        config: The configuration.
        teacher: The teacher, if it exists already; of `config.teacher_config`.
        student: The student, if it exists already; of `config.student_config`.
        vacant: Build it with nothing in it, to be filled from a repository.
    """

    task = "AutoModelForAudioClassification"
    main_input_name = "input_values"
    input_modalities = ("audio",)  # type: ignore[assignment]
    output_class = SequenceClassifierOutput

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.main_input_name = self.parts.networks.blueprints["teacher"].model_class.main_input_name

    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        sources: str | None = None,
    ) -> SequenceClassifierOutput | Answer:
        """Classify sounds along the current route.

        Args:
            input_values: (B, samples), or (B, frames, mel bins), floating, for networks that call it so.
            attention_mask: (B, samples), or (B, frames), 1 for sound and 0 for padding, for networks that take it.
            input_features: (B, frames, width), or (B, mel bins, frames), floating, for networks that call it so.
            labels: For a loss, which is transformers' own for the config's `problem_type`: (B,) class numbers, int64;
                of several labels or a regression (B, num_labels), floating.
            output_hidden_states: Also return the output of each block.
            return_dict: Return a `ModelOutput` rather than a tuple; the config's choice by default.
            sources: Take the path of this mask, once; all it needs must be resident.

        Returns:
            `loss` (scalar, with labels), `logits` (B, num_labels) and, if asked for, `hidden_states`.

        Raises:
            StageError: If `sources` needs what is not resident.
            ValueError: If `sources` is malformed, or the main input is missing.
        """
        inputs = {"input_values": input_values, "input_features": input_features, "attention_mask": attention_mask}
        if inputs[self.main_input_name] is None:
            raise ValueError(f"the networks take {self.main_input_name}, which was not given")
        return self.classify(
            inputs, labels, output_hidden_states=output_hidden_states, return_dict=return_dict, sources=sources
        )
