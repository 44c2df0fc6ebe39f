"""The whole bench at a tiny size, with mechanisms that fail and one that kills its process."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from xcls.bench.process import allocator_settings, environment, killed_by, measure
from xcls.bench.run import run_bench
from xcls.config.schema import Bench
from xcls.runs.allocator import RETAIN

pytestmark = pytest.mark.slow

BROKEN = '''
import os, signal
import torch
from xcls.attention.softmax import Sdpa

class Broken(Sdpa):
    """Fails at more than eight tokens."""

    def attend(self, q, k, v, masks):
        raise RuntimeError("no such kernel\\nand more")

class Killer(Sdpa):
    """Dies without a word."""

    def attend(self, q, k, v, masks):
        os.kill(os.getpid(), signal.SIGKILL)

class Greedy(Sdpa):
    """Asks for a tebibyte where it trains."""

    def attend(self, q, k, v, masks):
        return v + torch.empty(2**40, dtype=torch.uint8)[0] if torch.is_grad_enabled() and v.shape[0] == 2 else v
'''
ATTENTIONS = {
    "sdpa": {"_target_": "xcls.attention.softmax.Sdpa", "name": "sdpa"},
    "performer": {"_target_": "xcls.attention.favor.Performer", "name": "performer_favor", "num_features": 8},
    "broken": {"_target_": "broken_mechanisms.Broken", "name": "broken"},
    "killer": {"_target_": "broken_mechanisms.Killer", "name": "killer"},
    "greedy": {"_target_": "broken_mechanisms.Greedy", "name": "greedy"},
}
POSITIONS = {"none": {"_target_": "xcls.position.none.NoPosition", "name": "none"}}


@pytest.fixture(autouse=True)
def broken_mechanisms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_mechanisms.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(tmp_path)


def bench(folder: Path, **changes: Any) -> list[dict[str, str]]:
    settings: dict[str, Any] = {
        "attentions": [name for name in ATTENTIONS if name != "greedy"],
        "references": ["sdpa"],
        "others": False,
        "seq_lens": [16],
        "dtypes": ["fp32"],
        "tokens_per_step": 32,
        "width": 16,
        "num_heads": 2,
        "num_layers": 1,
        "rounds": 3,
        "seconds": 5.0,
    }
    given = {"attentions": ATTENTIONS, "positions": POSITIONS, "device": "cpu", "folder": folder, "progress": False}
    assert run_bench(Bench(**{**settings, **changes}), **given, threads=1) == folder
    return list(csv.DictReader((folder / "results.csv").open()))


def test_failures_are_rows_and_the_others_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = bench(tmp_path / "out")
    assert [(row["mechanism"], row["part"]) for row in rows] == [
        (name, part) for part in ("module", "core") for name in ("sdpa", "performer", "broken", "killer")
    ]
    causes = {row["mechanism"]: row["cause"] for row in rows}
    assert causes["broken"] == "RuntimeError: no such kernel" and "SIGKILL" in causes["killer"]
    for row in rows:
        good = row["mechanism"] in ("sdpa", "performer")
        assert row["status"] == ("completed" if good else "failed")
        assert (row["training_ms"] != "") == good and (float(row["training_ms"] or 1) > 0)
        assert (row["training_MiB"] != "") == (good and row["part"] == "module")
        assert (row["error_mean"] != "") == (good and row["part"] == "core")
    assert float(rows[0]["training_ms_vs_sdpa"]) == 1.0 and float(rows[4]["error_mean"]) < 1e-5 < float(
        rows[5]["error_mean"]
    )
    shown = capsys.readouterr().out
    assert "| performer" in shown and "## Failed" in shown
    about = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert about["status"] == "completed" and about["versions"]["torch"] and about["settings"]["seq_lens"] == [16]
    assert about["machine"]["fp32"]["flops_per_s"] > 0 and len(about["rows"]) == 8
    assert (tmp_path / "out" / "crossover-module.png").stat().st_size > 1000


def test_a_death_while_timing_costs_one_mechanism(tmp_path: Path) -> None:
    rows = bench(tmp_path, what="step", attentions=["killer", "sdpa"], memory=False, error=False)
    assert [(row["part"], row["status"]) for row in rows] == [("step", "failed"), ("step", "completed")]
    assert "SIGKILL" in rows[0]["cause"] and float(rows[1]["training_ms"]) > 0


def test_memory_alone_and_what_was_found_before_it_ran_out(tmp_path: Path) -> None:
    changes = {"error": False, "time": False, "gradient_checkpointing": True}
    rows = bench(tmp_path, what="step", attentions=["greedy", "sdpa"], **changes)
    assert [row["status"] for row in rows] == ["failed", "completed"]
    assert rows[0]["cause"].startswith("out of memory: ") and "1,048,576 MiB more asked for" in rows[0]["cause"]
    assert float(rows[0]["inference_MiB"]) >= 0 and rows[0]["training_MiB"] == ""
    assert float(rows[1]["training_MiB"]) > 0 and rows[1]["training_ms"] == "" == rows[1]["rounds"]
    assert rows[1]["gradient_checkpointing"] == "True"


def test_a_process_that_cannot_begin_says_why() -> None:
    outcome = measure({"task": "nothing"}, environment("inherit"), lambda event: None)
    assert outcome.cause == "KeyError: 'nothing'" and not outcome.killed


def test_the_allocator_is_the_same_for_all_and_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = environment("retain")
    assert {key: variables[key] for key in RETAIN} == RETAIN
    assert allocator_settings(variables).items() >= {**RETAIN, "OMP_NUM_THREADS": "1"}.items()
    assert not set(RETAIN) & set(environment("inherit")) - set(os.environ)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    assert environment("inherit")["MALLOC_TOP_PAD_"] == "1"
    assert not set(RETAIN) & set(environment("plain"))


@pytest.mark.parametrize(("number", "words"), [(9, "out of memory"), (11, "SIGSEGV"), (250, "signal 250")])
def test_causes_of_death(number: int, words: str) -> None:
    assert words in killed_by(number)
