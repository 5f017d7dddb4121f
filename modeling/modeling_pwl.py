"""PWLForImageClassification: a model that answers as its student and grows into its teacher.

Notation: N blocks; stage k takes blocks 1..k from the teacher. B images of C channels, H x W pixels.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from .adapters import open_model
from .background import Prefetch
from .configuration_pwl import PWLConfig
from .converters import LeastSquares, channel_rows
from .errors import RepositoryError, StageError
from .finite import Images, finite_batches, first_not_finite
from .loading import check_arguments, device_of, dtype_of, read_repository, refuse_attentions, sources_of
from .locking import exclusive
from .retrying import RetryPolicy
from .route import statistics_at_rest
from .shared_paths import SharedPaths
from .sources import Role, Sources
from .staged_model import PWLPreTrainedModel
from .transformers_internals import choose_attention
from .warming import Seen
from .weights import WeightStore


class PWLForImageClassification(PWLPreTrainedModel):
    """An image classifier that answers as its student and grows into its teacher, block by block.

    Loaded with `from_pretrained`, only the current route is in memory: a change of stage fetches what it
    needs and releases the rest. Built from a config or from two networks, both are in memory.

    The teacher is frozen: it is always in eval mode, and its parameters do not require gradients.

    Args:
        config: The configuration.
        teacher: The teacher, if it exists already; of `config.teacher_config`.
        student: The student, if it exists already; of `config.student_config`.
        vacant: Build it with nothing in it, to be filled from a repository.

    Example:

        >>> import torch
        >>> from transformers import ViTConfig
        >>> from pwl_hf import PWLConfig, PWLForImageClassification
        >>> size = dict(image_size=8, patch_size=4, num_attention_heads=2)
        >>> model = PWLForImageClassification(PWLConfig(
        ...     teacher_config=ViTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=4, **size),
        ...     student_config=ViTConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, **size),
        ...     num_stages=2,
        ... )).eval()
        >>> model.stage, model.sources
        (0, 'SS')
        >>> model.load_next_stage(), model.sources
        (1, 'TS')
        >>> model(torch.zeros(1, 3, 8, 8)).logits.shape
        torch.Size([1, 2])
    """

    # The folders of the networks that it was joined from, which it is never saved into.
    _joined_from: tuple[str, ...] = ()

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        sources: str | None = None,
    ) -> ImageClassifierOutput | tuple[torch.Tensor | tuple[torch.Tensor, ...], ...]:
        """Classify images along the current route.

        Args:
            pixel_values: (B, C, H, W), floating.
            labels: For a loss, which is transformers' own for the config's `problem_type`: (B,) class numbers, int64;
                of several labels or a regression (B, num_labels), floating.
            interpolate_pos_encoding: Interpolate position embeddings to the images' size, where the family
                has that (ViT, DeiT, Swin).
            output_hidden_states: Also return the output of each block.
            return_dict: Return a `ModelOutput` rather than a tuple; the config's choice by default.
            sources: Take the path of this mask, once; all it needs must be resident.

        Returns:
            `loss` (scalar, with labels), `logits` (B, num_labels) and, if asked for, `hidden_states`: N
            tensors, the output of each block in that block's own width.

        Raises:
            StageError: If `sources` needs what is not resident.
            ValueError: If `sources` is malformed, or the family cannot interpolate.
        """
        refuse_attentions(self.config)
        route = self._current_route() if sources is None else self._route_for(sources)
        if interpolate_pos_encoding and not self._blueprints["teacher"].family.interpolates:
            raise ValueError(
                f"interpolate_pos_encoding=True does not apply to model_type "
                f"{self.config.teacher_config.model_type!r}; leave it out"
            )
        logits, outputs = route(pixel_values, interpolate_pos_encoding)
        if not torch.compiler.is_compiling():
            # After the pass: what failed here would fail in the warm-up too.
            self._seen = Seen.of(route.sources, pixel_values, interpolate_pos_encoding, outputs)
        # A copy: without a problem type, transformers' loss enters one, and later answers would go by it.
        loss = None if labels is None else self.loss_function(labels, logits, copy.copy(self.config))
        wants_hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states = tuple(features.tensor for features in outputs) if wants_hidden else None
        output = ImageClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def shared_paths(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool | None = None) -> SharedPaths:
        """Paths of several masks over the same images, each run when asked for, common blocks once.

        Args:
            pixel_values: (B, C, H, W), floating.
            interpolate_pos_encoding: As in `forward`.

        Returns:
            A callable: `paths("TTSS")` gives the `logits` and `hidden_states` of that mask.

        Example:

            >>> paths = model.shared_paths(pixel_values)  # doctest: +SKIP
            >>> {mask: paths(mask).logits for mask in ("TTTT", "TSSS", "STTS")}  # doctest: +SKIP
        """
        return SharedPaths(
            self._route_for,
            pixel_values,
            self.num_stages,
            batch_statistics=self.training,
            # In training the student's own pass alone updates its running statistics.
            leader="S" * self.num_stages if self.training else None,
            interpolate_pos_encoding=interpolate_pos_encoding,
        )

    # --- Loading, joining, saving -------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        stage: int | str = 0,
        keep_all: bool = False,
        stream: bool = False,
        config: PWLConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        attn_implementation: str | dict[str, Any] | None = None,
        ignore_mismatched_sizes: bool = False,
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

        Stage 0 reads three small files: the config, the manifest and the student. Every later file comes
        from the same commit, also when the branch has moved since.

        Args:
            pretrained_model_name_or_path: A folder or a Hub id.
            stage: 0 (the student) to N, or `"teacher"` for N.
            keep_all: Keep both networks and all converters in memory, for training and for `sources=`.
            stream: Start loading the later stages in the background at once (see `stream_stages`).
            config: A config to use in place of the repository's.
            dtype: The floating dtype; the stored one by default or with `"auto"`.
            torch_dtype: The older name of `dtype`.
            device_map: One device, in any of transformers' ways.
            attn_implementation: As in transformers; later stages follow it.
            ignore_mismatched_sizes: With another `num_labels`, reset both heads; needs `keep_all`.
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
        adapter_kwargs = dict(adapter_kwargs or {})
        adapter = adapter_kwargs.pop("_adapter_model_path", None)  # of an Auto class, which has looked for one
        overrides = check_arguments(kwargs)
        device = device_of(device_map)
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
        read = partial(read_repository, config_class=cls.config_class, overrides=overrides, config=config)
        repository, (manifest, config), adapter = open_model(pretrained_model_name_or_path, adapter, read, **options)
        if adapter is not None and stream:
            raise ValueError("stream=True does not go with an adapter: the blocks that it is on would be released")
        resized = any(c.num_labels != config.num_labels for c in (config.teacher_config, config.student_config))
        if resized and not ignore_mismatched_sizes:
            raise ValueError(
                f"num_labels={config.num_labels}, but the heads have {config.teacher_config.num_labels} labels: give "
                "ignore_mismatched_sizes=True and keep_all=True to reset both"
            )
        target = sources_of(stage, config.num_stages)
        config.align_labels()
        if attn_implementation is not None:
            choose_attention(config, attn_implementation)
        entries = manifest.files if keep_all else manifest.files_for(target)
        # Waiting for the network and hashing leave the interpreter free: the modules are built meanwhile.
        with Prefetch(lambda cancelled: repository.verify(entries, cancelled=cancelled)) as fetched:
            try:
                model = cls(config, vacant=True)
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
                raise RepositoryError(
                    f"{repository}: no network can be built from config.json: {type(error).__name__}: {error}"
                ) from error
            store = WeightStore(repository, manifest, model._blueprints, ignore_mismatched_heads=resized)
            store.prepare([entry.path for entry in entries], fetched.result())
        floating = dtype_of(dtype if dtype is not None else torch_dtype, store.dtype)
        for part in (config, config.teacher_config, config.student_config):
            part.dtype = floating
        model.eval()
        model._store, model._keep_all = store, keep_all
        model._bring(target, model._all_pieces() if keep_all else target.pieces, device, floating)
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
        num_stages: int | None = None,
        teacher_cuts: list[int] | None = None,
        student_cuts: list[int] | None = None,
        dtype: torch.dtype | str | None = None,
        allow_new_head: bool = False,
        problem_type: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Join two networks; converters are freshly initialised (see `fit_converters`).

        Args:
            teacher: A model (used, not copied), a folder or a Hub id.
            student: The same.
            num_stages: The number of blocks N; 4, or as many as the cuts, by default.
            teacher_cuts: See `PWLConfig`.
            student_cuts: See `PWLConfig`.
            dtype: The dtype of everything; needed if the two networks' dtypes differ. None or `"auto"`: their own.
            allow_new_head: Draw a head at random, to be trained, where a checkpoint has none or one of another shape;
                `teacher_allow_new_head` and `student_allow_new_head` are for one network.
            problem_type: As in transformers' configs: what scores are made with. The teacher's by default; needed if
                the student's is another.
            kwargs: `teacher_...` and `student_...` go to the networks' `from_pretrained`, all others to both.

        Raises:
            huggingface_hub.errors.StrictDataclassError: If the two cannot be joined, with the reason.
            RepositoryError: If a checkpoint lacks tensors of its network, which would be random, has some that would be
                lost, or holds NaN or infinity; with their names.
            ValueError: If their dtypes differ and `dtype` is not given.
            RuntimeError: If it is called within `torch.device("meta")`.

        Example:

            >>> model = PWLForImageClassification.from_teacher_student(
            ...     "google/vit-base-patch16-224", "WinKawaks/vit-tiny-patch16-224", num_stages=4
            ... )  # doctest: +SKIP
        """
        from .construction import check_common_dtype, joined_config, load_network

        of_role = {
            role: {k.removeprefix(f"{role}_"): v for k, v in kwargs.items() if k.startswith(f"{role}_")}
            for role in ("teacher", "student")
        }
        common = {k: v for k, v in kwargs.items() if not k.startswith(("teacher_", "student_"))}
        common["allow_new_head"] = allow_new_head
        loaded_teacher = load_network("teacher", teacher, **{**common, **of_role["teacher"]})
        loaded_student = load_network("student", student, **{**common, **of_role["student"]})
        if loaded_student.device.type != "meta":
            device_of(None)  # Not the meta device, where converters would have no values.
        floating = None if dtype in (None, "auto") else dtype_of(dtype, torch.float32)
        check_common_dtype(loaded_teacher, loaded_student, floating)
        cuts = {"teacher_cuts": teacher_cuts, "student_cuts": student_cuts}
        if num_stages is None:
            num_stages = next((len(given) for given in cuts.values() if given is not None), 4)
        config = joined_config(loaded_teacher, loaded_student, num_stages=num_stages, problem_type=problem_type, **cuts)
        model = cls(config, teacher=loaded_teacher, student=loaded_student)
        if floating is not None:
            model.to(dtype=floating)  # type: ignore[call-arg]
        model._joined_from = tuple(
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

        Pieces that are not resident are copied from where the model was loaded from, so the weight files
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
        from .adapters import check_adapter_folder, check_base_is_saved
        from .saving import save_repository

        # As the state dict of a compiled model has them, which transformers' Trainer gives here.
        state_dict = {name.removeprefix("_orig_mod."): tensor for name, tensor in (state_dict or {}).items()} or None
        if self._hf_peft_config_loaded:
            if kwargs.pop("variant", None):
                raise ValueError("variant does not apply to an adapter: it has one set of weights")
            check_base_is_saved(self)
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
                with self._lock:
                    save_repository(self, save_directory, state_dict, remote_code=remote_code, overwrite=overwrite)
        if push_to_hub and is_main_process:
            kwargs |= {"overwrite": True} if overwrite else {}
            kwargs |= {"remote_code": remote_code} if remote_code is not None else {}
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(save_directory)), token=token, **kwargs)

    # --- Converters and statistics from images ------------------------------------------------------------------

    @exclusive
    @torch.no_grad()
    def fit_converters(self, pixel_values: Images, ridge: float = 1e-4) -> None:
        """Fit every converter in closed form to the features of images.

        For two **trained** networks; some hundred images do (SN-Net, arXiv 2302.06586). For an untrained
        student it is harmful: its features say nothing yet.

        Args:
            pixel_values: (B, C, H, W), or an iterable of such batches.
            ridge: The relative weight of the penalty (see `LeastSquares`).

        Raises:
            StageError: If not everything is resident.
            ValueError: If there are no images; if images, features or what is fitted to them are not finite. The
                converters stay as they were.
        """
        names = {"teacher": "T" * self.num_stages, "student": "S" * self.num_stages}
        routes = {role: self._route_for(mask) for role, mask in names.items()}
        pieces = [p for p in sorted(self._all_pieces()) if p.kind in ("encoder", "decoder")]
        converters = {piece: self._converter(piece) for piece in pieces if self._is_resident(piece)}
        if len(converters) != len(pieces):
            raise StageError("fit_converters needs every converter: load the model with keep_all=True")
        shapes = {piece: converter.weight.shape for piece, converter in converters.items()}
        fits = {piece: LeastSquares(into, out, ridge, str(piece)) for piece, (out, into) in shapes.items()}
        was_training = self.training
        try:
            self.eval()
            routes = {role: self._route_for(mask) for role, mask in names.items()}
            for batch in finite_batches(pixel_values):
                outputs = {role: route(batch.to(self.device))[1] for role, route in routes.items()}
                for piece, fit in fits.items():
                    rows = {
                        role: channel_rows(found[piece.number - 1].tensor, converters[piece].channels_first)
                        for role, found in outputs.items()
                    }
                    ends = ("teacher", "student") if piece.kind == "encoder" else ("student", "teacher")
                    fit.add(rows[ends[0]], rows[ends[1]])
            solved = {piece: fit.solve(converters[piece].weight.dtype) for piece, fit in fits.items()}
        finally:
            self.train(was_training)
        for piece, (weight, bias) in solved.items():
            converters[piece].weight.copy_(weight)
            converters[piece].bias.copy_(bias)

    @exclusive
    @torch.no_grad()
    def estimate_statistics(self, pixel_values: Images, sources: str | Iterable[str] | None = None) -> None:
        """Re-estimate the BatchNorm statistics of a mask, or of several, from images.

        A block behind a converter sees other features than the ones its running statistics were gathered
        from. The mask gets statistics of its own, saved and loaded with it; parameters and the networks'
        own statistics stay as they are, and so do forward passes under way.

        Of several masks, blocks that they begin with are run once: all of them together take fewer than
        2^(N+1) blocks a batch, whose outputs are kept until the batch is done.

        Args:
            pixel_values: (B, C, H, W), or an iterable of such batches, of training images.
            sources: The mask, or masks; the current one by default.

        Raises:
            ValueError: If a mask takes all blocks from one network, whose own statistics are right; if
                there are no images.
            StageError: If a mask needs what is not resident.
        """
        masks = [self._current]
        if sources is not None:
            named = [sources] if isinstance(sources, str) else sources
            masks = [Sources.of(mask, self.num_stages) for mask in named]
        for mask in masks:
            if not mask.is_mixed:
                raise ValueError(f"sources {str(mask)!r} is one whole network, whose own statistics are right")
            self._check_resident(mask)
        networks: dict[Role, PreTrainedModel] = {"teacher": self.teacher, "student": self.student}
        found = statistics_at_rest(masks, self._blueprints, networks)
        masks = [mask for mask in masks if found[mask.mask]]
        if not masks:
            return
        was_training, seen = self.training, False
        try:
            self.eval()
            routes = {mask.mask: self._route_over(mask, found[mask.mask], estimate=True) for mask in masks}
            for batch in finite_batches(pixel_values):
                paths = SharedPaths(routes.__getitem__, batch.to(self.device), self.num_stages, batch_statistics=True)
                for name in routes:
                    paths(name)
                seen = True
        finally:
            self.train(was_training)
        if not seen:
            raise ValueError("estimate_statistics needs at least one image")
        for name in routes:
            if (key := first_not_finite(found[name].items())) is not None:
                raise ValueError(
                    f"the statistics of mask {name} would hold NaN or infinity in {key!r}: give more images (one pixel "
                    "has no variance), or look for weights that are not finite"
                )
        # Copies: in training a mask's passes update its own.
        own = {name: {key: tensor.clone() for key, tensor in found[name].items()} for name in routes}
        self._statistics = {**self._statistics, **own}
        self._reroute()

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
        mask = self._current if sources is None else Sources.of(sources, self.num_stages)
        self._discarded |= {mask.mask}
        if mask.mask in self._statistics:
            self._statistics = {other: found for other, found in self._statistics.items() if other != mask.mask}
            self._reroute()
