"""What a run prints has no API key, token or password in it either: the output of a sweep's jobs is kept in files.

Standard library only.
"""

from __future__ import annotations

import sys

from xcls.runs.record import without_secrets


def hide_secrets() -> None:
    """From now on `sys.stdout` and `sys.stderr` write `***` for secrets, whoever prints: libraries and tracebacks too."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None or getattr(stream, "discreet", False):
            continue
        _veil(stream)


def _veil(stream: object) -> None:
    write = stream.write

    def discreet(text: str) -> int:
        write(without_secrets(text))
        return len(text)

    stream.write, stream.discreet = discreet, True
