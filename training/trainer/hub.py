"""What a training run sends to the Hub: the repository that `model.push_to_hub` makes, and checkpoints if asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging

from pwl_hf.modeling import PublishError
from pwl_hf.modeling.publishing.model_card import write_card
from pwl_hf.opening import open_model
from pwl_hf.training.trainer.finite import FiniteTrainer

logger = logging.get_logger(__name__)

# What transformers' examples say of a model when they push it, as the card's metadata calls it.
_CARD_NAMES = {
    "dataset_tags": "datasets",
    "finetuned_from": "base_model",
    "language": "language",
    "license": "license",
    "tags": "tags",
}


def card_data_of(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The card's metadata that keyword arguments of `push_to_hub` mean.

    Raises:
        TypeError: For an argument that means nothing for a PWL model.
    """
    unknown = kwargs.keys() - {*_CARD_NAMES, "card_data"}
    if unknown:
        raise TypeError(
            f"push_to_hub got an unexpected keyword argument {min(unknown)!r}; of the card, it takes card_data and "
            f"{', '.join(_CARD_NAMES)}"
        )
    data = dict(kwargs.get("card_data") or {})
    for name, key in _CARD_NAMES.items():
        if kwargs.get(name) is not None:
            value = kwargs[name]
            data[key] = [value] if isinstance(value, str) and key in ("datasets", "tags") else value
    return data


def push_saved(folder: str | os.PathLike[str], repo_id: str, **options: Any) -> CommitInfo:
    """Push a saved repository as `model.push_to_hub` does, and nothing else that lies in its folder.

    Args:
        folder: The folder.
        repo_id: The Hub id.
        options: Of `PWLPreTrainedModel.push_to_hub`.

    Raises:
        RepositoryError: If the folder is not a whole PWL repository.
        PublishError: If the network or the Hub fails in every try.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses.
    """
    commit: CommitInfo = open_model(folder).push_to_hub(repo_id, **options)
    return commit


def push_checkpoint(
    checkpoint: str | Path,
    repo_id: str,
    strategy: HubStrategy,
    *,
    commit_message: str,
    token: str | None = None,
    revision: str | None = None,
) -> None:
    """Push a checkpoint in the middle of a run, as `hub_strategy` says; a Hub that fails does not end the run.

    The model of it goes to the root of the repository, in one commit that sends only what the Hub does not have. With
    `checkpoint` and `all_checkpoints` the whole folder goes to `last-checkpoint` or a folder of its own as well: it
    holds what the run continues from. All is sent when this returns, so the folder may be deleted.

    Args:
        checkpoint: The checkpoint's folder.
        repo_id: The Hub id.
        strategy: What is sent, and when.
        commit_message: The commits' title.
        token: As in huggingface_hub.
        revision: The branch.
    """
    try:
        push_saved(checkpoint, repo_id, commit_message=commit_message, token=token, revision=revision)
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            HfApi(token=token).upload_folder(
                repo_id=repo_id,
                folder_path=checkpoint,
                path_in_repo="last-checkpoint" if strategy == HubStrategy.CHECKPOINT else Path(checkpoint).name,
                commit_message=f"{commit_message}, checkpoint",
                revision=revision,
                delete_patterns="*",
            )
    except (PublishError, HfHubHTTPError, OSError) as error:
        logger.warning(
            "%s was not pushed to %s, training goes on and the next one is pushed (%s: %s)",
            checkpoint,
            repo_id,
            type(error).__name__,
            error,
        )


class HubTrainer(FiniteTrainer):
    """A Trainer that pushes what `model.push_to_hub` pushes.

    What Trainer itself would send is the output folder as it lies there: no shards, and all that a run leaves.
    """

    @property
    def _output_dir(self) -> str:
        if self.args.output_dir is None:
            raise ValueError("output_dir must be given")
        return self.args.output_dir

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of the saved repository, from its manifest."""
        if self.is_world_process_zero():
            write_card(self._output_dir, card_data=card_data_of({k: v for k, v in kwargs.items() if v is not None}))

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | None:
        """Save the model, and push it as `model.push_to_hub` does; all processes call it, the main one pushes.

        Args:
            commit_message: The commit's title.
            blocking: Must be true: what is pushed is the saved folder, which must not change meanwhile.
            token: As in huggingface_hub; `hub_token` by default.
            revision: The branch; `hub_revision` by default.
            private: Make a new repository private; `hub_private_repo` by default.
            kwargs: For the card: `card_data`, or `tags`, `license`, `language`, `dataset_tags`, `finetuned_from`.

        Returns:
            The commit; in processes that do not push, None.

        Raises:
            ValueError: If `blocking` is false.
            TypeError: For an unknown argument.
            PublishError: If the network or the Hub fails in every try.
            huggingface_hub.errors.HfHubHTTPError: If the Hub refuses.
        """
        if not blocking:
            raise ValueError("blocking=False does not apply to PWL models: leave it out")
        card_data = card_data_of(kwargs)
        token = token if token is not None else self.args.hub_token
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)  # In the main process.
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero() or self.hub_model_id is None:
            return None
        return push_saved(
            self._output_dir,
            self.hub_model_id,
            commit_message=commit_message or "End of training",
            token=token,
            revision=revision if revision is not None else self.args.hub_revision,
            card_data=card_data,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.hub_model_id is None:
            return
        if HubStrategy(self.args.hub_strategy) == HubStrategy.END:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        by_epoch = self.args.save_strategy == SaveStrategy.EPOCH
        at = f"epoch {int(self.state.epoch or 0)}" if by_epoch else f"step {self.state.global_step}"
        push_checkpoint(
            checkpoint_folder,
            self.hub_model_id,
            HubStrategy(self.args.hub_strategy),
            commit_message=f"Training in progress, {at}",
            token=self.args.hub_token,
            revision=self.args.hub_revision,
        )
