"""Adding the teacher in low precision to a repository, a folder or one of the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pwl_hf.modeling import PWLForImageClassification
from pwl_hf.modeling.publishing.model_card import CARD_FILE, write_card
from pwl_hf.modeling.publishing.push import push_model
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.modeling.schedule import Schedule

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from pwl_hf.modeling.publishing.push import Target
    from pwl_hf.modeling.repository.manifest import Manifest


class TierReport(NamedTuple):
    """What was added.

    Args:
        commit: The commit, of a repository of the Hub.
        manifest: The manifest with the tier; None where the commit has it.
    """

    commit: CommitInfo | None
    manifest: Manifest | None


def quantise_repository(
    repo: str,
    output: Path | None = None,
    *,
    bits: int = 8,
    target: Target,
    subfolder: str = "",
    overwrite: bool = False,
) -> TierReport:
    """Give a repository a tier of low precision, and stages that go by it; no training is needed.

    What the repository has stays as it is, byte for byte, but for its manifest and the table of its card.

    Args:
        repo: A folder or a Hub id.
        output: A folder that gets the repository with its tier; by default the repository itself gets it, one of the
            Hub in one commit.
        bits: 8 or 4; see `PWLPreTrainedModel.add_tier`.
        target: Branch, token and commit texts of a repository of the Hub.
        subfolder: Where in the repository the model lies.
        overwrite: Write over files in `output` that are not a PWL repository's.

    Raises:
        RepositoryError: If a file is not what the manifest says.
        ValueError: For other bits, or a dtype that is not split.
        SaveError: If a file cannot be written.
        PublishError: If the network or the Hub fails in every try.

    Example:

        >>> quantise_repository("pwl-vit", target=Target("pwl-vit"))  # doctest: +SKIP
    """
    options: dict[str, Any] = {"revision": target.revision, "subfolder": subfolder, "token": target.token}
    model = PWLForImageClassification.from_pretrained(repo, **options)
    model.add_tier(bits)
    source = model.parts.store.repository
    if output is None and source.commit is not None:
        if subfolder:
            raise ValueError("a model in a subfolder of the Hub cannot be given a tier there: give an output folder")
        return TierReport(push_model(model.parts, Schedule.of(model.schedule), target), None)
    folder = output if output is not None else Path(source.name, subfolder)
    model.save_pretrained(folder, overwrite=overwrite)
    if (folder / CARD_FILE).exists():
        write_card(folder, token=target.token)
    return TierReport(None, Repository.open(folder).manifest())
