"""Bringing a block into memory before it is needed."""

from __future__ import annotations

import mmap
from itertools import chain

import torch
from torch import nn


def touch_pages(module: nn.Module) -> None:
    """Read one byte of each memory page under a module's tensors; tensors on other devices have none here.

    Weights in their stored dtype are pages of a mapped file, which come in when they are first read.
    """
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.device.type == "cpu" and tensor.numel() > 0 and tensor.is_contiguous():
            pages = tensor.detach().reshape(-1).view(torch.uint8)[:: mmap.PAGESIZE]
            pages.sum()
