"""Synthetic run folders: what a sweep leaves behind, small enough to change one thing at a time."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

from xcls.report.claims import Verdict
from xcls.runs.record import Record, sha256, write_record

NAMES = {"sdpa": "sdpa", "sdpa_fused": "sdpa_fused", "performer": "performer_favor", "reformer": "reformer_lsh"}
ROWS = hashlib.sha256(b"rows").hexdigest()
CPU = {
    "kind": "cpu",
    "name": "a test CPU",
    "dtype": "fp32",
    "compile": False,
    "micro_batch": 16,
    "threads": 1,
    "shared": False,
}


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


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
    flat = {
        "mode": "finetune",
        "seed": seed,
        "seq_len": seq_len,
        "exp": None,
        "attention.name": NAMES.get(attention, attention),
        "attention._target_": f"xcls.attention.{attention}.X",
        "position.name": "rope",
        "size.width": 128,
        "dataset.name": "demo",
        "dataset.path": "../data",
        "finetuning.batch_size": 32,
        "finetuning.lr": 5e-4,
        "hardware.device": "auto",
        "hardware.gradient_checkpointing": False,
        "wandb.mode": "offline",
        **(config or {}),
    }
    test = macro_f1 - 0.01 if test is None else test
    record = Record(
        run=f"demo/finetune-{attention}-rope-tiny-n{seq_len}-s{seed}",
        mode="finetune",
        status="completed",
        hash=_hash(attention, seed, seq_len, sorted(flat.items(), key=repr)),
        seed=seed,
        seq_len=seq_len,
        choices={
            "dataset": "demo",
            "attention": attention,
            "position": "rope",
            "size": "tiny",
            "tokenizer": "wordpiece",
        },
        config=flat,
        data={"name": "demo", "fingerprint": "f" * 64, "train_rows_hash": ROWS, "rows": {"train": 100}},
        metrics={
            "validation": {
                "macro_f1": macro_f1,
                "accuracy": macro_f1,
                "weighted_f1": macro_f1,
                "auroc": 0.95,
                "val_loss": 0.3,
            },
            "test": {"macro_f1": test, "accuracy": test, "weighted_f1": test, "auroc": 0.94},
        },
        costs={
            "time_per_step": 0.1,
            "time_per_epoch": time,
            "tokens_per_s": 5000.0,
            "rss_growth_MiB": memory,
            "max_rss_MiB": 900.0,
        },
        params={"total": 1_000_000, "trainable": 1_000_000},
        device={**CPU, **(device or {})},
        versions={"python": "3.11.7", "torch": "2.13.0"},
        commit="c" * 40,
        command=[f"attention={attention}", f"seed={seed}", "sweep=demo"],
    )
    return replace(record, **fields)


def baseline(macro_f1: float = 0.85, test: float | None = None, **fields: Any) -> Record:
    """TF-IDF + logistic regression on the rows of `finetune`."""
    test = macro_f1 if test is None else test
    flat = {
        "mode": "baseline",
        "seed": 0,
        "seq_len": 512,
        "attention.name": "sdpa",
        "dataset.name": "demo",
        "baseline.max_iter": 1000,
    }
    record = Record(
        run="demo/tfidf_logreg-s0-abcdef",
        mode="baseline",
        status="completed",
        hash=_hash("baseline", macro_f1),
        seed=0,
        seq_len=512,
        choices={"dataset": "demo", "attention": "sdpa"},
        config=flat,
        data={"name": "demo", "fingerprint": "f" * 64, "train_rows_hash": ROWS},
        metrics={
            "validation": {"macro_f1": macro_f1, "accuracy": macro_f1},
            "test": {"macro_f1": test},
            "tuned.validation": {"macro_f1": macro_f1 + 0.02},
            "tuned.test": {"macro_f1": test + 0.02},
        },
        costs={"train_seconds": 2.0},
        command=["mode=baseline", "sweep=demo"],
    )
    return replace(record, **fields)


def save(records: list[Record], root: Path, sweep: str = "demo") -> Path:
    """Writes each record into its folder under root/multirun/<sweep>, with a metrics.csv; gives the sweep's folder."""
    for record in records:
        folder = root / "multirun" / sweep / record.run
        folder.mkdir(parents=True, exist_ok=True)
        score = record.metrics.get("validation", {}).get("macro_f1") or 0.0
        table = folder / "metrics.csv"
        table.write_text(
            "step,epoch,macro_f1,val_loss,time_per_step,tokens_per_s\n"
            f"5,1.0,{score - 0.05},0.5,0.2,5000\n10,2.0,{score},0.3,0.2,5000\n",
            encoding="utf-8",
        )
        record.files = {"metrics.csv": sha256(table)}
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

    def judge(
        records: list[Record],
        attention: str,
        *,
        split: str = "validation",
        reference: str = "sdpa",
        seq_len: int = 512,
        changed: Any = None,
    ) -> Verdict:
        from tests.report.examples import study_of

        study = study_of(Make, tmp_path, records, changed=changed)
        pairs = [(group, board) for board in study.boards for group in board.groups]
        (pair,) = [
            (g, b) for g, b in pairs if g.record.choices["attention"] == attention and g.record.seq_len == seq_len
        ]
        return study.judge.verdict(*pair, reference, split)

    return judge
