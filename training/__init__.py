"""How PWL models are made. Import it as `pwl_hf.training`; run `accelerate launch training/train.py`."""

from __future__ import annotations

if __name__ != "pwl_hf.training":
    raise ImportError(
        f"this package was imported as {__name__!r}, which would make a second copy of its classes; "
        "import it as `pwl_hf.training`"
    )
