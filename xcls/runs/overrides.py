"""Values in the grammar of Hydra's command line, as `key=value` needs them. Standard library only."""

from __future__ import annotations

import re
from typing import Any

PLAIN = re.compile(r"(?!(null|true|false|inf|nan)$)[A-Za-z_./][A-Za-z0-9_./-]*", re.IGNORECASE)
SPECIAL = re.compile(r"([\\()\[\]{}:=,\s])")  # what Hydra reads as its own sign in a key


def quoted(value: Any) -> str:
    """A value (None, bool, number, text, list or dict) in Hydra's grammar; texts in quotes where they need them."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        items = [(SPECIAL.sub(r"\\\1", str(key)), quoted(item)) for key, item in value.items()]
        return "{" + ",".join(f"{key}:{item}" for key, item in items) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(quoted(item) for item in value) + "]"
    text = str(value)
    if PLAIN.fullmatch(text):
        return text
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"
