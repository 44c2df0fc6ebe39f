"""Errors when a file is written: is the disk full, and what can the user do. Standard library only."""

from __future__ import annotations

import errno

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # disk full, or quota of the user exceeded


def is_full(error: OSError) -> bool:
    """Whether the disk was full or the user's quota was exceeded."""
    return error.errno in FULL


def remedy(error: OSError, *, place: object) -> str:
    """What to do: free space if the disk is full; else check that `place` exists and its permissions."""
    if is_full(error):
        return f"Make room on the disk of {place}"
    return f"Check that {place} exists and that you can read and write it"
