"""What a training run sends to the Hub: the repository that `model.push_to_hub` makes, and checkpoints if asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers.training_args import HubStrategy
from transformers.utils import logging

from pwl_hf import PWLForImageClassification
from pwl_hf.modeling import PublishError

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
        options: Of `PWLForImageClassification.push_to_hub`.

    Raises:
        RepositoryError: If the folder is not a whole PWL repository.
        PublishError: If the network or the Hub fails in every try.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses.
    """
    commit: CommitInfo = PWLForImageClassification.from_pretrained(folder).push_to_hub(repo_id, **options)
    return commit


def push_checkpoint(
    checkpoint: str | os.PathLike[str],
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
