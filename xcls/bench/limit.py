"""A ceiling for the memory of a measuring process: what does not fit is refused, and nobody is killed for it.

Without one, Linux hands out more than it has, and then kills some process, perhaps not this one.
"""

from __future__ import annotations

import re
import resource
from pathlib import Path

from xcls.train.faults import is_out_of_memory

MIB = 2**20
SHARE = 0.9  # of what is free: the rest is for others, and for what the count leaves out
ASKED = re.compile(r"tried to allocate (\d+) bytes")  # in the words of PyTorch's CPU allocator


def _number(path: Path, pattern: str) -> int | None:
    """The number that a pattern's group finds in a file of the kernel; None where there is no such file or number."""
    try:
        found = re.search(pattern, path.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) if found else None


def free_bytes(root: Path = Path("/")) -> int | None:
    """What the machine can still give without swapping, and the process's control groups allow; None if not Linux."""
    available = _number(root / "proc/meminfo", r"^MemAvailable:\s*(\d+) kB")
    if available is None:
        return None
    free = [available * 1024]
    group = _group(root)
    while group is not None:
        most, used = (_number(group / name, r"^(\d+)$") for name in ("memory.max", "memory.current"))
        if most is not None and used is not None:
            free.append(most - used + (_number(group / "memory.stat", r"^inactive_file (\d+)$") or 0))
        group = group.parent if group != root / "sys/fs/cgroup" else None
    return max(0, min(free))


def _group(root: Path) -> Path | None:
    """The process's own control group (version 2)."""
    try:
        found = re.search(r"^0::/?(.*)$", (root / "proc/self/cgroup").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return root / "sys/fs/cgroup" / found.group(1) if found and ".." not in found.group(1) else None


def limit_memory() -> None:
    """Lets this process take SHARE of what is free now and no more, where the system tells what is free."""
    free, held = free_bytes(), _number(Path("/proc/self/status"), r"^VmData:\s*(\d+) kB")
    if free is None or held is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = held * 1024 + int(free * SHARE)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def refusal(error: BaseException) -> str | None:
    """One line for memory that was refused on the CPU, with the sizes that led to it; None for any other error.

    Held is the process's peak so far; allowed is what `limit_memory` has set.
    """
    asked = ASKED.search(str(error))
    if not is_out_of_memory(error) or (asked is None and not isinstance(error, MemoryError)):
        return None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux, the only system with a limit here
    more = "" if asked is None else f" and {int(asked.group(1)) / MIB:,.0f} MiB more asked for"
    allowed = resource.getrlimit(resource.RLIMIT_DATA)[0]
    of = "" if allowed == resource.RLIM_INFINITY else f", {allowed / MIB:,.0f} MiB allowed"
    return f"out of memory: {held:,.0f} MiB held{more}{of}"
