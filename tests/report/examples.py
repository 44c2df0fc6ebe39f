"""What several tests of the report share: a small study, its thresholds, hostile text, and reading what was written."""

from __future__ import annotations

import csv
from pathlib import Path

import yaml

from xcls.report.settings import Claims, Settings, claims_from
from xcls.report.write import write_report
from xcls.schema import flatten

PROJECT = Path(__file__).parents[2]
EVIL = '<script>alert("x")</script> & more'


def records(make):
    """A study in which Performer passes and Reformer fails, with runs that did not complete and a baseline."""
    return [
        *make.seeds("sdpa", (0.910, 0.912, 0.911), study="Demonstration: small"),
        *make.seeds("performer", (0.904, 0.905, 0.906), time=7.0, memory=60.0),
        *make.seeds("reformer", (0.85, 0.86, 0.87)),
        make.finetune("reformer", 3, status="failed", cause="NaN in the loss at step 7", metrics={}, costs={}),
        make.finetune("sdpa", 3, status="interrupted", cause="SIGTERM", metrics={}),
        make.finetune("sdpa", 4, status="running", metrics={}),
        make.baseline(0.855),
    ]


def from_yaml() -> Claims:
    """The thresholds of conf/report.yaml."""
    return claims_from(
        flatten(yaml.safe_load((PROJECT / "conf" / "report.yaml").read_text(encoding="utf-8"))["claims"])
    )


def report(make, root, made=None):
    """Writes run folders and their report to root/out; gives what is printed."""
    make.save(records(make) if made is None else made, root)
    return write_report(Settings(runs=["multirun"], out="out", claims=from_yaml()), root=root)


def contents(folder):
    """Relative path to bytes of every file."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def rows(path):
    """The rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
