"""A model that adapters of PEFT are put on: as transformers does it, but for what a change of stage would lose."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .errors import RepositoryError, StageError
from .parts.adapters import (
    read_adapter,
    refuse_on_low_precision,
    refuse_on_shared_embedder,
    refuse_vacancies,
    undone_on_error,
)
from .parts.locking import exclusive
from .parts.parts import Parts
from .repository.source import Repository

logger = logging.get_logger(__name__)


_EMBEDDINGS = (
    "the embeddings are the teacher's and the student's: change those of both before they are joined "
    "(from_teacher_student), and train them together"
)


class AdaptedModel(PreTrainedModel):
    """What a model with stages is, as far as adapters go.

    A subclass has `parts`, and says when stages are being streamed.
    """

    parts: Parts

    @property
    def sources(self) -> str:
        """The mask of the route."""
        raise NotImplementedError

    def _refuse_while_streaming(self, *, anyone: bool = False) -> None:
        """Raise a StageError if they are."""
        raise NotImplementedError

    @exclusive
    def get_input_embeddings(self) -> nn.Module:
        """The input embeddings of the network that runs the first block now, as PEFT asks for them.

        Raises:
            StageError: If that block is in low precision, whose embeddings cannot learn.
        """
        first = self.sources[0]
        if first == "Q":
            raise StageError(
                f"the first block of {self.sources} is in low precision: go to another stage for embeddings"
            )
        network: PreTrainedModel = self._modules["teacher" if first == "T" else "student"]  # type: ignore[assignment]
        return network.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Not possible: embeddings are those of the teacher and the student.

        Raises:
            ValueError: Always.
        """
        raise ValueError(_EMBEDDINGS)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Not possible, as `set_input_embeddings`.

        Raises:
            ValueError: Always.
        """
        raise ValueError(_EMBEDDINGS)

    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """Put a new adapter of PEFT on the model, to be trained, as transformers does.

        Args:
            adapter_config: What to add, and where.
            adapter_name: What to call it; `"default"` by default.

        Raises:
            StageError: While stages are streamed, which would release blocks with the adapter; if it would be on blocks
                in low precision, or on an embedder that both networks share.
            ValueError: As transformers', such as for a target that is not resident: load with `keep_all=True`.
        """
        self._refuse_while_streaming()
        if self.parts.store is None:
            logger.warning(
                "the model is in no repository, so its adapter cannot be saved: save and load the model first"
            )
        with undone_on_error(self):
            super().add_adapter(adapter_config, adapter_name)
            refuse_on_low_precision(self.parts)
            refuse_on_shared_embedder(self.parts)

    @exclusive
    def load_adapter(  # type: ignore[override]
        self,
        peft_model_id: str | None = None,
        adapter_name: str | None = None,
        peft_config: Any = None,
        adapter_state_dict: dict[str, torch.Tensor] | None = None,
        adapter_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Put a trained adapter (LoRA and others of PEFT) on the model, as transformers does.

        Args:
            peft_model_id: The adapter's folder or Hub id; its weights must be a safetensors file.
            adapter_name: What to call it; `"default"` by default.
            peft_config: The adapter's config, in place of a repository.
            adapter_state_dict: The adapter's tensors, in place of a repository.
            adapter_kwargs: `revision`, `subfolder`, `token`, `cache_dir` and the like, for the adapter's repository.
            kwargs: transformers' other arguments.

        Returns:
            transformers' loading info.

        Raises:
            StageError: If a part of it is for a block that is not resident: load the model with `keep_all=True`; if it
                would be on blocks in low precision, or on an embedder that both networks share.
            RepositoryError: If there is no such adapter, or the model has no place for a part of it.
            ImportError: If PEFT is not installed.
        """
        self._refuse_while_streaming()
        if peft_model_id is not None and adapter_state_dict is None:
            repository = Repository.open(peft_model_id, **(adapter_kwargs or {}))
            found, adapter_state_dict = read_adapter(repository)
            peft_config = peft_config or found
        refuse_vacancies(self.parts, adapter_state_dict or ())
        with undone_on_error(self):
            info = super().load_adapter(
                None, adapter_name, peft_config=peft_config, adapter_state_dict=adapter_state_dict, **kwargs
            )
            refuse_on_low_precision(self.parts)
            refuse_on_shared_embedder(self.parts)
            if info.unexpected_keys:
                raise RepositoryError(
                    f"the adapter holds {min(info.unexpected_keys)!r}, for which the model has no place: use the PEFT "
                    "release that it was saved with"
                )
        return info
