"""PWLPreTrainedModel: a model that answers as its student and grows into its teacher, whatever its task.

Notation: N blocks; a stage is a mask of the schedule, usually blocks 1..k from the teacher.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from transformers import PreTrainedModel

from .configuration_pwl import PWLConfig
from .errors import InputError, RepositoryError, SaveError
from .finite import Batch, Batches, batches_of, by_name
from .loading import check_arguments, check_keep, device_of, dtype_of, read_repository
from .parts.adapters import open_model
from .parts.locking import exclusive
from .parts.weights import WeightStore
from .repository.background import Prefetch
from .repository.retrying import RetryPolicy
from .routes.shared_paths import SharedPaths
from .sources import Role, Sources
from .staged_model import StagedModel
from .transformers_internals import choose_attention

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


class PWLPreTrainedModel(StagedModel):
    """A teacher and a student cut into blocks, that loads, steps, streams, saves, pushes and fits; of no task yet.

    Args:
        config: The configuration.
        teacher: The teacher, if it exists already; of `config.teacher_config`.
        student: The student, if it exists already; of `config.student_config`.
        vacant: Build it with nothing in it, to be filled from a repository.
    """

    # --- Loading, joining, saving -------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        stage: int | str = 0,
        # A tuple of literals is no Collection of them to mypy.
        keep: Sequence[Role] | AbstractSet[Role] = (),
        keep_all: bool = False,
        stream: bool = False,
        config: PWLConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        attn_implementation: str | dict[str, Any] | None = None,
        ignore_mismatched_sizes: bool = False,
        disable_mmap: bool = False,
        output_loading_info: bool = False,
        revision: str | None = None,
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        retry: RetryPolicy | None = None,
        adapter_name: str | None = None,
        adapter_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a model at a stage from a folder or the Hub.

        Stage 0 reads three small files: the config, the manifest and the student; and the embedder, where the student
        shares the teacher's. Every later file comes from the same commit, also when the branch has moved since.

        Args:
            pretrained_model_name_or_path: A folder or a Hub id.
            stage: 0 (the student) to the last, or `"teacher"` for the last.
            keep: Networks to keep in memory whole, beside the current route: `"student"`, `"teacher"`, or both.
            keep_all: Keep both networks and all converters in memory, for training and for `sources=`.
            stream: Start loading the later stages in the background at once (see `stream_stages`).
            config: A config to use in place of the repository's.
            dtype: The floating dtype; the stored one by default or with `"auto"`.
            torch_dtype: The older name of `dtype`.
            device_map: One device, in any of transformers' ways.
            attn_implementation: As in transformers; later stages follow it.
            ignore_mismatched_sizes: With another `num_labels`, reset both heads; needs `keep_all`.
            disable_mmap: Copy weights out of their files, which may then be written to while the model answers.
            output_loading_info: Return `(model, info)`.
            revision: Branch, tag or commit.
            subfolder: Where in the repository the model lies.
            token: As in huggingface_hub.
            cache_dir: As in huggingface_hub.
            local_files_only: As in huggingface_hub.
            force_download: As in huggingface_hub.
            retry: How long to try when the network fails, now and at later stages.
            adapter_name: What to call an adapter, if it is one that is loaded, with the model that it is for.
            adapter_kwargs: `revision`, `token` and the like, for the adapter's repository.
            kwargs: Changes to the config, such as `num_labels`.

        Returns:
            The model in eval mode, or the model and its loading info.

        Raises:
            ValueError: For an argument that does not apply to a PWL model, before anything is downloaded; for
                a stage that does not exist.
            RepositoryError: If the repository is malformed, by file and tensor.

        Example:

            >>> model = PWLForImageClassification.from_pretrained("org/pwl-vit")  # doctest: +SKIP
            >>> model.load_next_stage()  # doctest: +SKIP
            1
        """
        # 1. What the arguments alone tell, before anything is read.
        adapter_kwargs = dict(adapter_kwargs or {})
        adapter = adapter_kwargs.pop("_adapter_model_path", None)  # of an Auto class, which has looked for one
        overrides = check_arguments(kwargs)
        device = device_of(device_map)
        kept = check_keep(keep)
        if ignore_mismatched_sizes and not keep_all:
            raise ValueError("ignore_mismatched_sizes=True resets both heads: load with keep_all=True as well")
        if stream and keep_all:
            raise ValueError("stream=True does not go with keep_all=True: everything is loaded at once")
        options: dict[str, Any] = {
            "revision": revision,
            "subfolder": subfolder,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "force_download": force_download,
            "retry": retry or RetryPolicy(),
        }
        if config is not None and overrides:
            raise TypeError(f"from_pretrained got an unexpected keyword argument {next(iter(overrides))!r}")
        # 2. Manifest and config, of one save, and what they tell.
        read = partial(
            read_repository,
            config_class=cls.config_class,
            overrides=overrides,
            config=config,
            any_attention=attn_implementation is not None or bool(kwargs.get("trust_remote_code")),
        )
        repository, (manifest, config), adapter = open_model(pretrained_model_name_or_path, adapter, read, **options)
        if adapter is not None and stream:
            raise ValueError("stream=True does not go with an adapter: the blocks that it is on would be released")
        try:
            config.take_task(cls.task)
        except ValueError as error:
            raise RepositoryError(f"{repository}: {error}") from error
        resized = any(c.num_labels != config.num_labels for c in (config.teacher_config, config.student_config))
        if resized and not ignore_mismatched_sizes:
            raise ValueError(
                f"num_labels={config.num_labels}, but the heads have {config.teacher_config.num_labels} labels: give "
                "ignore_mismatched_sizes=True and keep_all=True to reset both"
            )
        target = manifest.schedule.mask(stage)
        config.align_labels()
        if attn_implementation is not None:
            choose_attention(config, attn_implementation)
        # 3. The first files, checked while the modules are built.
        # Where everything is kept, low precision follows from the teacher.
        whole = (entry for entry in manifest.files if entry.tier_block is None)
        entries = tuple(whole) if keep_all else repository.files_for(manifest, target, kept)
        with Prefetch(lambda cancelled: repository.verify(entries, cancelled=cancelled)) as fetched:
            try:
                model = cls(config, vacant=True)
            except (ArithmeticError, AttributeError, InputError, LookupError, RuntimeError, TypeError) as error:
                raise RepositoryError(
                    f"{repository}: no network can be built from config.json: {type(error).__name__}: {error}"
                ) from error
            store = WeightStore(
                repository,
                manifest,
                model.parts.inventory,
                copies=disable_mmap,
                ignore_mismatched_heads=resized,
            )
            store.prepare([entry.path for entry in entries], fetched.result())
        floating = dtype_of(dtype if dtype is not None else torch_dtype, store.dtype)
        for part in (config, config.teacher_config, config.student_config):
            part.dtype = floating
        # 4. The first parts, and what was asked for besides.
        model.eval()
        model._schedule = manifest.schedule
        model.parts.store, model.parts.keep, model.parts.keeps_all = store, kept, keep_all
        model.parts.tier = manifest.tier
        model._swapper.move(target, device, floating)
        if adapter is not None:
            model.load_adapter(os.fspath(adapter), adapter_name, adapter_kwargs={**options, **adapter_kwargs})
        if stream:
            model.stream_stages()
        if not output_loading_info:
            return model
        return model, {
            "missing_keys": set(),
            "unexpected_keys": set(),
            "mismatched_keys": store.mismatched,
            "error_msgs": [],
        }

    @classmethod
    def from_teacher_student(
        cls,
        teacher: PreTrainedModel | str | os.PathLike[str],
        student: PreTrainedModel | str | os.PathLike[str],
        *,
        num_blocks: int | None = None,
        num_stages: int | None = None,
        teacher_cuts: list[int] | None = None,
        student_cuts: list[int] | None = None,
        share_embedder: bool = False,
        dtype: torch.dtype | str | None = None,
        allow_new_head: bool = False,
        problem_type: str | None = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Join two networks; converters are freshly initialised (see `fit_converters`).

        Args:
            teacher: A model (used, not copied), a folder or a Hub id.
            student: The same.
            num_blocks: The number of blocks N; 4, or as many as the cuts, by default.
            num_stages: The same: with blocks from first to last there is a stage for each.
            teacher_cuts: See `PWLConfig`.
            student_cuts: See `PWLConfig`.
            share_embedder: Let the student have the teacher's embedder, frozen, in place of its own; it is stored and
                sent once, and in memory once. Needs networks of one `model_type`, width and settings.
            dtype: The dtype of everything; needed if the two networks' dtypes differ. None or `"auto"`: their own.
            allow_new_head: Draw a head at random, to be trained, where a checkpoint has none or one of another shape;
                `teacher_allow_new_head` and `student_allow_new_head` are for one network.
            problem_type: As in transformers' configs: what scores are made with. The teacher's by default; needed if
                the student's is another.
            processing_class: The tokenizer, feature extractor or image processor to save with the model; the teacher's
                own by default, if it is loaded from a folder or the Hub.
            kwargs: `teacher_...` and `student_...` go to the networks' `from_pretrained`, all others to both.

        Raises:
            huggingface_hub.errors.StrictDataclassError: If the two cannot be joined, with the reason.
            RepositoryError: If a checkpoint lacks tensors of its network, which would be random, has some that would be
                lost, or holds NaN or infinity; with their names.
            TypeError: If `num_blocks` and `num_stages` are given.
            InputError: If the embedder is to be shared and cannot be, with the reason.
            ValueError: If their dtypes differ and `dtype` is not given; if the student's tokenizer, where both are
                known, makes other numbers of a text than the teacher's.
            RuntimeError: If it is called within `torch.device("meta")`.

        Example:

            >>> model = PWLForImageClassification.from_teacher_student(
            ...     "google/vit-base-patch16-224", "WinKawaks/vit-tiny-patch16-224", num_blocks=4
            ... )  # doctest: +SKIP
        """
        from .parts.construction import cast, check_common_dtype, hub_arguments, joined_config, load_network
        from .publishing.processing import load_processing, processing_files, refuse_other_tokens

        # 1. Both networks, each with its own arguments.
        of_role = {
            role: {k.removeprefix(f"{role}_"): v for k, v in kwargs.items() if k.startswith(f"{role}_")}
            for role in ("teacher", "student")
        }
        common = {k: v for k, v in kwargs.items() if not k.startswith(("teacher_", "student_"))}
        common["allow_new_head"] = allow_new_head
        if num_blocks is not None and num_stages is not None:
            raise TypeError("num_blocks and num_stages are one thing: give num_blocks")
        loaded_teacher = load_network("teacher", teacher, cls.task, **{**common, **of_role["teacher"]})
        loaded_student = load_network("student", student, cls.task, **{**common, **of_role["student"]})
        if loaded_student.device.type != "meta":
            device_of(None)  # Not the meta device, where converters would have no values.
        floating = None if dtype in (None, "auto") else dtype_of(dtype, torch.float32)
        check_common_dtype(loaded_teacher, loaded_student, floating)
        # 2. What makes their inputs must be one thing.
        hub = {role: hub_arguments({**common, **of_role[role]}) for role in of_role}
        if processing_class is None and isinstance(teacher, str | os.PathLike):
            processing_class = load_processing(os.fspath(teacher), cls.task, **hub["teacher"])
        if processing_class is not None and isinstance(student, str | os.PathLike):
            refuse_other_tokens(processing_class, load_processing(os.fspath(student), cls.task, **hub["student"]))
        # 3. Their blocks, and the model over the networks themselves.
        cuts = {"teacher_cuts": teacher_cuts, "student_cuts": student_cuts}
        num_blocks = num_stages if num_blocks is None else num_blocks
        if num_blocks is None:
            num_blocks = next((len(given) for given in cuts.values() if given is not None), 4)
        options = {
            "num_blocks": num_blocks,
            "problem_type": problem_type,
            "share_embedder": share_embedder,
            **cuts,
        }
        config = joined_config(loaded_teacher, loaded_student, cls.task, **options)
        model = cls(config, teacher=loaded_teacher, student=loaded_student)
        if floating is not None:
            cast(model, floating)
        # 4. What a save writes besides, and must not write over; converters go with the student.
        model.parts.processing = processing_files(processing_class) if processing_class is not None else {}
        model.parts.joined_from = tuple(
            os.path.abspath(os.path.join(network, of_role[role].get("subfolder") or common.get("subfolder") or ""))
            for role, network in (("teacher", teacher), ("student", student))
            if isinstance(network, str | os.PathLike) and os.path.isdir(network)
        )
        model.encoders.to(loaded_student.device, loaded_student.dtype)
        model.decoders.to(loaded_student.device, loaded_student.dtype)
        model.train(loaded_student.training)
        return model

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        token: str | bool | None = None,
        *,
        remote_code: str | None = None,
        overwrite: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save the whole repository, from any stage.

        Parts that are not resident are copied from where the model was loaded from, so the weight files
        are the same bytes at every stage. Each file is written beside its place and moved into it, the
        manifest last. After a cast to another dtype, every file is converted.

        Of a model with adapters (`add_adapter`, `load_adapter`) the active one alone is saved, as in transformers; load
        it with `from_pretrained` of that folder. It takes the place of an adapter that is there, and of nothing else.

        In a folder that holds a PWL repository, this one takes its place: weight files that the old manifest lists
        and the new one does not are removed, and nothing else is. In any other folder, nothing is removed, and a
        file that exists is written over only with `overwrite`. Two saves into one folder wait for each other.

        Args:
            save_directory: The folder; it is made if need be.
            is_main_process: Whether this process saves; others do nothing.
            state_dict: Tensors to save in place of the model's own, by full name.
            push_to_hub: Push as well (see `push_to_hub`).
            token: For the push.
            remote_code: `"standalone"` adds one file of code with which plain transformers opens the repository, given
                `trust_remote_code=True`; `"none"` leaves it out. By default none, or as the model was loaded.
            overwrite: Write over files of the folder that are not a PWL repository's; with `push_to_hub`, of the
                Hub's as well. The folders of a teacher and a student that were joined are never written over.
            kwargs: For the push; `max_shard_size` and `save_original_format` change nothing: shards are stages.

        Raises:
            ValueError: For `variant`, which a PWL repository cannot have; for a `remote_code` that cannot be.
            OverwriteError: If files would be written over that are not the repository's own; nothing was written.
            RepositoryError: If a file to be copied is not what the manifest says, or is a link out of its folder.
            SaveError: If the model holds what its config does not describe, such as an adapter of `get_peft_model`; if
                a file cannot be written, or another save changes the folder meanwhile.
        """
        from .parts.adapters import check_adapter_folder, check_base_is_saved
        from .publishing.saving import save_repository

        # As the state dict of a compiled model has them, which transformers' Trainer gives here.
        state_dict = {name.removeprefix("_orig_mod."): tensor for name, tensor in (state_dict or {}).items()} or None
        # Of a model with an adapter transformers saves the adapter, otherwise the whole repository is saved.
        if self._hf_peft_config_loaded:
            if kwargs.pop("variant", None):
                raise ValueError("variant does not apply to an adapter: it has one set of weights")
            check_base_is_saved(self, self.parts)
            if not overwrite:
                check_adapter_folder(save_directory)
            own = {name: kwargs.pop(name) for name in ("max_shard_size", "save_peft_format") if name in kwargs}
            super().save_pretrained(save_directory, is_main_process, state_dict, **own)
        else:
            if kwargs.pop("variant", None):
                raise ValueError("variant does not apply to a PWL model: a PWL repository has one set of weights")
            for name in ("max_shard_size", "save_original_format", "safe_serialization", "save_peft_format"):
                kwargs.pop(name, None)
            if is_main_process:
                with self.parts.lock:
                    save_repository(
                        self.parts,
                        self._schedule,
                        save_directory,
                        state_dict,
                        remote_code=remote_code,
                        overwrite=overwrite,
                    )
                    if self.parts.tier is None:
                        self._schedule = self._schedule.without_tier()
        if push_to_hub and is_main_process:
            kwargs |= {"overwrite": True} if overwrite else {}
            kwargs |= {"remote_code": remote_code} if remote_code is not None else {}
            name = os.path.basename(os.path.abspath(save_directory))
            self.push_to_hub(kwargs.pop("repo_id", name), token=token, **kwargs)

    def export(
        self,
        save_directory: str | os.PathLike[str],
        *,
        image_size: int | None = None,
        remote_code: str | None = None,
        overwrite: bool = False,
    ) -> Mapping[int, float]:
        """Save the repository with ONNX graphs of every stage, for runtimes without torch; needs the extra `onnx`.

        The graphs hold no weights: they name ranges of the repository's own safetensors files. They are compared with
        torch before they are written. `push_to_hub` and `pwl-hf push` send them with the rest; a save of other weights
        drops them.

        Args:
            save_directory: The folder; as in `save_pretrained`.
            image_size: The height and width of the images, in pixels; by default what the config or the image processor
                says.
            remote_code: As in `save_pretrained`.
            overwrite: As in `save_pretrained`.

        Returns:
            For each stage the largest difference of its logits from torch's, in parts of their range.

        Raises:
            SaveError: If the model has an adapter, or takes no images, texts or sounds; nothing was saved. If a layer
                cannot be exported, or its graph differs from torch: the repository is then saved without new graphs.
            ValueError: If the size of the images is told nowhere, or does not fit the networks; likewise.
            ImportError: If the extra is not installed.

        Example:

            >>> model.export("pwl-vit")  # doctest: +SKIP
            {0: 1.4e-07, 1: 1.2e-07, 2: 1.5e-07}
        """
        from .lazy import missing_extra

        try:
            from .exporting.examples import check_exported
            from .exporting.exporting import export_onnx
        except ModuleNotFoundError as error:
            raise ImportError(f"export {missing_extra(error, 'onnx') or error}", name=error.name) from error
        from .publishing.saving import write_attachments

        check_exported(self.config)
        if self._hf_peft_config_loaded:
            raise SaveError("a model with an adapter is not exported: merge it first (merge_and_unload), and save that")
        self.save_pretrained(save_directory, remote_code=remote_code, overwrite=overwrite)
        saved = type(self).from_pretrained(save_directory, keep_all=True, dtype=torch.float32, device_map="cpu")
        exported = export_onnx(saved.parts, saved.main_input_name, image_size=image_size)
        write_attachments(save_directory, exported.files, exported.manifest)
        return exported.differences

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
        # An adapter alone, as transformers pushes it.
        if self._hf_peft_config_loaded:
            from .parts.adapters import check_adapter_push

            if card_data or inference_handler:
                name = "card_data" if card_data else "inference_handler"
                raise ValueError(f"{name} does not apply to an adapter, which alone would be pushed: leave it out")
            may_replace = overwrite or create_pr
            check_adapter_push(self, self.parts, repo_id, revision=revision, token=token, overwrite=may_replace)
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
        # The repository, whole.
        from .publishing.push import Target, push_model

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
        return push_model(self.parts, self._schedule, target)

    # --- Converters and statistics from data --------------------------------------------------------------------

    def shared_paths(self, inputs: Batch) -> SharedPaths:
        """Paths of several masks over the same inputs, each run when asked for, common blocks once.

        Args:
            inputs: What `forward` would be called with, by name, or a tensor: the main input.

        Returns:
            A callable: `paths("TTSS")` gives the `logits` and `hidden_states` of that mask.

        Example:

            >>> paths = model.shared_paths(pixel_values)  # doctest: +SKIP
            >>> {mask: paths(mask).logits for mask in ("TTTT", "TSSS", "STTS")}  # doctest: +SKIP
        """
        return SharedPaths(
            self._router.of,
            by_name(inputs, self.main_input_name),
            self.num_blocks,
            batch_statistics=self.training,
            # In training the student's own pass alone updates its running statistics.
            leader="S" * self.num_blocks if self.training else None,
        )

    @exclusive
    @torch.no_grad()
    def fit_converters(self, inputs: Batches, ridge: float = 1e-4) -> None:
        """Fit every converter in closed form to the features of samples.

        For two **trained** networks; some hundred images do (SN-Net, arXiv 2302.06586). For an untrained
        student it is harmful: its features say nothing yet. What an `attention_mask` leaves out does not count.

        Args:
            inputs: A batch, or an iterable of batches. A batch is what `forward` would be called with, by name, or a
                tensor: the main input, such as pixel values (B, C, H, W).
            ridge: The relative weight of the penalty (see `LeastSquares`).

        Raises:
            StageError: If not everything is resident.
            ValueError: If there are no samples; if inputs, features or what is fitted to them are not finite. The
                converters stay as they were.
        """
        from .parts.fitting import fit_converters

        fit_converters(self._router, batches_of(inputs, self.main_input_name), ridge)

    @exclusive
    @torch.no_grad()
    def estimate_statistics(self, inputs: Batches, sources: str | Iterable[str] | None = None) -> None:
        """Re-estimate the BatchNorm statistics of a mask, or of several, from samples.

        A block behind a converter sees other features than the ones its running statistics were gathered
        from. The mask gets statistics of its own, saved and loaded with it; parameters and the networks'
        own statistics stay as they are, and so do forward passes under way.

        Of several masks, blocks that they begin with are run once: all of them together take fewer than
        2^(N+1) blocks a batch, whose outputs are kept until the batch is done.

        Args:
            inputs: Training samples, as in `fit_converters`.
            sources: The mask, or masks; the current one by default.

        Raises:
            ValueError: If a mask takes all blocks from one network, whose own statistics are right; if
                there are no samples.
            StageError: If a mask needs what is not resident.
        """
        from .parts.fitting import estimate_statistics

        masks = [self._router.sources]
        if sources is not None:
            named = [sources] if isinstance(sources, str) else sources
            masks = [Sources.of(mask, self.num_blocks) for mask in named]
        estimate_statistics(self._router, batches_of(inputs, self.main_input_name), masks)

    @exclusive
    def discard_statistics(self, sources: str | None = None) -> None:
        """Let a mask go by the networks' own BatchNorm statistics again.

        It is saved without statistics of its own, and a later change of stage does not bring back those of the
        repository.

        Args:
            sources: The mask; the current one by default. Nothing changes if it has none of its own.

        Raises:
            ValueError: If there is no such mask.
        """
        mask = self._router.sources if sources is None else Sources.of(sources, self.num_blocks)
        parts = self.parts
        mask = mask.exact
        parts.discarded |= {mask.mask}
        if mask.mask in parts.statistics:
            parts.statistics = {other: found for other, found in parts.statistics.items() if other != mask.mask}
            self._router.reset()
