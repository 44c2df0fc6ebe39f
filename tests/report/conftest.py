"""Synthetic run folders: what a sweep leaves behind, small enough to change one thing at a time."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

from xcls.report.claims import Verdict
from xcls.runs.record import Record, sha256, write_record

NAMES = {"performer": "performer_favor", "reformer": "reformer_lsh"}  # as records of older versions have them
SAMPLES = json.loads((Path(__file__).parent / "sample_records.json").read_text(encoding="utf-8"))


def finetune(
    attention: str = "sdpa",
    seed: int = 0,
    *,
    macro_f1: float = 0.90,
    test: float | None = None,
    time: float = 10.0,
    memory: float = 100.0,
    seq_len: int = 512,
    config: dict[str, Any] | None = None,
    device: dict[str, Any] | None = None,
    **fields: Any,
) -> Record:
    """A completed fine-tuning run; `config` and `device` are laid over the usual ones, `fields` over the record."""
    made = copy.deepcopy(SAMPLES["finetune"])
    names = {"attention.name": NAMES.get(attention, attention), "attention._target_": f"xcls.attention.{attention}.X"}
    made["config"] |= {"seed": seed, "seq_len": seq_len, **names, **(config or {})}
    made["choices"]["attention"] = attention
    for split, score in (("validation", macro_f1), ("test", macro_f1 - 0.01 if test is None else test)):
        made["metrics"][split] |= dict.fromkeys(("macro_f1", "accuracy", "weighted_f1"), score)
    made["costs"] |= {"time_per_epoch": time, "rss_growth_MiB": memory}
    made["device"] |= device or {}
    made |= {"run": f"demo/finetune-{attention}-rope-tiny-n{seq_len}-s{seed}", "seed": seed, "seq_len": seq_len}
    made["hash"] = hashlib.sha256(
        repr((attention, seed, seq_len, sorted(made["config"].items(), key=repr))).encode()
    ).hexdigest()
    return replace(Record(**made), **fields)


def baseline(macro_f1: float = 0.85, test: float | None = None, **fields: Any) -> Record:
    """TF-IDF + logistic regression on the rows of `finetune`."""
    made = copy.deepcopy(SAMPLES["baseline"])
    for split, score in (("validation", macro_f1), ("test", macro_f1 if test is None else test)):
        made["metrics"][split]["macro_f1"], made["metrics"][f"tuned.{split}"]["macro_f1"] = score, score + 0.02
    made["metrics"]["validation"]["accuracy"] = macro_f1
    return replace(Record(**made, hash=hashlib.sha256(repr(macro_f1).encode()).hexdigest()), **fields)


def save(records: list[Record], root: Path, sweep: str = "demo") -> Path:
    """Writes each record into its folder under root/multirun/<sweep>, with a metrics.csv; gives the sweep's folder."""
    for record in records:
        folder = root / "multirun" / sweep / record.run
        folder.mkdir(parents=True, exist_ok=True)
        score = record.metrics.get("validation", {}).get("macro_f1") or 0.0
        head = "step,epoch,macro_f1,val_loss,time_per_step,tokens_per_s"
        lines = f"{head}\n5,1.0,{score - 0.05},0.5,0.2,5000\n10,2.0,{score},0.3,0.2,5000\n"
        (folder / "metrics.csv").write_text(lines, encoding="utf-8")
        record.files = {"metrics.csv": sha256(folder / "metrics.csv")}
        write_record(record, folder)
    return root / "multirun" / sweep


def seeds(attention: str, scores: tuple[float, ...] = (0.90, 0.90, 0.90), **options: Any) -> list[Record]:
    """One run per score, with the seeds 0, 1, 2, …"""
    return [finetune(attention, seed, macro_f1=score, **options) for seed, score in enumerate(scores)]


class Make:
    """The factories, for tests."""

    finetune, baseline, save, seeds = map(staticmethod, (finetune, baseline, save, seeds))


@pytest.fixture
def make() -> type[Make]:
    """Factories of records and run folders."""
    return Make


@pytest.fixture
def judged(tmp_path: Path) -> Callable[..., Verdict]:
    """Judges records by the thresholds of conf/report.yaml, some of them changed by flat keys in `changed`."""
    from tests.report.examples import study_of

    def judge(
        records: list[Record],
        attention: str,
        *,
        split: str = "validation",
        reference: str = "sdpa",
        seq_len: int = 512,
        changed: Any = None,
    ) -> Verdict:
        study = study_of(Make, tmp_path, records, changed=changed)
        wanted = (attention, seq_len)
        groups = [group for results in study.datasets for group in results.groups]
        (group,) = [g for g in groups if (g.record.choices["attention"], g.record.seq_len) == wanted]
        return study.verdict(group, reference, split)

    return judge
