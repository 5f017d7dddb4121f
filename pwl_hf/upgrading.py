"""Bringing the code of a repository that an older version saved up to date: replaced by one file, or taken out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from pwl_hf.modeling.publishing.model_card import CARD_FILE, read_card, render_card, write_card
from pwl_hf.modeling.publishing.remote_code import NONE, with_code
from pwl_hf.modeling.repository.files import write_text
from pwl_hf.modeling.repository.layout import CONFIG_FILE, PROCESSOR_FILE
from pwl_hf.modeling.repository.output_folder import exclusive_folder
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.modeling.task_names import TOKENIZER_FILES

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

_CONFIGS = (CONFIG_FILE, f"teacher/{CONFIG_FILE}")


def upgrade(
    repo: str,
    remote_code: str = NONE,
    *,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
) -> tuple[list[str], CommitInfo | None]:
    """Take the code out of a repository, or replace it by one generated file; weights and manifest stay as they are.

    Removed is what its configs name as code, and what that imports; nothing else.

    Args:
        repo: A folder or a Hub id.
        remote_code: `"none"`, or `"standalone"` for one file of code.
        revision: The branch of a Hub repository.
        create_pr: Open a pull request rather than commit to the branch.
        token: As in huggingface_hub.

    Returns:
        The code files that were removed, and the commit of a Hub repository.

    Raises:
        RepositoryError: If it is no PWL repository, or a config in it is malformed.
        ValueError: For another `remote_code`.
    """
    source = Repository.open(repo, revision=revision, token=token)
    manifest = source.manifest()
    # 1. What it has, and what it is to have.
    if source.commit is None:
        names = [path.name for path in Path(source.name).glob("*.py")]
        source.check_links([*names, *_CONFIGS])
    else:
        files = HfApi(token=token).list_repo_files(source.name, revision=source.commit)
        names = [path for path in files if path.endswith(".py") and "/" not in path]
    before = {path: source.fetch_text(path) for path in [*names, *_CONFIGS]}
    after = with_code(before, remote_code)
    removed = sorted(before.keys() - after.keys())
    changed = {path: content for path, content in after.items() if before.get(path) != content}
    # 2. In a folder: code is there before a config names it, and gone after none does.
    if source.commit is None:
        root = Path(source.name)
        with exclusive_folder(root):
            for path in sorted(changed, key=_CONFIGS.__contains__):
                write_text(root / path, changed[path].decode())
            for path in removed:
                (root / path).unlink()
            if (root / CARD_FILE).exists():
                write_card(root, token=token)
        return removed, None
    # 3. On the Hub: all in one commit.
    processor = {path: b"" for path in files if path in (PROCESSOR_FILE, TOKENIZER_FILES[0])}
    existing = read_card(source.fetch_text(CARD_FILE), f"{source}: {CARD_FILE}") if CARD_FILE in files else None
    card = render_card(manifest, {**after, **processor}, repo_id=source.name, existing=existing, token=token)
    operations = [CommitOperationAdd(path, content) for path, content in {**changed, CARD_FILE: card.encode()}.items()]
    commit = HfApi(token=token).create_commit(
        source.name,
        [*operations, *map(CommitOperationDelete, removed)],
        commit_message="Upgrade the repository's code",
        revision=revision,
        create_pr=create_pr,
    )
    return removed, commit
