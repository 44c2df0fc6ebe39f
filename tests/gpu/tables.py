"""Puts what `make gpu` measured into a document, each table between its marks.

    python -m tests.gpu.tables multirun/gpu docs/gpu.md

A mark is a comment `<!-- measured: steps -->`; what stands between it and `<!-- end -->` is made anew from
`checks.json`, or stays where that says nothing of it. The tables of benches are filled by
`python -m xcls.bench.table docs/gpu.md`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Callable

from xcls.bench.table import NONE, markdown, number

MARK = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
Found = dict[str, Any]


def entries(found: Found, kind: str) -> list[Found]:
    """What was measured of one kind, in order."""
    return [value for key, value in found.items() if key.startswith(f"{kind} ")]


def steps(found: Found) -> str:
    """Forward and backward pass of a classifier, beside sdpa of the same shape and dtype."""
    rows = [row for row in entries(found, "step") if "ms" in row]
    first = {(row["batch"], row["tokens"], row["dtype"]): row for row in rows if row["attention"] == "sdpa"}
    lines = []
    for row in rows:
        sdpa = first.get((row["batch"], row["tokens"], row["dtype"]))
        line = {
            "mechanism": row["attention"],
            "batch × tokens": f"{row['batch']} × {row['tokens']:,}",
            "dtype": row["dtype"],
            "ms": number(row["ms"]),
            "× sdpa": number(row["ms"] / sdpa["ms"]) if sdpa else NONE,
            "host, ms": number(row["host_ms"]),
            "card busy, ms": number(row["busy_ms"]),
            "kernels": number(row["kernels"]),
            "waits": str(row["waits"]),
            "peak, MiB": number(row["peak_MiB"]),
            "memory × sdpa": number(row["peak_MiB"] / sdpa["peak_MiB"]) if sdpa else NONE,
        }
        lines.append(line)
    return markdown(lines) if lines else ""


def repeats(found: Found) -> str:
    """By mechanism and dtype: the largest error of output and gradients, and whether all of them repeat to the bit."""

    def cell(row: Found, dtype: str) -> str:
        if dtype not in row:
            return "failed" if "failed" in row else NONE
        told = row[dtype]
        again = "repeats" if all(told["repeats"]) else "output repeats" if told["repeats"][0] else "does not repeat"
        return f"{number(max(told['errors']))}, {again}" if told["finite"] else "not finite"

    lines = [
        {"mechanism": row["attention"], "tokens": str(row["tokens"])}
        | {dtype: cell(row, dtype) for dtype in ("fp32", "bf16", "fp16")}
        for row in entries(found, "errors")
    ]
    return markdown(lines) if lines else ""


TABLES: dict[str, Callable[[Found], str]] = {"steps": steps, "repeats": repeats}


def refresh(text: str, found: Found) -> str:
    """The document with its tables made anew."""
    source = f"*Measured on {found['device']}, torch {found['torch']}, {found['date']}.*"

    def table(match: re.Match[str]) -> str:
        made = TABLES[match[2]](found)
        return f"{match[1]}{made}\n\n{source}\n{match[3]}" if made else match[0]

    return MARK.sub(table, text)


def main(folder: str, document: str) -> None:
    """The command."""
    path = Path(document)
    found = json.loads((Path(folder) / "checks.json").read_text(encoding="utf-8"))
    path.write_text(refresh(path.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
