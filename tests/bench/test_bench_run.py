"""The whole bench at a tiny size, with mechanisms that fail and one that kills its process."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from xcls.bench.plan import TRANSFORMERS, installed
from xcls.bench.run import run_bench
from xcls.bench.worker import Worker, allocator_settings, environment
from xcls.config.schema import Bench, Config, Dataset, Hardware, Size, Tokenizer, Training
from xcls.runs.allocator import RETAIN

BROKEN = '''
import os, signal
import torch
from xcls.attention.softmax import Sdpa

class Broken(Sdpa):
    """Fails."""

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
NODES: dict[str, Any] = {
    "attention": {
        "sdpa": {"_target_": "xcls.attention.softmax.Sdpa", "name": "sdpa"},
        "performer": {"_target_": "xcls.attention.favor.Performer", "name": "performer", "num_features": 8},
        **{name: {"_target_": f"broken_mechanisms.{name.title()}"} for name in ("broken", "killer", "greedy")},
        "invalid": {"_target_": "xcls.attention.favor.Performer", "num_features": -1},
    },
    "position": {"none": {"_target_": "xcls.position.none.NoPosition", "name": "none"}},
}


@pytest.fixture(autouse=True)
def broken_mechanisms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_mechanisms.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("XCLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.syspath_prepend(tmp_path)


def bench(folder: Path, **changes: Any) -> list[dict[str, str]]:
    settings: dict[str, Any] = {"attentions": ["sdpa", "performer"], "references": ["sdpa"], "others": False}
    settings |= {"seq_lens": [16], "dtypes": ["fp32"], "tokens_per_step": 32, "width": 16, "num_heads": 2}
    settings |= {"num_layers": 1, "rounds": 3, "seconds": 60.0, "steps_per_segment": 2}
    training = Training(batch_size=8, lr=1e-3, embedding_lr_factor=1.0)
    config = Config(
        seq_len=24,
        size=Size(num_layers=1, width=16, num_heads=2, feed_forward=32),
        dataset=Dataset(name="rows", path=str(folder / "rows.csv"), source={"_target_": "xcls.data.files.Files"}),
        tokenizer=Tokenizer(vocab_size=200),
        finetuning=training,
        pretraining=training,
        hardware=Hardware(threads=1),
        bench=Bench(**{**settings, **changes}),
    )
    assert run_bench(config, NODES, device="cpu", folder=folder, progress=False) == folder
    return list(csv.DictReader((folder / "results.csv").open()))


@pytest.mark.slow
def test_failures_are_rows_and_the_others_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["sdpa", "performer", "broken", "killer"]
    rows = bench(tmp_path, attentions=names)
    assert [(row["mechanism"], row["part"]) for row in rows] == [(n, p) for p in ("module", "core") for n in names]
    causes = {row["mechanism"]: row["cause"] for row in rows}
    assert "no such kernel" in causes["broken"] and "SIGKILL" in causes["killer"]
    for row in rows:
        good = row["mechanism"] in ("sdpa", "performer")
        assert row["status"] == ("completed" if good else "failed")
        assert (row["training_ms"] != "") == good and (float(row["training_ms"] or 1) > 0)
        assert (row["training_MiB"] != "") == (good and row["part"] == "module")
        assert (row["error_mean"] != "") == (good and row["part"] == "core")
    assert float(rows[0]["training_ms_vs_sdpa"]) == 1.0
    assert float(rows[4]["error_mean"]) < 1e-5 < float(rows[5]["error_mean"])
    assert "| performer" in capsys.readouterr().out
    about = json.loads((tmp_path / "bench.json").read_text())
    assert about["status"] == "completed" and about["versions"]["torch"] and about["settings"]["seq_lens"] == [16]
    assert about["machine"]["fp32"]["flops_per_s"] > 0 and len(about["rows"]) == 8


@pytest.mark.slow
def test_a_death_while_timing_costs_one_mechanism(tmp_path: Path) -> None:
    rows = bench(tmp_path, what="step", attentions=["killer", "sdpa"], memory=False, error=False)
    assert [(row["part"], row["status"]) for row in rows] == [("step", "failed"), ("step", "completed")]
    assert "SIGKILL" in rows[0]["cause"] and float(rows[1]["training_ms"]) > 0


@pytest.mark.slow
def test_memory_alone_and_what_was_found_before_it_ran_out(tmp_path: Path) -> None:
    changes = {"error": False, "time": False, "gradient_checkpointing": True}
    rows = bench(tmp_path, what="step", attentions=["greedy", "sdpa"], **changes)
    assert [row["status"] for row in rows] == ["failed", "completed"]
    assert rows[0]["cause"].startswith("out of memory: ")
    assert float(rows[0]["inference_MiB"]) >= 0 and rows[0]["training_MiB"] == ""
    assert float(rows[1]["training_MiB"]) > 0 and rows[1].get("training_ms", "") == ""


@pytest.mark.slow
def test_trainings_take_turns_and_one_that_fails_is_a_row(tmp_path: Path) -> None:
    lines = [f"word{row % 7} word{row % 5} and some more words to read,class {row % 3}" for row in range(100)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    rows = bench(tmp_path, what="training", attentions=["performer", "invalid"], others=installed(), references=[])
    assert len(rows) == (12 if installed() else 4)
    for row in rows:
        if row["contender"] == "invalid":
            assert row["status"] == "failed" and "num_features" in row["cause"]
            continue
        assert row["status"] == "completed" and row["rounds"] == "3", row["cause"]
        assert 0 < float(row["tokens_per_s_min"]) <= float(row["tokens_per_s"]) <= float(row["tokens_per_s_max"])
        assert 0 <= float(row["padding_share"]) < 1 and float(row["memory_MiB"]) > 0 < float(row["share_of_peak"])
        assert (row["origin"] == TRANSFORMERS) == row["contender"].startswith("BERT")
    about = json.loads((tmp_path / "bench.json").read_text())
    assert about["status"] == "completed" and len(about["rows"][0]["speeds"]) == 3


@pytest.mark.slow
def test_growth_along_an_axis(tmp_path: Path) -> None:
    axes: dict[str, Any] = {"axes": ["depth"], "depths": [1, 2], "brief": True, "error": False, "references": []}
    rows = bench(tmp_path, what="growth", attentions=["performer"], **axes)
    assert [(row["axis"], row["num_layers"], row["status"]) for row in rows] == [
        ("depth", "1", "completed"),
        ("depth", "2", "completed"),
    ]
    assert float(rows[0]["tokens_per_s"]) > 0 and float(rows[1]["parameters"]) > float(rows[0]["parameters"])


def test_a_process_that_cannot_do_its_task_says_why_and_goes_on() -> None:
    with Worker(environment("inherit", 1)) as worker:
        assert worker.ask("nothing").cause == "KeyError: 'nothing'"
        assert worker.ask("rates", dtype="fp33", device="cpu").cause == "KeyError: 'fp33'"
        worker.process.terminate()
        assert worker.ask("rates").cause == "killed by signal 15"


def test_the_allocator_is_the_same_for_all_and_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = environment("retain", 1)
    assert allocator_settings(variables).items() >= {**RETAIN, "OMP_NUM_THREADS": "1"}.items()
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    assert environment("inherit")["MALLOC_TOP_PAD_"] == "1"
    assert not set(RETAIN) & set(environment("plain")) and "MALLOC_TOP_PAD_" in os.environ
