"""What others see of a run while it runs, long before its first evaluation: its step, the total, the time left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.samples import CPU, HARDWARE, TinyTokenizer, make_classifier, make_data, make_journal, make_training
from xcls.runs import status
from xcls.runs.record import Events, read_record
from xcls.runs.run_status import read_run
from xcls.stages.finetune import finetune


def watched(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[dict[str, Any]]:
    """Runs a fine-tuning of 10 steps, and gives what was to be seen after each of its events."""
    seen: list[dict[str, Any]] = []
    add = Events.add

    def add_and_look(self: Events, event: str, details: dict[str, Any] | None = None) -> None:
        add(self, event, details)
        run = read_run(folder, "r", 0.0)
        table = "\n".join(status.table([status.SweepStatus(name="finetune", runs=[run])], 160))
        seen.append({"event": event, "record": read_record(folder), "run": run, "table": table, "parent": run.numbers})

    monkeypatch.setattr(Events, "add", add_and_look)
    journal = make_journal(folder)
    with journal:
        finetune(
            model=make_classifier(),
            data=make_data(),
            tokenizer=TinyTokenizer(),
            training=make_training(eval_every_steps=None, **changes),
            hardware=HARDWARE,
            precision=CPU,
            seed=0,
            journal=journal,
            resume=False,
        )
    return seen


def test_step_total_and_time_left_are_there_before_the_first_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(tmp_path, monkeypatch, max_steps=10, checkpoint_every_steps=None)
    early = [look for look in seen[: [look["event"] for look in seen].index("eval")] if look["event"] == "step"]
    assert len(early) == 10
    assert (early[0]["record"].steps, early[0]["run"].step, early[0]["run"].steps) == (10, 1, 10)
    assert "1/10 (10%)" in early[0]["table"] and early[0]["parent"].startswith("1/10 loss ")
    assert early[1]["run"].left is not None and early[1]["run"].left > 0
