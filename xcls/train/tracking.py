"""Weights & Biases: a thread sends what the run logs. An error or delay of W&B neither blocks nor ends the run.

The run's own folder is the source of truth. W&B gets the numbers of every `step`, `eval`, `test` and `evaluation`
event, the files that `report.py` reads (record.json, metrics.csv, …), and the artifacts that `wandb.artifacts` names.
"""

from __future__ import annotations

import logging
import queue
import threading
from pathlib import Path
from shlex import quote
from typing import Any, Callable

from xcls.config.schema import Wandb
from xcls.runs.record import PATCH, Record

START_SECONDS = 10  # wait for the start of W&B, so that it does not disturb the timing of the first steps
INIT_SECONDS = 30  # wait for the server's answer
FINISH_SECONDS = {"none": 60, "best": 600, "all": 600}  # wait for the rest to be sent, by wandb.artifacts
GRACE_SECONDS = 10  # added to W&B's own time limits
EXIT_CODES = {"completed": 0, "running": 0, "failed": 1, "interrupted": 130}
TAGS = ("mode", "dataset", "attention", "position", "size")
FILES = ("record.json", "metrics.csv", "predictions.parquet", PATCH)  # for `report.py runs=[wandb:…]`

BEST_FILES = ("ckpt_best.pt", "ckpt.sha256")
MORE_FILES = ("ckpt_last.pt", "head.safetensors", "resolved_config.yaml")
ARTIFACTS = {"none": (), "best": BEST_FILES, "all": BEST_FILES + MORE_FILES}
ABOUT = ("time", "step", "split", "checkpoint_step")  # keys of an event that are no metrics


def metrics_of(event: str, details: dict[str, Any]) -> dict[str, Any] | None:
    """The row of W&B's history for an event: `step` and its numbers; None for an event without numbers."""
    prefix = {"step": "", "eval": "", "test": "test/", "evaluation": f"eval.{details.get('split')}/"}.get(event)
    if prefix is None:
        return None
    numbers = {
        prefix + key: value for key, value in details.items() if key not in ABOUT and isinstance(value, (int, float))
    }
    return {"step": details.get("step", details.get("checkpoint_step")), **numbers}


class Tracker:
    """The W&B run of one run folder. All its errors together give one warning.

    `warn` is called in the thread that calls the methods, never in W&B's.
    """

    def __init__(self, *, settings: Wandb, folder: Path, warn: Callable[[str], None]) -> None:
        self.settings, self.folder, self.warn = settings, Path(folder).resolve(), warn
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._warned = False

    def start(self, record: Record) -> None:
        """Begins or resumes the W&B run `record.wandb_id`; waits at most START_SECONDS for it."""
        if self.settings.mode == "disabled":
            return
        self.record = record
        self._thread = threading.Thread(target=self._work, name="xcls-wandb", daemon=True)
        self._thread.start()
        self._ready.wait(START_SECONDS)
        self._check()

    def log(self, event: str, details: dict[str, Any]) -> None:
        """Queues the numbers of an event of events.jsonl."""
        row = metrics_of(event, details) if self._thread is not None else None
        if row is not None:
            self._queue.put(row)
            self._check()

    def finish(self) -> None:
        """Call it after the run has written its files: waits, up to a limit, until W&B has taken the rest."""
        if self._thread is None:
            return
        self._queue.put(None)
        limit = INIT_SECONDS + FINISH_SECONDS[self.settings.artifacts] + GRACE_SECONDS
        self._thread.join(limit)
        if self._thread.is_alive():
            self._error = self._error or TimeoutError(f"W&B has not taken everything within {limit} s")
        self._thread = None
        self._check()

    def _check(self) -> None:
        """Warns of an error, once."""
        if self._error is not None and not self._warned:
            self._warned = True
            reason = f"{type(self._error).__name__}: {' '.join(str(self._error).split())[:300].rstrip('.')}"
            self.warn(
                f"W&B: {reason}. The run continues, and its folder has all results. "
                f"To send what W&B has kept: wandb sync {quote(str(self.folder / 'wandb'))}"
            )

    def _work(self) -> None:
        """The thread: starts the W&B run (offline if online fails), sends what is queued, and ends it."""
        try:
            run = self._begin()
            self._ready.set()
            for row in iter(self._queue.get, None):
                run.log(row)
            self._end(run)
        except (Exception, SystemExit) as error:  # wandb may be missing or broken, and raises many kinds
            self._error = self._error or error
        finally:
            self._ready.set()

    def _begin(self) -> Any:
        """W&B's run; offline if online fails. That error becomes a warning, and the run continues."""
        import wandb

        logging.getLogger("wandb").setLevel(logging.CRITICAL)  # `_check` warns instead
        wandb.setup(settings=wandb.Settings(silent=True))
        if self.settings.mode == "online":
            try:
                return self._init(wandb, "online")
            except Exception as error:
                self._error = error
        return self._init(wandb, "offline")

    def _init(self, wandb: Any, mode: str) -> Any:
        record = self.record
        (self.folder / "wandb").mkdir(exist_ok=True)
        limits = {"init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS[self.settings.artifacts]}
        quiet = {"silent": True, "console": "off", "disable_git": True, "disable_code": True}
        wanted = {**quiet, **limits, "finish_timeout_raises": True, "reinit": "create_new"}
        known = wandb.Settings.model_fields  # older releases have no finish_timeout
        run = wandb.init(
            project=self.settings.project,
            entity=self.settings.entity,
            dir=str(self.folder),
            mode=mode,
            id=record.wandb_id,
            resume="allow" if mode == "online" else None,
            name=record.run if str(self.folder).endswith(record.run) else self.folder.name,
            group=record.exp,
            job_type=record.mode,
            tags=[f"{group}={record.choices[group]}"[:64] for group in TAGS if group in record.choices],
            config={**record.config, "hash": record.hash},
            settings=wandb.Settings(**{key: value for key, value in wanted.items() if key in known}),
        )
        run.define_metric("*", step_metric="step")  # a resumed run may log steps again that W&B already has
        self._upload(run)  # at once, so that W&B has record.json even of a run that is killed
        return run

    def _upload(self, run: Any) -> None:
        """Names the files that W&B sends when the run ends."""
        for name in FILES:
            if (self.folder / name).is_file():
                run.save(str(self.folder / name), base_path=str(self.folder), policy="end")

    def _end(self, run: Any) -> None:
        record = self.record
        scores = {f"{split}/{name}": value for split, found in record.metrics.items() for name, value in found.items()}
        run.summary.update({**scores, "status": record.status, "cause": record.cause, "best_step": record.best_step})
        self._upload(run)
        names = [name for name in ARTIFACTS[self.settings.artifacts] if (self.folder / name).is_file()]
        if names and record.status == "completed":
            import wandb

            artifact = wandb.Artifact(f"run-{record.wandb_id}", type="model", metadata={"hash": record.hash})
            for name in names:
                artifact.add_file(str(self.folder / name), name=name)
            run.log_artifact(artifact)
        if record.status == "interrupted":
            run.mark_preempting()
        run.finish(exit_code=EXIT_CODES[record.status])
