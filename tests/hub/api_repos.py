"""Endpoints about users, repositories, and their references."""

import re
from typing import Any

from .commits import FileEntry, lfs_pointer
from .errors import HubError
from .repository import Repository
from .routing import Call, Reply, Router

router = Router()


@router.route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Reply:
    """The user and their organizations."""
    name = call.login()
    orgs = [{"type": "org", "name": org} for org, members in call.access.orgs.items() if name in members]
    auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
    return Reply.json({"type": "user", "id": name, "name": name, "fullname": name, "orgs": orgs, "auth": auth})


@router.route("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> Reply:
    """Every model card will do."""
    return Reply.json({"errors": [], "warnings": []})


@router.route("POST", "/api/repos/create")
def create_repo(call: Call) -> Reply:
    """Make a repository; 409 with its address if there is one."""
    repo_id, repo_type, data = _named_repo(call)
    private = data.get("visibility") == "private" or data.get("private") is True
    status = 200
    try:
        repo = call.store.create_repo(repo_id, private, repo_type=repo_type, author=call.login())
    except HubError as error:
        repo, status = call.store.get(repo_id, repo_type), error.status
    answer = {"url": call.repo_url(repo), "name": repo_id, "id": repo_id}
    return Reply.json(answer if status == 200 else {**answer, "error": f"You already created {repo_id}"}, status)


@router.route("DELETE", "/api/repos/delete")
def delete_repo(call: Call) -> Reply:
    """Remove a repository."""
    repo_id, repo_type, _ = _named_repo(call)
    call.store.get(repo_id, repo_type, call.user)
    call.store.delete_repo(repo_id, repo_type)
    return Reply.json({})


@router.route("PUT", "/api/{kind}/{repo}/settings")
def settings(call: Call) -> Reply:
    """Change visibility and gating."""
    repo, data = call.repo(write=True), call.json()
    if "visibility" in data:
        repo.update(private=data["visibility"] == "private")
    if "gated" in data:
        repo.update(gated=data["gated"])
    return Reply.json({"private": repo.private, "gated": repo.gated})


@router.route("GET", "/api/{kind}/{repo}/refs")
def list_refs(call: Call) -> Reply:
    """Branches, tags and, if asked for, pull requests."""
    repo = call.repo()
    found: dict[str, list[dict[str, str]]] = {"heads": [], "tags": [], "pr": []}
    for ref, oid in repo.refs.items():
        _, kind, name = ref.split("/", 2)
        found[kind].append({"name": name, "ref": ref, "targetCommit": oid})
    answer = {"branches": found["heads"], "tags": found["tags"], "converts": []}
    return Reply.json({**answer, "pullRequests": found["pr"]} if call.flag("include_prs") else answer)


@router.route("POST", "/api/{kind}/{repo}/branch/{name}")
def create_branch(call: Call) -> Reply:
    """Make a branch at ``startingPoint``, or at main."""
    repo = call.repo(write=True)
    start = repo.resolve(call.json().get("startingPoint") or "main")
    repo.set_ref(f"refs/heads/{call.params['name']}", start.oid, create=True)
    return Reply.json({})


@router.route("DELETE", "/api/{kind}/{repo}/branch/{name}")
def delete_branch(call: Call) -> Reply:
    """Remove a branch; its commits stay."""
    if call.params["name"] == "main":
        raise HubError(403, "Cannot delete branch main")
    call.repo(write=True).set_ref(f"refs/heads/{call.params['name']}", None)
    return Reply.json({})


@router.route("POST", "/api/{kind}/{repo}/tag/{rev}")
def create_tag(call: Call) -> Reply:
    """Tag a revision."""
    repo = call.repo(write=True)
    repo.set_ref(f"refs/tags/{call.json()['tag']}", repo.resolve(call.revision).oid, create=True)
    return Reply.json({})


@router.route("DELETE", "/api/{kind}/{repo}/tag/{name}")
def delete_tag(call: Call) -> Reply:
    """Remove a tag."""
    call.repo(write=True).set_ref(f"refs/tags/{call.params['name']}", None)
    return Reply.json({})


@router.route("GET", "/api/{kind}/{repo}/revision/{rev}")
@router.route("GET", "/api/{kind}/{repo}")
def repo_info(call: Call) -> Reply:
    """What the Hub knows of a repository at a revision; with ``expand``, only what is named."""
    repo = call.repo()
    commit = repo.resolve(call.revision)
    info = {
        "_id": repo.repo_id,
        "id": repo.repo_id,
        "modelId": repo.repo_id,
        "author": repo.namespace,
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": repo.history("main")[-1].date,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [_sibling(entry, call.flag("blobs")) for entry in commit.files.values()],
        **_card_data(call, repo),
    }
    if expand := call.query.get("expand"):
        info = {key: value for key, value in info.items() if key in ("_id", "id", "modelId", *expand)}
    return Reply.json(info)


def _named_repo(call: Call) -> tuple[str, str, dict[str, Any]]:
    """The repository that a body names, once the user may write to its namespace."""
    data = call.json()
    namespace = data.get("organization") or call.login()
    call.access.check_write(call.user, namespace)
    return f"{namespace}/{data['name']}", data.get("type") or "model", data


def _sibling(entry: FileEntry, blobs: bool) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": entry.path}
    if blobs:
        sibling |= {"size": entry.size, "blobId": entry.oid}
        if entry.lfs:
            pointer_size = len(lfs_pointer(entry.sha256, entry.size))
            sibling["lfs"] = {"size": entry.size, "sha256": entry.sha256, "pointerSize": pointer_size}
    return sibling


def _card_data(call: Call, repo: Repository) -> dict[str, str]:
    """The two plain fields of the model card's metadata that the client's helpers look at."""
    entry = repo.resolve("main").files.get("README.md")
    text = call.store.blobs.read(entry.sha256).decode(errors="replace") if entry else ""
    header = text.split("\n---", 1)[0] if text.startswith("---") else ""
    return dict(re.findall(r"^(pipeline_tag|library_name): *(\S+)", header, flags=re.MULTILINE))
