"""How much of a disk an installed distribution takes, with all that it requires."""

from __future__ import annotations

from importlib.metadata import Distribution, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def required(name: str, extra: str = "") -> dict[str, Distribution]:
    """The distributions that one requires here, directly or by others; without itself.

    Args:
        name: Its name.
        extra: One of its extras.

    Returns:
        By name.

    Raises:
        PackageNotFoundError: If one is not installed.
    """
    # 1. Names with their extras, each followed once.
    first = (canonicalize_name(name), extra)
    seen, left = {first}, [first]
    while left:
        parent, asked = left.pop()
        for line in distribution(parent).requires or ():
            requirement = Requirement(line)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": asked}):
                continue
            own = canonicalize_name(requirement.name)
            # An extra adds to what its distribution requires without one.
            found = {(own, each) for each in ("", *requirement.extras)} - seen
            seen |= found
            left += found
    # 2. Each of them once.
    return {each: distribution(each) for each in sorted({each for each, _ in seen} - {first[0]})}


def installed_bytes(found: Distribution) -> int:
    """The bytes of an installed distribution's files, but for bytecode, which not every installer writes.

    Raises:
        ValueError: If it has no list of its files.
    """
    if found.files is None:
        raise ValueError(f"{found.name} is installed without a list of its files (RECORD)")
    paths = {found.locate_file(file).resolve() for file in found.files if file.suffix != ".pyc"}
    return sum(path.stat().st_size for path in paths if path.is_file())
