"""Makes glibc's allocator keep freed memory. Standard library only.

By default glibc returns every large buffer to the kernel, which then clears the pages of the next one: a third of the
time of a training step on a CPU. Environment variables change that for new processes, `mallopt` for this one.
"""

from __future__ import annotations

import ctypes
import os
import sys

RETAIN = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
MALLOPT = {-4: 0, -1: -1, -2: 67_108_864}  # malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD (-1: never), M_TOP_PAD


def environment_with(allocator: str, variables: dict[str, str]) -> dict[str, str]:
    """`variables` changed so that glibc keeps freed memory ('retain') or not ('plain'), or unchanged ('inherit')."""
    if allocator == "inherit":
        return dict(variables)
    others = {key: value for key, value in variables.items() if key not in RETAIN}
    return {**others, **RETAIN} if allocator == "retain" else others


def retain_memory() -> None:
    """Makes this process and its child processes keep freed memory, unless one of the variables is set."""
    if sys.platform != "linux" or set(RETAIN) & set(os.environ):
        return
    os.environ.update(RETAIN)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has it
    if mallopt is not None:
        for parameter, value in MALLOPT.items():
            mallopt(parameter, value)
