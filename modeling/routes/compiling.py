"""torch.compile for blocks that come and go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Compiling:
    """How the units of a model are compiled: the arguments that `model.compile` was given."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def apply(self, module: nn.Module) -> None:
        """Compile a module, in place; torch does so when it is first called."""
        module.compile(*self.args, **self.kwargs)
