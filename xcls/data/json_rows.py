"""Rows of a JSON file: one object per line, a list of objects, or one object that holds such a list."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any, Iterator

from xcls.config.schema import UserError

Row = tuple[str, dict[str, Any]]  # its place, and its values by column
RECORDS = 'Each row must be an object like {"text": "…", "label": "…"} (pandas: to_json(orient="records", lines=True)).'


def json_rows(file: Path, lines: Iterator[str]) -> Iterator[Row]:
    """The rows of a file with one object per line (read line by line), a list of objects, or {"data": [objects]}.

    Raises UserError.
    """
    found = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    start, first = next(found, (1, ""))
    second = next(found, None)
    if second is not None and _is_object(first):
        yield from _by_line(file, chain([(start, first), second], found))
        return
    text = first + "".join(line for _, line in chain([second] if second else [], found))
    if not text:
        return
    value = _parsed(file, start, text)
    lists = [part for part in value.values() if isinstance(part, list)] if isinstance(value, dict) else []
    rows = value if isinstance(value, list) else lists[0] if len(lists) == 1 else [value]
    for number, row in enumerate(rows, 1):
        yield f"row {number}", _object(file, f"row {number}", row)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _by_line(file: Path, lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
    for number, line in lines:
        place = f"line {number}"
        yield place, _object(file, place, _parsed(file, number, line.rstrip()))


def _parsed(file: Path, start: int, text: str) -> Any:
    """The JSON value of `text`, which begins at line `start`. Raises UserError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {start - 1 + error.lineno}"
        raise UserError(f"{file}, {place}: not JSON ({error.msg}, character {error.colno}). {RECORDS}") from error


def _object(file: Path, place: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{file}, {place}: this is {str(row)[:40]!r}. {RECORDS}")
    return row
