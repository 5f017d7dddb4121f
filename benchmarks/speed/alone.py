"""What holds in every process that measures."""

from __future__ import annotations

import torch
from transformers.utils import logging


def alone() -> None:
    """One thread, and no progress bars: a loader is measured, not how many cores there are, nor a terminal."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
