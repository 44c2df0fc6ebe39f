"""Values of API keys, tokens and passwords in the environment are written nowhere. Standard library only."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$|(^|_)(PASS|PAT)(_|$)", re.IGNORECASE)
SHORTEST = 8  # characters of a secret; a shorter value is part of ordinary words


def without_secrets(text: str) -> str:
    """`text` with `***` for the value of every environment variable whose name says that it is a secret."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and value in text and SECRET_NAME.search(name) and not _is_path(value):
            text = text.replace(value, "***")
    return text


def _is_path(value: str) -> bool:
    """Whether it names something on this disk: the path of a secret is no secret."""
    return value.startswith("/") and os.path.exists(value)


def hide_secrets() -> None:
    """From now on `sys.stdout` and `sys.stderr` write `***` for secrets, whoever prints, tracebacks included."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not getattr(stream, "hides_secrets", False):
            _wrap(stream)


def _wrap(stream: Any) -> None:
    write = stream.write

    def redacted(text: str) -> int:
        write(without_secrets(text))
        return len(text)

    stream.write, stream.hides_secrets = redacted, True
