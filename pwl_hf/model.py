"""The model that users import: the one that travels with the weights, plus publishing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import CommitInfo, HfApi

from pwl_hf import modeling
from pwl_hf.modeling.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_base_is_saved
from pwl_hf.modeling.errors import OverwriteError
from pwl_hf.modeling.manifest import MANIFEST_FILE
from pwl_hf.modeling.retrying import RetryPolicy


class PWLForImageClassification(modeling.PWLForImageClassification):
    """An image classifier that answers as its student and grows into its teacher, block by block.

    The model of `pwl_hf.modeling`, which travels with the weights, and `push_to_hub`. See its base for
    construction, stages and the forward pass.

    Example:

        >>> from pwl_hf import PWLForImageClassification
        >>> model = PWLForImageClassification.from_pretrained("org/pwl-vit")  # doctest: +SKIP
        >>> model.stage, model.load_next_stage(), model.sources  # doctest: +SKIP
        (0, 1, 'TSSS')
    """

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload PWL model",
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: list[str] | None = None,
        card_data: Mapping[str, Any] | None = None,
        retry: RetryPolicy | None = None,
        inference_handler: bool = False,
        remote_code: str | None = None,
        overwrite: bool = False,
        **kwargs: Any,
    ) -> CommitInfo:
        """Publish the whole repository in one commit, from any stage.

        Only what the Hub does not have is sent: shards that were never pulled are copied on the server. Weight
        files that the manifest on the Hub lists, and the new one does not, are removed in the same commit. In a
        repository that is no PWL repository nothing is removed, and files are written over only with `overwrite`
        (or in a pull request). The model card is rendered from the manifest; a card that is there keeps what people
        wrote. Of a model with adapters the active one alone is pushed, as in transformers.

        Args:
            repo_id: The Hub id.
            commit_message: The commit's title.
            commit_description: The commit's text.
            private: Make a new repository private; an existing one stays as it is.
            token: As in huggingface_hub.
            revision: The branch, made if it does not exist.
            create_pr: Open a pull request rather than commit to the branch.
            tags: Further tags for the card.
            card_data: Metadata for the card, such as `{"license": "mit", "datasets": ["cifar10"]}`.
            retry: How long to try when the network fails.
            inference_handler: Add the `handler.py` that Hugging Face Inference Endpoints look for, and the
                `requirements.txt` for it.
            remote_code: As in `save_pretrained`; an inference handler needs `"standalone"`, and brings it.
            overwrite: Write over files of a repository that is no PWL repository, and over a `handler.py` of
                another's making.
            kwargs: `max_shard_size` and `save_original_format` change nothing: shards are stages.

        Returns:
            The commit, a `str` of its address.

        Raises:
            TypeError: For an unknown argument.
            ValueError: If `inference_handler` is set, and there is no image processor; for `card_data` or
                `inference_handler` of a model with adapters.
            OverwriteError: If files would be written over that are not a PWL repository's.
            RepositoryError: If a file to be sent is not what the manifest says, or is a link out of its folder.
            PublishError: If the network or the Hub fails in every try.
            huggingface_hub.errors.HfHubHTTPError: If the Hub refuses.
        """
        unknown = kwargs.keys() - {"max_shard_size", "save_original_format", "safe_serialization"}
        if unknown:
            raise TypeError(f"push_to_hub got an unexpected keyword argument {min(unknown)!r}")
        if self._hf_peft_config_loaded:
            if card_data or inference_handler:
                name = "card_data" if card_data else "inference_handler"
                raise ValueError(f"{name} does not apply to an adapter, which alone would be pushed: leave it out")
            api = HfApi(token=token)
            if api.file_exists(repo_id, MANIFEST_FILE, revision=revision):
                raise ValueError(
                    f"{repo_id} is a PWL repository, and only the adapter of this model would be pushed: push it to a "
                    "repository of its own"
                )
            known = [api.file_exists(repo_id, name, revision=revision) for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG)]
            if known == [True, False] and not overwrite and not create_pr:
                raise OverwriteError(
                    f"{repo_id} holds {ADAPTER_WEIGHTS}, and no {ADAPTER_CONFIG} of an adapter; nothing was pushed: "
                    "push to another repository, or give overwrite=True to write over it"
                )
            check_base_is_saved(self)
            pushed: CommitInfo = super().push_to_hub(  # type: ignore[call-arg]
                repo_id=repo_id,
                commit_message=commit_message,
                commit_description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                tags=tags or [],
            )
            return pushed
        from pwl_hf.publishing import Target, push_model

        data = dict(card_data or {})
        if tags:
            data["tags"] = [*data.get("tags", []), *tags]
        target = Target(
            repo_id,
            commit_message,
            commit_description,
            private,
            token,
            revision,
            create_pr,
            card_data=data,
            retry=retry or RetryPolicy(),
            inference_handler=inference_handler,
            remote_code=remote_code,
            overwrite=overwrite,
        )
        return push_model(self, target)
