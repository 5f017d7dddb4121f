"""Endpoints that a pull goes through: history, tree, files."""

import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote

from .commits import Commit, FileEntry, lfs_pointer
from .errors import HubError, entry_not_found
from .repository import Repository
from .routing import Call, Reply, Router

router = Router()


@router.route("GET", "/api/{kind}/{repo}/commits/{rev}")
def list_commits(call: Call) -> Reply:
    """The history of a revision, newest first, on one page."""
    answer = []
    for commit in call.repo().history(call.revision):
        item: dict[str, Any] = {"id": commit.oid, "title": commit.title, "message": commit.description}
        item |= {"date": commit.date, "authors": [{"user": commit.author}]}
        if "expand[]" in call.query:
            item["formatted"] = {"title": commit.title, "message": commit.description}
        answer.append(item)
    return Reply.json(answer)


@router.route("GET", "/api/{kind}/{repo}/tree/{rev}")
@router.route("GET", "/api/{kind}/{repo}/tree/{rev}/{path}")
def tree(call: Call) -> Reply:
    """Files and folders below a path, on one page."""
    repo = call.repo()
    commit = repo.resolve(call.revision)
    path = call.params.get("path", "").rstrip("/")
    folders = _folders(commit)
    if path and path not in folders:
        raise entry_not_found(f"{path} does not exist on {call.revision!r}", commit.oid)
    found = [
        candidate
        for candidate in sorted({*folders, *commit.files})
        if path in _parents(candidate)[: None if call.flag("recursive") else 1]
    ]
    return Reply.json([_describe(repo, commit, item, call.flag("expand")) for item in found])


@router.route("POST", "/api/{kind}/{repo}/paths-info/{rev}")
def paths_info(call: Call) -> Reply:
    """The files and folders of a list that exist. The client sends it as a form.

    LFS files carry an Xet hash here, without which the client refuses to copy them to another repository.
    The headers of a file have one only if it came through Xet, so that all others are downloaded without.
    """
    repo = call.repo()
    commit = repo.resolve(call.revision)
    form = "json" not in call.headers.get("Content-Type", "")
    data = parse_qs(call.body().decode()) if form else call.json()
    expand = data.get("expand") in (True, ["true"], ["True"])
    answer = []
    for path in data.get("paths", []):
        if path in commit.files or path in _folders(commit):
            item = _describe(repo, commit, path, expand)
            answer.append({**item, "xetHash": item["lfs"]["oid"]} if "lfs" in item else item)
    return Reply.json(answer)


@router.route("GET", "/{prefix}{repo}/resolve/{rev}/{path}")
def resolve(call: Call) -> Reply:
    """A file, or the part of it that the Range header asks for."""
    repo = call.repo(files=True)
    commit = repo.resolve(call.revision)
    entry = commit.files.get(call.params["path"])
    if entry is None:
        raise entry_not_found("Entry not found", commit.oid)
    headers = {
        "X-Repo-Commit": commit.oid,
        "ETag": f'"{entry.sha256 if entry.lfs else entry.oid}"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream" if entry.lfs else "text/plain; charset=utf-8",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(PurePosixPath(entry.path).name)}",
    }
    if entry.lfs:
        headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
    path = call.store.blobs.path(entry.sha256)
    if entry.lfs and (xet_hash := call.store.xet.hash_of(entry.sha256)):
        refresh = f"{call.url}/api/{repo.repo_type}s/{repo.repo_id}/xet-read-token/{commit.oid}"
        headers |= {"X-Xet-Hash": xet_hash, "X-Xet-Refresh-Route": refresh}
        if not path.exists():
            # It is nowhere but in the client's storage.
            return Reply(200, headers)
    span = _span(call.headers.get("Range"), entry.size)
    if span is None:
        return Reply(200, headers, path)
    headers["Content-Range"] = f"bytes {span[0]}-{span[1] - 1}/{entry.size}"
    return Reply(206, headers, path, *span)


def _span(header: str | None, size: int) -> tuple[int, int] | None:
    """Start and stop of ``bytes=1-5``, ``bytes=1-`` or ``bytes=-5``; None for the whole file."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return max(size - int(match[2]), 0), size
    start, stop = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
    if start >= stop:
        raise HubError(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return start, stop


def _parents(path: str) -> list[str]:
    """The folders a path lies in, the nearest first; the root is ""."""
    return ["" if str(parent) == "." else str(parent) for parent in PurePosixPath(path).parents]


def _folders(commit: Commit) -> set[str]:
    return {parent for path in commit.files for parent in _parents(path) if parent}


def _describe(repo: Repository, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    """A file or folder, as the tree lists it."""
    entry = commit.files.get(path)
    if entry is None:
        item: dict[str, Any] = {
            "type": "directory",
            "path": path,
            "size": 0,
            "oid": _folder_oid(commit, path),
        }
    else:
        item = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
        if entry.lfs:
            pointer_size = len(lfs_pointer(entry.sha256, entry.size))
            item["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": pointer_size}
    if expand:
        last = _last_change(repo, commit, path)
        item["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
    return item


def _inside(commit: Commit, path: str) -> list[FileEntry]:
    return [entry for name, entry in commit.files.items() if name == path or name.startswith(path + "/")]


def _folder_oid(commit: Commit, path: str) -> str:
    content = json.dumps([(entry.path, entry.oid) for entry in _inside(commit, path)])
    return hashlib.sha1(content.encode()).hexdigest()


def _last_change(repo: Repository, commit: Commit, path: str) -> Commit:
    """The commit that made a file or folder what it is at ``commit``."""
    while commit.parent is not None and _inside(repo.commits[commit.parent], path) == _inside(commit, path):
        commit = repo.commits[commit.parent]
    return commit
