"""Saved repositories, seen and edited as files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pwl_hf import PWLForImageClassification
from tests.children import python
from tests.hub import HubServer, Request
from tests.tiny import tiny_images

INDEX = "pwl_index.json"
STUDENT = "model.safetensors"

# Run first in a process that must do without our package: it is installed, but cannot be imported.
WITHOUT_PACKAGE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pwl_hf", "modeling", "training"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def shard(block: int, num_stages: int = 4) -> str:
    return f"teacher/model-{block:05d}-of-{num_stages:05d}.safetensors"


def encoder(boundary: int) -> str:
    return f"converters/encoder-{boundary:05d}.safetensors"


def decoder(boundary: int) -> str:
    return f"converters/decoder-{boundary:05d}.safetensors"


def statistics(mask: str) -> str:
    return f"statistics/{mask}.safetensors"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its content."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the remote code, which is that of whoever saves."""
    return {path: content for path, content in tree(folder).items() if not path.endswith(".py")}


def weights(folder: Path) -> dict[str, str]:
    """The hashes of the weight files and the manifest."""
    kept = {path: content for path, content in tree(folder).items() if path.endswith(".safetensors") or path == INDEX}
    return {path: hashlib.sha256(content).hexdigest() for path, content in kept.items()}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file in place; what `change` returns, if anything, takes its place."""
    data = read_json(path)
    changed = change(data)
    path.write_text(json.dumps(data if changed is None else changed))


def fingerprint_of(index: dict) -> str:
    """sha256 over the sorted paths and hashes of the weight files; a tier follows from them."""
    entries = [e for stage in index["stages"] for e in stage["files"]] + index.get("other_files", [])
    entries = [e for e in entries if not e["path"].startswith(("quantised/", "refinements/"))]
    lines = sorted(f"{e['path']} {e['sha256']}\n" for e in entries)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def refresh(folder: Path) -> None:
    """Let manifest and config say what the files are now, so that only their content is wrong."""
    index = read_json(folder / INDEX)
    for entry in [e for stage in index["stages"] for e in stage["files"]] + index["other_files"]:
        content = (folder / entry["path"]).read_bytes()
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    index["fingerprint"] = fingerprint_of(index)
    (folder / INDEX).write_text(json.dumps(index))
    edit_json(folder / "config.json", lambda config: config.update(fingerprint=index["fingerprint"]))


def edit_tensors(folder: Path, path: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a weight file, and the manifest with it."""
    tensors = load_file(folder / path)
    change(tensors)
    save_file(tensors, folder / path, metadata={"format": "pt"})
    refresh(folder)


def edit_bytes(folder: Path, path: str, change: Callable[[bytes], bytes], *, honest: bool = True) -> None:
    """Change the bytes of a weight file, and the manifest with it if `honest`."""
    (folder / path).write_bytes(change((folder / path).read_bytes()))
    if honest:
        refresh(folder)


def load(source: str | os.PathLike, **kwargs: Any) -> PWLForImageClassification:
    return PWLForImageClassification.from_pretrained(source, **kwargs)


@torch.no_grad()
def logits(model: Any, n: int = 2) -> torch.Tensor:
    config = model.config
    images = tiny_images(getattr(config, "teacher_config", config).model_type, n)
    return model(images.to(model.device, model.dtype)).logits


def publish(hub: HubServer, repo_id: str, folder: Path, subfolder: str = "", **options: Any) -> str:
    """Put a folder into a repository of the Hub, made if need be, without HTTP; returns the commit."""
    if repo_id not in hub.store.repositories():
        hub.store.create_repo(repo_id)
    prefix = f"{subfolder}/" if subfolder else ""
    return hub.store.commit(repo_id, {prefix + path: content for path, content in tree(folder).items()}, **options)


def bodies(requests: Iterable[Request]) -> list[str]:
    """The files whose content was sent, in order."""
    return [r.file for r in requests if r.file and r.method == "GET" and r.status in (200, 206)]


def lookups(requests: Iterable[Request]) -> list[str]:
    """Requests that are about no file."""
    return [f"{r.method} {r.path}" for r in requests if not r.file]


def run_python(
    code: str,
    env: dict[str, str],
    cwd: Path,
    *,
    without_package: bool = False,
    stdin: str | None = None,
    timeout: float = 300,
) -> str:
    """Run code in a new process, for so many seconds at most, and return what it printed."""
    code = (WITHOUT_PACKAGE if without_package else "") + code
    done = python(code, env, cwd, stdin=stdin, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
