"""A file that could not be written: whether the disk is full, and what to do about it. Standard library only."""

from __future__ import annotations

import errno

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # no room on the disk, or no more for this user


def is_full(error: OSError) -> bool:
    """Whether there was no room, on the disk or in the user's quota."""
    return error.errno in FULL


def remedy(error: OSError, *, place: object) -> str:
    """What to do: make room where there is none; else look at what the system says about `place`."""
    if is_full(error):
        return f"Make room on the disk of {place}"
    return f"Check {place}: that it is there, and that it may be read and written"
