"""mode=eval: evaluates a checkpoint of a finished run again, on validation or test; adds the scores to its record."""

from __future__ import annotations

import sys
from pathlib import Path

from xcls.config.schema import UserError, Wandb
from xcls.data.encode import encode_cached
from xcls.data.tokenizer import from_json
from xcls.runs.folder import changed_code, read_or_refuse
from xcls.runs.record import Events, Record, read_record, write_record
from xcls.stages.predictions import probabilities_of
from xcls.stages.spec import RunSpec
from xcls.train.checkpoint import load_for_use
from xcls.train.metrics import Scores, scores
from xcls.train.tracking import Tracker


def evaluate(spec: RunSpec) -> int:
    """Scores the named checkpoint of the run in `spec.parent` on `split`. Returns the exit code.

    Adds `eval.<split>` to the run's record and W&B run; the status stays the same. With the run's own dtype and
    `eval_batch_size` the scores equal those of its final evaluation. Raises UserError if data or code differ from those
    of the run.
    """
    folder, config = spec.parent, spec.config
    assert folder is not None
    _check_same(spec, read_or_refuse(folder), folder)
    checkpoint = load_for_use(folder, config.checkpoint)
    tokenizer = from_json(checkpoint["tokenizer"])
    rows, truncate = getattr(spec.data(), config.split), config.dataset.truncate
    texts = encode_cached(rows["text"], tokenizer, seq_len=config.seq_len, truncate=truncate, what=config.split)
    found = scores(rows.labels, probabilities_of(spec, checkpoint, texts, vocab_size=tokenizer.vocab_size))
    _write_scores(folder, found, split=config.split, step=checkpoint["progress"]["step"], wandb=config.wandb)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items() if value is not None)
    print(f"{folder.name}, {config.checkpoint} checkpoint, {config.split}: {shown}")
    return 0


def _check_same(spec: RunSpec, record: Record, folder: Path) -> None:
    """Refuses data or code that differ from those of the run. Raises UserError."""
    if record.data.get("fingerprint") != spec.fingerprint:
        own = str(record.data.get("fingerprint"))[:12]
        raise UserError(
            f"The data differ from those of {folder}: fingerprint {spec.fingerprint[:12]}, not {own}. "
            "Set dataset.path to the data of its training."
        )
    changed = changed_code(record, spec.code)
    if changed:
        raise UserError(
            f"The code of {changed} has changed since {folder} was trained, and one record must not mix two versions. "
            f"Check out its commit ({record.commit}), or train again."
        )


def _write_scores(folder: Path, found: Scores, *, split: str, step: int, wandb: Wandb) -> None:
    """Writes the scores of the checkpoint of step `step` into the run's record, events and W&B run."""
    record, events = read_record(folder), Events(folder)
    record.metrics[f"eval.{split}"] = found
    events.add("evaluation", {"split": split, "checkpoint_step": step, **found})
    write_record(record, folder)

    def warn(message: str) -> None:
        events.add("warning", {"message": message})
        print(f"WARNING: {message}", file=sys.stderr)

    if record.wandb_id is not None:
        tracker = Tracker(settings=wandb, folder=folder, warn=warn)
        tracker.start(record)
        tracker.log("evaluation", {"split": split, "checkpoint_step": step, **found})
        tracker.finish()
