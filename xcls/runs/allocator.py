"""How glibc's allocator is told to keep freed memory. Standard library only: read before a process starts.

glibc gives every large buffer back to the kernel, which clears its pages anew for the next one: a third of a training
step on a CPU. The variables are read when a process starts, so a program that wants them starts itself again.
"""

from __future__ import annotations

import os
import sys

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


def start_anew(script: str) -> None:
    """Starts this process again with RETAIN in its environment, unless one of these variables is set.

    Only where `script` is the main program of its own process: what a notebook, a debugger or another program runs is not, and
    would be replaced together with its host.
    """
    began = len(sys.orig_argv) - len(sys.argv)
    options = sys.orig_argv[1:began]
    alone = all(word.startswith("-") or options[place - 1] in ("-X", "-W") for place, word in enumerate(options))
    ours = sys.orig_argv[began:] == sys.argv and os.path.realpath(sys.argv[0]) == os.path.realpath(script)
    if sys.platform == "linux" and alone and ours and not set(RETAIN) & set(os.environ):
        os.environ.update(RETAIN)  # read when a process starts
        try:
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        except OSError:  # this interpreter may not be started again: the run is slower, and right
            for name in RETAIN:
                del os.environ[name]
