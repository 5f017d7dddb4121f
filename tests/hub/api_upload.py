"""Endpoints that a push goes through: preupload, LFS, commit."""

import base64
import json
import time
from typing import Any

from .commits import Delete, Edit, Put, describe, make_entry, needs_lfs
from .errors import HubError
from .repository import Repository
from .routing import Call, Reply, Router

router = Router()


@router.route("POST", "/api/{kind}/{repo}/preupload/{rev}")
def preupload(call: Call) -> Reply:
    """How each file is to be sent, and the oid of the one that is there now."""
    repo = _writable(call)
    present = repo.resolve(call.revision).files
    answer = []
    for file in call.json()["files"]:
        mode = "lfs" if needs_lfs(file["path"], file["size"]) else "regular"
        item: dict[str, Any] = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
        if entry := present.get(file["path"]):
            item["oid"] = entry.sha256 if entry.lfs else entry.oid
        answer.append(item)
    return Reply.json({"files": answer, "commitOid": repo.resolve(call.revision).oid})


@router.route("POST", "/{prefix}{repo}.git/info/lfs/objects/batch")
def lfs_batch(call: Call) -> Reply:
    """Where to send each object; one that the repository has needs no action."""
    call.login()
    repo = call.repo()
    answer = []
    for item in call.json()["objects"]:
        object_ = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in repo.lfs_objects:
            base = f"{call.url}/lfs/{repo.repo_type}s/{repo.repo_id}/{item['oid']}"
            signature = f"?key={call.access.upload_key}&size={item['size']}"
            object_["actions"] = {
                "upload": {"href": base + signature, "header": {}},
                "verify": {"href": f"{base}/verify", "header": {}},
            }
        answer.append(object_)
    return Reply.json({"transfer": "basic", "objects": answer})


@router.route("PUT", "/lfs/{kind}/{repo}/{oid}")
def lfs_put(call: Call) -> Reply:
    """Receive an object and check its sha256. No token here: the address is signed."""
    if call.query.get("key") != [call.access.upload_key]:
        raise HubError(403, "SignatureDoesNotMatch")
    repo = call.store.get(call.params["repo"], call.repo_type)
    sha256 = call.store.blobs.add(call.chunks, expected=call.params["oid"])
    call.store.add_lfs(repo, sha256)
    return Reply(headers={"ETag": f'"{sha256}"'})


@router.route("POST", "/lfs/{kind}/{repo}/{oid}/verify")
def lfs_verify(call: Call) -> Reply:
    """Confirm that an object has arrived in full."""
    data = call.json()
    path = call.store.blobs.path(call.params["oid"])
    if call.params["oid"] not in call.repo().lfs_objects or path.stat().st_size != data["size"]:
        raise HubError(404, "object not found, or of another size")
    return Reply.json({})


@router.route("POST", "/api/{kind}/{repo}/lfs-files/duplicate")
def lfs_duplicate(call: Call) -> Reply:
    """Let the target repository use LFS content of this one, as a copy across repositories asks for first."""
    source, data = call.repo(files=True), call.json()
    target = call.store.get(data["target"]["name"], data["target"]["type"], call.user)
    call.access.check_write(call.user, target.namespace)
    failed = []
    for file in data["files"]:
        if file["sha256"] in source.lfs_objects:
            call.store.add_lfs(target, file["sha256"])
        else:
            failed.append({"sha256": file["sha256"], "error": "not found"})
    return Reply.json({"failed": failed})


@router.route("GET", "/api/{kind}/{repo}/xet-{access}-token/{rev}")
def xet_token(call: Call) -> Reply:
    """Where Xet content goes to and comes from; the client asks for it unless HF_HUB_DISABLE_XET is set."""
    if call.params["access"] == "write":
        _writable(call)
    else:
        call.repo(files=True)
    expires = int(time.time()) + 3600
    address, token = call.store.xet.url, "xet"
    headers = {
        "X-Xet-Cas-Url": address,
        "X-Xet-Access-Token": token,
        "X-Xet-Token-Expiration": str(expires),
    }
    return Reply.json({"casUrl": address, "accessToken": token, "exp": expires}, headers=headers)


@router.route("POST", "/api/{kind}/{repo}/commit/{rev}")
def commit(call: Call) -> Reply:
    """Take a commit: a header, then one line for each operation."""
    repo = _writable(call)
    header, *lines = [json.loads(line) for line in call.body().splitlines() if line]
    info = header["value"]
    made = repo.commit(
        [_edit(call, repo, line["key"], line["value"]) for line in lines],
        title=info["summary"],
        description=info.get("description", ""),
        author=call.login(),
        revision=call.revision,
        parent=info.get("parentCommit"),
        pull_request=call.flag("create_pr"),
    )
    url = call.repo_url(repo)
    answer: dict[str, Any] = {"success": True, "commitOid": made.oid, "commitUrl": f"{url}/commit/{made.oid}"}
    if call.flag("create_pr"):
        number = next(ref for ref, oid in repo.refs.items() if oid == made.oid).rsplit("/", 1)[1]
        answer |= {"pullRequestUrl": f"{url}/discussions/{number}", "pullRequestNum": int(number)}
    return Reply.json(answer)


def _writable(call: Call) -> Repository:
    """The repository to push to; a pull request may come from anybody who is logged in."""
    call.login()
    return call.repo(write=not call.flag("create_pr"))


def _edit(call: Call, repo: Repository, key: str, value: dict[str, Any]) -> Edit:
    """Read one operation of a commit."""
    path = value["path"]
    if key in ("deletedFile", "deletedFolder"):
        return Delete(path.rstrip("/"), folder=key == "deletedFolder")
    if key == "file":
        sha256 = call.store.blobs.add(base64.b64decode(value["content"]))
        return Put(make_entry(path, call.store.blobs, sha256, lfs=False), "added")
    if key == "lfsFile":
        if value["oid"] not in repo.lfs_objects and call.store.xet.hash_of(value["oid"]):
            return Put(describe(path, value["oid"], value["size"]), "lfs")
        if value["oid"] not in repo.lfs_objects:
            raise HubError(400, f"LFS pointer of {path} points to content that was not uploaded to {repo.repo_id}")
        return Put(make_entry(path, call.store.blobs, value["oid"], lfs=True), "lfs" if "size" in value else "copied")
    raise HubError(400, f"unknown operation in commit: {key}")
