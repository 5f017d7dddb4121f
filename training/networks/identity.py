"""Converters that begin as, or are fixed to, the identity: networks of equal widths may speak one language."""

from __future__ import annotations

import torch

from pwl_hf.modeling import Converter, PWLPreTrainedModel


@torch.no_grad()
def set_identity(model: PWLPreTrainedModel, option: str) -> None:
    """Set every converter to the identity, in place.

    With a student that begins as the teacher's own layers this is where training should begin: a mask then is the
    teacher with some layers left out.

    Args:
        model: A PWL model with everything resident, of equal widths at every boundary.
        option: What asked for it, for the error.

    Raises:
        ValueError: If the widths differ somewhere; nothing is changed then.
    """
    converters = [
        (boundary, converter)
        for converters in (model.encoders, model.decoders)
        for boundary, converter in converters.items()
        if isinstance(converter, Converter)
    ]
    for boundary, converter in converters:
        rows, columns = converter.weight.shape
        if rows != columns:
            raise ValueError(
                f"{option} needs networks of equal widths: at boundary {boundary} they are {columns} and {rows}"
            )
    for _, converter in converters:
        converter.weight.copy_(torch.eye(len(converter.weight)))
        converter.bias.zero_()
