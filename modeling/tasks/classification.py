"""What all classifiers have in common: logits along a route, transformers' own loss, hidden states if asked for."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch

from ..configuration_pwl import PWLConfig
from ..families.base import Inputs
from ..modeling_pwl import PWLPreTrainedModel

# What a forward gives with `return_dict=False`.
Answer = tuple[torch.Tensor | tuple[torch.Tensor, ...], ...]


class Classifier(PWLPreTrainedModel):
    """A model with a head for labels; a subclass is a task, with a forward of its own.

    Args:
        config: The configuration.
        teacher: The teacher, if it exists already; of `config.teacher_config`.
        student: The student, if it exists already; of `config.student_config`.
        vacant: Build it with nothing in it, to be filled from a repository.
    """

    # Of transformers' own.
    output_class: ClassVar[type[Any]]

    def classify(
        self,
        inputs: Inputs,
        labels: torch.Tensor | None,
        *,
        output_hidden_states: bool | None,
        return_dict: bool | None,
        sources: str | None,
    ) -> Any:
        """What a forward gives: the output of a route, and the loss that transformers has for the class of the model.

        Args:
            inputs: What the networks take, by name.
            labels: For a loss.
            output_hidden_states: Also return the output of each block; the config's choice by default.
            return_dict: Return an `output_class` rather than a tuple; the config's choice by default.
            sources: The route's mask; the current one by default.
        """
        logits, outputs = self.run(inputs, sources)
        # A copy: without a problem type, transformers' loss enters one, and later answers would go by it.
        loss = None if labels is None else self.loss_of(logits, labels, copy.copy(self.config))
        wants_hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states = tuple(features.tensor for features in outputs) if wants_hidden else None
        output = self.output_class(loss=loss, logits=logits, hidden_states=hidden_states)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def loss_of(self, logits: torch.Tensor, labels: torch.Tensor, config: PWLConfig) -> torch.Tensor:
        """The loss that transformers has for the class of the model.

        Args:
            logits: What the route gives.
            labels: As in the forward.
            config: The config, or a copy of it.
        """
        loss: torch.Tensor = self.loss_function(labels, logits, config)
        return loss
