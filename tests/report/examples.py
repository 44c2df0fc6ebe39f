"""What several tests of the report share: a small study, its thresholds, hostile text, and reading what was written."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Sequence
from unittest.mock import patch

import yaml

from xcls.config.schema import flatten
from xcls.report.claims import Study
from xcls.report.load import Bench
from xcls.report.plots import draw
from xcls.report.settings import Claims, Settings, claims_from
from xcls.report.write import make_study, write_report

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


def from_yaml(changed: dict[str, Any] | None = None) -> Claims:
    """The thresholds of conf/report.yaml, some of them changed by flat keys."""
    stated = yaml.safe_load((PROJECT / "conf" / "report.yaml").read_text(encoding="utf-8"))["claims"]
    return claims_from({**flatten(stated), **(changed or {})})


def study_of(make, root, made=(), *, changed=None, benches: Sequence[Bench] | None = None, **settings) -> Study:
    """What a report is made of, over the run folders under root/multirun, to which those of `made` are added."""
    make.save(list(made), root)
    study = make_study(Settings(runs=["multirun"], claims=from_yaml(changed), **settings), root=root)
    study.benches = study.benches if benches is None else benches
    return study


def sized(make, attention, size, scores=(0.91, 0.911, 0.912), **options):
    """Runs of another model size."""
    made = make.seeds(attention, scores, config={"size.width": 128 if size == "tiny" else 256}, **options)
    for record in made:
        record.choices["size"], record.run = size, record.run.replace("tiny", size)
    return made


def report(make, root, made=None, plots=False, **settings):
    """Writes run folders and their report to root/out; gives what is printed. Plots take most of the time."""
    make.save(records(make) if made is None else made, root)
    with patch("xcls.report.write.draw", draw if plots else lambda *_: []):
        return write_report(Settings(runs=["multirun"], out="out", claims=from_yaml(), **settings), root=root)


def contents(folder):
    """Relative path to bytes of every file."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def rows(path):
    """The rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
