"""How a run ended, as far as its folder tells: one that is still `running` but that nobody runs was killed."""

from __future__ import annotations

from pathlib import Path

from xcls.report.collect import Run

try:
    import fcntl
except ImportError:  # Windows has no such locks: a killed run stays `running` there
    fcntl = None  # type: ignore[assignment]

KILLED = "killed"
LOCK = ".lock"  # held by a run as long as it lives; the system takes it from a process that dies


def ending(run: Run) -> tuple[str, str]:
    """(status, cause) of a run: those of its record, or `killed` where its process is gone without a word."""
    record = run.record
    if record.status != "running" or held(run.folder) is not False:
        return record.status, record.cause or ""
    where = f"after step {record.step} of {record.steps}" if record.steps else "before its first evaluation"
    return KILLED, (
        f"no process holds its folder any more: killed {where} (kill -9, the system's memory, power), "
        "or it runs on a machine whose locks are not seen here"
    )


def held(folder: Path) -> bool | None:
    """Whether a process runs in `folder`; None where that cannot be told. Nothing is changed there."""
    if fcntl is None:
        return None
    try:
        with open(Path(folder) / LOCK, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except OSError:
        return None
