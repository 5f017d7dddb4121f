"""The errors the Hub answers with, as exceptions."""


class HubError(Exception):
    """A request the Hub refuses.

    Args:
        status: HTTP status.
        message: sent as ``X-Error-Message`` and in the body.
        code: sent as ``X-Error-Code``; the client picks its exception class by it.
        headers: further headers, such as ``X-Repo-Commit``.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}


def repo_not_found(user: str | None) -> HubError:
    """A repository that is missing, or private to somebody else: the Hub does not tell which."""
    if user is None:
        return HubError(401, "Invalid username or password.", "RepoNotFound")
    return HubError(404, "Repository not found", "RepoNotFound")


def revision_not_found(revision: str) -> HubError:
    """No branch, tag, pull request or commit of this name."""
    return HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def entry_not_found(message: str, commit: str | None = None) -> HubError:
    """No such file or folder; with ``commit``, the client caches that it is missing there."""
    return HubError(404, message, "EntryNotFound", {"X-Repo-Commit": commit} if commit else None)


def gated(repo_id: str, user: str | None) -> HubError:
    """A file of a gated repository, asked for by somebody without access."""
    message = f"Access to model {repo_id} is restricted and you are not in the authorized list."
    return HubError(401 if user is None else 403, message, "GatedRepo")
