"""mode=eval: a finished run's checkpoint once more, on validation or test; the numbers go into the run's own record."""

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
    """Scores the named checkpoint of the run in `spec.parent` on `split`, and gives the exit code.

    `eval.<split>` is added to the run's record and W&B run; its status stays what it was. With the run's own dtype and
    `eval_batch_size` the numbers equal those of its final evaluation. Raises UserError where data, classes or code are
    not those of the run.
    """
    folder, config = spec.parent, spec.config
    assert folder is not None
    _check_same(spec, read_or_refuse(folder), folder)
    checkpoint = load_for_use(folder, config.checkpoint)
    tokenizer = from_json(checkpoint["tokenizer"])
    rows, truncate = getattr(spec.data(), config.split), config.dataset.truncate
    texts = encode_cached(rows["text"], tokenizer, seq_len=config.seq_len, truncate=truncate, what=config.split)
    found = scores(rows.labels, probabilities_of(spec, checkpoint, texts, vocab_size=tokenizer.vocab_size))
    _note(folder, found, split=config.split, step=checkpoint["progress"]["step"], wandb=config.wandb)
    told = ", ".join(f"{name} {value:.4f}" for name, value in found.items() if value is not None)
    print(f"{folder.name}, {config.checkpoint} checkpoint, {config.split}: {told}")
    return 0


def _check_same(spec: RunSpec, record: Record, folder: Path) -> None:
    """Refuses data or code that are not those of the run. Raises UserError."""
    if record.data.get("fingerprint") != spec.fingerprint:
        own = str(record.data.get("fingerprint"))[:12]
        raise UserError(
            f"The data are not those of {folder}: fingerprint {spec.fingerprint[:12]}, its own {own}. "
            "Set dataset.path to the data it was trained on."
        )
    changed = changed_code(record, spec.code)
    if changed:
        raise UserError(
            f"{folder} was trained with other code of {changed} than there is now; its record must not mix the two. "
            f"Check out its commit ({record.commit}), or train again."
        )


def _note(folder: Path, found: Scores, *, split: str, step: int, wandb: Wandb) -> None:
    """Writes the scores of the checkpoint of `step` into the run's record, its events and its W&B run."""
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
