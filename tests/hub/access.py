"""Who may do what."""

import secrets
from collections.abc import Collection, Mapping

from . import errors
from .errors import HubError
from .repository import Repository


class Access:
    """Users by token, and the organizations they belong to.

    Args:
        users: token -> user name.
        orgs: organization -> names of its members, who may all write.
    """

    def __init__(self, users: Mapping[str, str], orgs: Mapping[str, Collection[str]]) -> None:
        self.users = dict(users)
        self.orgs = {org: set(members) for org, members in orgs.items()}
        self.upload_key = secrets.token_hex(8)
        """Signs the addresses that LFS content is sent to: the client sends no token there."""

    def user(self, authorization: str | None) -> str | None:
        """The user of an Authorization header, None without one; a token nobody has is HubError 401."""
        if authorization is None:
            return None
        name = self.users.get(authorization.removeprefix("Bearer "))
        if name is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return name

    def owns(self, user: str | None, namespace: str) -> bool:
        """Whether a namespace is the user's own, or their organization's."""
        return user is not None and (user == namespace or user in self.orgs.get(namespace, ()))

    def check_read(self, user: str | None, repo: Repository) -> None:
        """A private repository does not exist for others."""
        if repo.private and not self.owns(user, repo.namespace):
            raise errors.repo_not_found(user)

    def check_files(self, user: str | None, repo: Repository) -> None:
        """The files of a gated repository are for its owner and those granted access."""
        if repo.gated and not self.owns(user, repo.namespace) and user not in repo.granted:
            raise errors.gated(repo.repo_id, user)

    def check_write(self, user: str | None, namespace: str) -> None:
        """Only the owner of a namespace writes there."""
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if not self.owns(user, namespace):
            raise HubError(403, f"You don't have the rights to write to the namespace {namespace!r}")
