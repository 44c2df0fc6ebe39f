"""Rows of a JSON file: an object a line, a list of objects, or one object that holds all (as `pandas` and others write)."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path
from typing import Any, Iterator, Sequence

from xcls.config.schema import UserError

Row = tuple[str, dict[str, Any]]  # its place, and its values by column
BLANK = re.compile(r"\s*")
RECORDS = (
    'For each row an object like {"text": "…", "label": "…"} is needed (pandas: to_json(orient="records", lines=True)).'
)


def json_rows(file: Path, lines: Iterator[str], wanted: Sequence[str]) -> Iterator[Row]:
    """The rows, those of a file with an object a line as they are read. `wanted`: columns that every row has. Raises UserError."""
    blank, first = 0, ""
    for first in lines:
        if first.strip():
            break
        blank += 1
    second = next(lines, "")
    try:
        row = json.loads(first) if first.lstrip().startswith("{") else None
    except json.JSONDecodeError:
        row = None
    if row is None or not second.strip():
        yield from _whole(file, first, chain([second], lines), blank, wanted)
    else:
        yield from _by_line(file, chain([first, second], lines), blank)


def _by_line(file: Path, lines: Iterator[str], blank: int) -> Iterator[Row]:
    for number, line in enumerate(lines, blank + 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{file}, line {number}: not JSON ({error.msg}, character {error.pos + 1}). {RECORDS}"
            ) from error
        yield f"line {number}", _object(file, f"line {number}", row)


def _whole(file: Path, first: str, rest: Iterator[str], blank: int, wanted: Sequence[str]) -> Iterator[Row]:
    """The rows of a file that is read as one text: a list, one object, or objects over several lines each."""
    text = first + "".join(rest)
    decoder, values, place = json.JSONDecoder(), [], BLANK.match(text).end()
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            line = blank + error.lineno
            raise UserError(
                f"{file}, line {line}: not JSON ({error.msg}, character {error.colno}). {RECORDS}"
            ) from error
        values.append(value)
        place = BLANK.match(text, place).end()
    if len(values) == 1:
        found = _table(values[0], wanted)
        if found is not None:
            values = found
        elif isinstance(values[0], dict):  # a lone row
            yield f"line {blank + 1}", values[0]
            return
    for number, row in enumerate(values, 1):
        yield f"row {number}", _object(file, f"row {number}", row)


def _table(value: Any, wanted: Sequence[str]) -> list[Any] | None:
    """The rows in one value: a list; `{"data": […]}`; columns as lists, or by row name (pandas' default); pandas' `split`
    and `index`. None for anything else."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not value:
        return None
    names, data = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [dict(zip(map(str, names), row)) for row in data]
    parts = list(value.values())
    lists = [part for part in parts if isinstance(part, list) and part and all(isinstance(row, dict) for row in part)]
    if len(lists) == 1:
        return lists[0]
    if all(isinstance(part, list) for part in parts) and len(set(map(len, parts))) == 1:
        return [dict(zip(value, row)) for row in zip(*parts)]
    if all(isinstance(part, dict) for part in parts):
        if all(name in parts[0] for name in wanted):
            return parts
        if all(part.keys() == parts[0].keys() for part in parts):
            return [{name: part[key] for name, part in value.items()} for key in parts[0]]
    return None


def _object(file: Path, place: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{file}, {place}: this is {str(row)[:40]!r}. {RECORDS}")
    return row
