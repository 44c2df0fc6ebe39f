"""mode=eval: a finished run's checkpoint once more, on validation or test; the numbers go into the run's own record."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from xcls.config.schema import Hardware, Wandb
from xcls.model.heads import TextClassifier
from xcls.runs.record import Events, read_record, write_record
from xcls.stages.finetune import score_split
from xcls.stages.texts import Labelled
from xcls.train.amp import Amp
from xcls.train.metrics import Scores, scores, softmax
from xcls.train.precision import Precision
from xcls.train.tracking import Tracker


def evaluate(
    *,
    model: TextClassifier,
    checkpoint: dict[str, Any],
    rows: Labelled,
    split: str,
    folder: Path,
    eval_batch_size: int,
    hardware: Hardware,
    precision: Precision,
    wandb: Wandb,
) -> Scores:
    """Scores the checkpoint (`load_for_use`) of the run in `folder` on `rows` and adds `eval.<split>` to its record.

    With the run's own dtype and `eval_batch_size` the numbers equal those of its final evaluation. They are logged
    under the run's W&B id as well. The run's status stays what it was.
    """
    amp = Amp(precision=precision, hardware=hardware)
    model.to(amp.device)
    model.load_state_dict(checkpoint["model"])
    result = score_split(model, rows, size=eval_batch_size, amp=amp)
    found = scores(rows.labels, softmax(result.logits))
    record, events = read_record(folder), Events(folder)
    record.metrics[f"eval.{split}"] = found
    step = checkpoint["progress"]["step"]

    events.add("evaluation", {"split": split, "checkpoint_step": step, **found})
    write_record(record, folder)

    def warn(message: str) -> None:
        events.add("warning", {"message": message})
        print(f"WARNING: {message}", file=sys.stderr)

    if record.wandb_id is not None:  # the run was tracked: the same W&B run gets these numbers too
        tracker = Tracker(settings=wandb, folder=folder, warn=warn)
        tracker.start()
        tracker.finish()
    return found
