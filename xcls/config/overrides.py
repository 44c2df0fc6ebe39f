"""Values in the grammar of Hydra's command line: how the project writes them, and how a user may type them without quotes.

Standard library only: who calls hands over Hydra's parser.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Callable, Iterable

from xcls.config.schema import Config

PLAIN = re.compile(r"(?!(null|true|false|inf|nan)$)[A-Za-z_./][A-Za-z0-9_./-]*", re.IGNORECASE)
SPECIAL = re.compile(r"([\\()\[\]{}:=,\s])")  # what Hydra reads as its own sign in a key
ESCAPED = re.compile(r"\\([\\()\[\]{}:=, \t])")  # how its grammar writes these signs outside quotes
CALL = re.compile(r"\s*(choice|range|interval|glob|sort|shuffle|tag|extend_list|int|float|str|bool|json_str)\s*\(")
BRACKETS = {"(": ")", "[": "]", "{": "}"}


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


def unquoted(value: str) -> str:
    """The text of a typed value: without the quotes around it, if it has some."""
    found = re.fullmatch(r"""(["'])(.*)\1""", value.strip())
    return re.sub(rf"\\{found[1]}", found[1], found[2]) if found else value


def quote_typed(words: Iterable[str], parse: Callable[[str], Any]) -> list[str]:
    """The words of a command line; in `key=value` with quotes around each value that Hydra would refuse or change.

    `data (1).csv`, `Übung.csv` and `a=b.csv` are texts, and so is `1e5` where a text is expected (`exp=1e5`). A comma outside
    brackets and quotes still separates the values of a sweep. parse: Hydra's parser of one word, which raises for what it
    cannot read.
    """
    texts = text_keys()

    def written(word: str) -> str:
        key, given, value = word.partition("=")
        if not given or word.startswith("-"):
            return word
        return f"{key}={_written(value, lambda one: parse(f'key={one}').value(), is_text=key.lstrip('+') in texts)}"

    return [written(word) for word in words]


def admitted(words: list[str], untyped: Iterable[str]) -> list[str]:
    """The words, with a `++` before those that a file or run decides about: of an untyped node Hydra knows what its typed or
    default group has. What the node really takes is checked once all is laid over it (`to_typed`)."""
    if not any(
        word in ("mode=eval", "mode=predict", "mode=pretrain") or word.startswith(("template=", "pretrain="))
        for word in words
    ):
        return words
    chosen = {word.partition("=")[0] for word in words}
    nodes = tuple(f"{node}." for node in untyped if node.split(".")[0] not in chosen)
    return [f"++{word}" if word.startswith(nodes) else word for word in words]


def text_keys(node: type = Config, prefix: str = "") -> set[str]:
    """The keys of the schema whose values are texts."""
    found = {"text", "dataset.text"}  # or a list of texts
    for item in fields(node):
        if item.default_factory is not MISSING and is_dataclass(item.default_factory):
            found |= text_keys(item.default_factory, f"{prefix}{item.name}.")
        elif item.type in ("str", "Optional[str]"):
            found.add(prefix + item.name)
    return found


def _written(value: str, read: Callable[[str], Any], *, is_text: bool) -> str:
    """One value, or several with commas between them. read: gives what Hydra makes of a value, or raises."""
    if value and not value.strip():
        return quoted(value)  # a separator of columns
    parts = _parts(value)
    try:
        found = read(value)
    except Exception:
        if CALL.match(value):
            return value  # its error names the function
        if len(parts) > 1:
            return ",".join(_written(part, read, is_text=is_text) for part in parts)
        bare = value.strip()
        if bare.startswith("[") and bare.endswith("]"):
            items = "[" + ",".join(_written(part, read, is_text=False) for part in _parts(bare[1:-1])) + "]"
            try:
                read(items)
                return items
            except Exception:
                pass
        return quoted(ESCAPED.sub(r"\1", bare))
    if is_text and len(parts) > 1 and not CALL.match(value):
        return ",".join(_written(part, read, is_text=True) for part in parts)
    if is_text and isinstance(found, (bool, int, float)) and str(found) != value.strip():
        return quoted(value.strip())
    return value


def _parts(value: str) -> list[str]:
    """`value` cut at the commas outside quotes and brackets; whole where these are not closed."""
    parts, part, closing = [], "", []
    for place, sign in enumerate(value):
        escaped = place > 0 and value[place - 1] == "\\"
        if closing:
            if sign == closing[-1] and not escaped:
                closing.pop()
            elif closing[-1] not in "'\"" and sign in BRACKETS:
                closing.append(BRACKETS[sign])
        elif sign in "'\"" and not part.strip():
            closing.append(sign)
        elif sign in BRACKETS and not escaped:
            closing.append(BRACKETS[sign])
        elif sign == "," and not escaped:
            parts.append(part)
            part = ""
            continue
        part += sign
    return [value] if closing else [*parts, part]
