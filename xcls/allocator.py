"""How glibc's allocator is told to keep freed memory. Standard library only: read before a process starts.

glibc gives every large buffer back to the kernel, which clears its pages anew for the next one: a third of a training
step on a CPU. The variables are read when a process starts, so a program that wants them starts itself again.
"""

from __future__ import annotations

RETAIN = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def environment_with(allocator: str, variables: dict[str, str]) -> dict[str, str]:
    """`variables` with freed memory retained ('retain'), with glibc's own settings ('plain'), or as they are ('inherit')."""
    if allocator == "inherit":
        return dict(variables)
    others = {key: value for key, value in variables.items() if key not in RETAIN}
    return {**others, **RETAIN} if allocator == "retain" else others
