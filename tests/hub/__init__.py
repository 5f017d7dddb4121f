"""A small Hugging Face Hub on loopback: the real client pushes to it and pulls from it.

Standard library only, and nothing here imports ``huggingface_hub``, which reads its settings from the
environment at its first import, so the server has to be up before (see ``tests/conftest.py``).
"""

from .commits import Commit, FileEntry, Operations
from .errors import HubError
from .faults import Fault, Faults
from .log import Request
from .repository import Repository
from .server import HubServer
from .store import Store

__all__ = [
    "Commit",
    "Fault",
    "Faults",
    "FileEntry",
    "HubError",
    "HubServer",
    "Operations",
    "Repository",
    "Request",
    "Store",
]
