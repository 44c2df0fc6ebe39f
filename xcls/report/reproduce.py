"""The checks of reproduce.sh: `before` the runs, are the data the same? `after` them, are the numbers the same?

python -m xcls.report.reproduce before|after, with the expected values as JSON on standard input.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Sequence

from xcls.config.schema import UserError
from xcls.report.load import DEFAULT_FOLDERS, collect
from xcls.report.measures import number
from xcls.runs.record import Record
from xcls.runs.reproduce import TOLERANCE

SAME, REFUSED, OTHER = 0, 2, 3
Expected = Sequence[dict[str, Any]]


def check_data(expected: Expected, path: str | None = None) -> list[str]:
    """Compares data and versions with the records and returns warnings. Raises UserError if the data differ.

    `path`: the data path that the user gave.
    """
    data = importlib.import_module("xcls.data.source")  # imported here: the report itself reads no data
    notes, seen = [], set()
    here = {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}
    here["python"] = platform.python_version()
    for entry in expected:
        arguments = {**entry["source"], **({} if path is None else {"path": path})}
        module, _, name = str(arguments.pop("_target_", "")).rpartition(".")
        if not module or not entry["fingerprint"]:
            notes.append(f"{entry['dataset']}: the record does not say where its data are; they are not checked.")
            continue
        place = json.dumps([module, name, arguments, entry["extra"], entry["fingerprint"]], sort_keys=True)
        if place not in seen:
            seen.add(place)
            found = data.data_fingerprint(getattr(importlib.import_module(module), name)(**arguments), entry["extra"])
            if found != entry["fingerprint"]:
                raise UserError(
                    f"the data set {entry['dataset']} is not the one of the record: fingerprint {found}, expected "
                    f"{entry['fingerprint']}. Its files (or, for data made from packages, their versions) differ."
                )
        versions = {name: (here.get(name), version) for name, version in entry["versions"].items() if version}
        notes += [
            f"{name} is {own} here, {v} in the record." for name, (own, v) in versions.items() if own not in (v, None)
        ]
    return list(dict.fromkeys(notes))


def compare(expected: Expected, made: dict[str, Record], tolerance: float) -> tuple[list[str], bool]:
    """A line per run of `expected`, and whether all runs in `made` (hash -> record) have the expected scores.

    With the same CPU type, torch version, dtype and thread count they must be equal to the bit, else within
    `tolerance`.
    """
    lines, good = [], True
    for entry in expected:
        record = made.get(entry["hash"])
        if record is None:
            lines.append(f"{entry['run']}: MISSING, no completed run has its hash")
            good = False
            continue
        gap, name = furthest(entry["metrics"], record.metrics)
        alike = _alike(entry, record)
        right = gap == 0.0 if alike else gap <= tolerance
        wrong = "DIFFERENT from the first time on the same machine" if alike else f"OUTSIDE of {tolerance:g}"
        text = "the same to the bit" if gap == 0.0 else f"differs by up to {gap:.3g} ({name})"
        lines.append(f"{entry['run']}: {text}" + ("" if right else f", {wrong}"))
        good = good and right
    return lines, good


def furthest(expected: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]) -> tuple[float, str]:
    """The largest difference of a score, and its name; infinite if a score is missing; relative for a loss."""
    worst, where = 0.0, ""
    for split, scores in expected.items():
        for name, value in scores.items():
            wanted, here = number(value), number(found.get(split, {}).get(name))
            gap = (0.0 if wanted is here else math.inf) if wanted is None or here is None else abs(wanted - here)
            gap /= abs(wanted) if name.endswith("loss") and wanted else 1.0
            if gap > worst:
                worst, where = gap, f"{split} {name}"
    return worst, where


def _alike(entry: dict[str, Any], record: Record) -> bool:
    """Must both runs be equal to the bit? Yes on the same CPU type with the same threads, dtype and torch."""
    device = entry["device"]
    same = all(record.device.get(name) == value for name, value in device.items())
    return same and device.get("kind") == "cpu" and record.versions.get("torch") == entry["versions"].get("torch")


def main(words: Sequence[str]) -> int:
    """Exit code. 0: the same; 2: other data, or the runs exist here already; 3: other numbers."""
    expected, root = json.load(sys.stdin), Path.cwd()
    made = {
        run.record.hash: run.record for run in collect(DEFAULT_FOLDERS, root).runs if run.record.status == "completed"
    }
    if words[0] == "after":
        lines, good = compare(expected, made, float(os.environ.get("TOLERANCE", TOLERANCE)))
        print("\n".join(f"reproduce.sh: {line}" for line in lines))
        return SAME if good else OTHER
    try:
        if expected and all(entry["hash"] in made for entry in expected):
            raise UserError(
                f"all of these runs are in {root} already. Start me in a fresh clone: git clone {root} ../again"
            )
        path = next((word.partition("=")[2].strip("'\"") for word in words if word.startswith("dataset.path=")), None)
        for note in check_data(expected, path):
            print(f"reproduce.sh: {note}", file=sys.stderr)
    except UserError as error:
        print(f"reproduce.sh: {error}", file=sys.stderr)
        return REFUSED
    return SAME


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
