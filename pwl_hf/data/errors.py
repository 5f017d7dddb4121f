"""What is said when data cannot be read as labelled samples."""

from __future__ import annotations

from pwl_hf.modeling.errors import InputError


class DataError(InputError):
    """Data that is not there, or not as asked for: names the source, what was found, and the option to give."""
