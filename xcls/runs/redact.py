"""Hides the values of API keys, tokens and passwords of the environment in all output. Standard library only."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$|(^|_)(PASS|PAT)(_|$)", re.IGNORECASE)
SHORTEST = 8  # characters of a secret; shorter values occur in ordinary words


def without_secrets(text: str) -> str:
    """`text` with `***` for the value of every environment variable whose name looks like that of a secret."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and value in text and SECRET_NAME.search(name) and not _is_path(value):
            text = text.replace(value, "***")
    return text


def _is_path(value: str) -> bool:
    """Whether it is an existing path: the path of a secret is no secret."""
    return value.startswith("/") and os.path.exists(value)


def hide_secrets() -> None:
    """From now on `sys.stdout` and `sys.stderr` write `***` for secrets, also in tracebacks."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not getattr(stream, "hides_secrets", False):
            _wrap(stream)


def _wrap(stream: Any) -> None:
    write = stream.write

    def redacted(text: str) -> int:
        write(without_secrets(text))
        return len(text)

    stream.write, stream.hides_secrets = redacted, True
