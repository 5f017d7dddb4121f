"""The most memory that a process ever had (Linux). It imports nothing, for light processes ask for themselves."""

from __future__ import annotations


def highest_resident(pid: int | None = None) -> int:
    """The most bytes that were resident (VmHWM), by the kernel's own count; of this process by default.

    Pages of mapped files count, libraries among them. Unlike `ru_maxrss` it begins anew with a program.
    """
    with open(f"/proc/{pid or 'self'}/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/{pid or 'self'}/status has no VmHWM")
