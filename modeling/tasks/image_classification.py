"""Image classification: images in, class labels out.

Notation: N blocks; B images of C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from transformers.modeling_outputs import ImageClassifierOutput

from ..families.base import PATCHES
from ..families.registry import family_of
from .classification import Answer, Classifier


class PWLForImageClassification(Classifier):
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
        ...     num_blocks=2,
        ... )).eval()
        >>> model.stage, model.sources
        (0, 'SS')
        >>> model.load_next_stage(), model.sources
        (1, 'TS')
        >>> model(torch.zeros(1, 3, 8, 8)).logits.shape
        torch.Size([1, 2])
    """

    task = "AutoModelForImageClassification"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    output_class = ImageClassifierOutput

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        sources: str | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
    ) -> ImageClassifierOutput | Answer:
        """Classify images along the current route.

        Args:
            pixel_values: (B, C, H, W), floating; for SigLIP 2 (B, patches, C x height x width of a patch).
            labels: For a loss, which is transformers' own for the config's `problem_type`: (B,) class numbers, int64;
                of several labels or a regression (B, num_labels), floating.
            interpolate_pos_encoding: Interpolate position embeddings to the images' size, where a network
                has that, as ViT and CLIP have it.
            output_hidden_states: Also return the output of each block.
            return_dict: Return a `ModelOutput` rather than a tuple; the config's choice by default.
            sources: Take the path of this mask, once; all it needs must be resident.
            pixel_attention_mask: (B, patches), 1 where a patch is of the image; for SigLIP 2.
            spatial_shapes: (B, 2), rows and columns of each image's patches; for SigLIP 2.

        Returns:
            `loss` (scalar, with labels), `logits` (B, num_labels) and, if asked for, `hidden_states`: N
            tensors, the output of each block in that block's own width.

        Raises:
            StageError: If `sources` needs what is not resident.
            ValueError: If `sources` is malformed; for an input that neither network takes.
        """
        families = [family_of(network) for network in (self.config.teacher_config, self.config.student_config)]
        if interpolate_pos_encoding and not any(family.interpolates for family in families):
            raise ValueError(
                f"interpolate_pos_encoding=True does not apply to model_type "
                f"{self.config.teacher_config.model_type!r}; leave it out"
            )
        inputs = {"pixel_values": pixel_values, "interpolate_pos_encoding": interpolate_pos_encoding}
        of_patches = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        for name, given in of_patches.items():
            if given is not None and families[0].takes != PATCHES:
                raise ValueError(
                    f"{name} does not apply to model_type {self.config.teacher_config.model_type!r}; leave it out"
                )
        if spatial_shapes is None and families[0].takes == PATCHES:
            raise ValueError(
                f"a {self.config.teacher_config.model_type} takes patches: give pixel_attention_mask and "
                "spatial_shapes too, as its image processor makes them"
            )
        inputs |= of_patches
        return self.classify(
            inputs, labels, output_hidden_states=output_hidden_states, return_dict=return_dict, sources=sources
        )
