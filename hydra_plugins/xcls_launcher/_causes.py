"""Why a job ended that could not say so in its record. Standard library only."""

from __future__ import annotations

import signal
from pathlib import Path

SHOWN = 400  # characters of a cause


def cause_of(code: int, log: Path) -> str:
    """The cause behind an exit code (128 + signal) of a job whose output is in `log`."""
    if code > 128:
        name = next((item.name for item in signal.Signals if item == code - 128), f"signal {code - 128}")
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}; the same command goes on from its last checkpoint"
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    text = "\n".join(line for line in lines if line.strip() and not line.startswith("submitit "))
    said = text.rpartition("run.py: ")[2] if "run.py: " in text else text.rpartition("\n")[2]
    return f"{' '.join(said.split())[:SHOWN]} (exit code {code})".strip()
