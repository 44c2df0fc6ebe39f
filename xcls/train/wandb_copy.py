"""Copies a run to Weights & Biases: a process of its own beside the run, or later, by hand.

    python -m xcls.train.wandb_copy finetune/base                  writes what W&B lacks into finetune/base/wandb/
    python -m xcls.train.wandb_copy finetune/base --mode online    sends it at once

The run's journal (`events.jsonl`, `record.json`) is the truth, W&B holds a copy of it: every `step`, `eval`, `test` and
`evaluation` event is one row of W&B's history, in their order, each once. A row carries its number (`row`), so that a
copy that was cut short goes on where it stopped: offline by the segments on disk, online by the summary that the server
has. The process that trains never talks to W&B, so nothing that happens here can hold it or end it, and neither its
time nor its memory is W&B's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import secrets
import sys
import threading
import time
from pathlib import Path
from typing import Any, Iterator

from filelock import FileLock

from xcls.runs.record import PATCH, read_record, write_record
from xcls.runs.wandb_file import METRICS, RECORD, last_row, mend, read_segments

INIT_SECONDS = 30  # for a server to answer
FINISH_SECONDS = {"none": 60, "best": 600, "all": 600}  # to send what is left, by wandb.artifacts
POLL_SECONDS = 0.5
EXIT_CODES = {
    "completed": 0,
    "failed": 1,
    "interrupted": 130,
    "running": 137,
}  # still running, its process gone: killed
FOREIGN = ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH")  # in a sweep of its own W&B ignores the id that we give
TAGS = ("mode", "dataset", "attention", "position", "size")
ARTIFACTS = "xcls_artifacts"  # key of the summary: the files that were sent
FILES = {
    "none": (),
    "best": ("ckpt_best.pt",),
    "all": (
        "ckpt_best.pt",
        "ckpt_last.pt",
        "head.safetensors",
        "resolved_config.yaml",
        "metrics.csv",
        "predictions.parquet",
        PATCH,
    ),
}


class Journal:
    """The rows that `events.jsonl` holds for W&B, as they come."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / "events.jsonl"
        self.offset = self.count = self.step = 0

    def new_rows(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """Each row that was written since the last call, and whether it is an evaluation. Half a line waits."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            lines, _, _ = file.read().rpartition(b"\n")
        self.offset += len(lines) + 1 if lines else 0
        for line in lines.splitlines():
            try:
                event = json.loads(line)
            except ValueError:  # cut in half by a kill, then continued by the resumed run
                continue
            values = row_of(event, self.step) if isinstance(event, dict) else None
            if values is not None:
                self.step = values["step"]
                yield {"row": self.count, **values}, event["event"] != "step"
                self.count += 1


def row_of(event: dict[str, Any], step: int) -> dict[str, Any] | None:
    """What an event says in numbers, None where that is nothing. `step` is that of the row before."""
    kind = event.get("event")
    prefix = {"step": "", "eval": "", "test": "test/", "evaluation": f"eval.{event.get('split')}/"}.get(kind)
    if prefix is None:
        return None
    if kind == "evaluation":
        step = event.get("checkpoint_step", step)
    about = ("event", "time", "step", "split", "checkpoint_step")
    numbers = {key: value for key, value in event.items() if key not in about and isinstance(value, (int, float))}
    values = {prefix + key: value for key, value in numbers.items()}
    return {"step": event.get("step", step), "_timestamp": event["time"], **values}


class Copy:
    """One session with W&B: the rows that it lacks, then those that come."""

    def __init__(self, *, folder: Path, mode: str) -> None:
        self.folder = Path(folder).resolve()
        self.mode = mode
        self.journal = Journal(self.folder)
        self.record = read_record(self.folder)
        if self.record.wandb_id is None:  # W&B was disabled when it ran
            self.record.wandb_id = secrets.token_hex(4)
            write_record(self.record, self.folder)
        self.run: Any = None
        self.sent = -1  # number of the last row that W&B has
        self.has_artifacts = False

    def begin(self, parent: int | None) -> None:
        """Starts the session; `parent` is the process that trains, whose use of the machine W&B shows."""
        for name in FOREIGN:
            os.environ.pop(name, None)
        import wandb

        logging.getLogger("wandb").setLevel(logging.ERROR)
        record, online = self.record, self.mode == "online"
        if not online:  # what the earlier segments have
            for path in (self.folder / "wandb").glob("offline-run-*/*.wandb"):
                mend(path)
            segments = read_segments(self.folder / "wandb", record.wandb_id)
            self.sent, self.has_artifacts = last_row(segments), any(segment.artifacts for segment in segments)
        watched = {"x_stats_pid": parent} if parent else {"x_disable_stats": True}
        self.run = wandb.init(
            project=record.config.get("wandb.project") or "xcls",
            entity=record.config.get("wandb.entity"),
            dir=str(self.folder),
            mode=self.mode,
            id=record.wandb_id,
            resume="allow" if online else None,
            name=record.run if str(self.folder).endswith(record.run) else self.folder.name,
            group=record.exp,
            job_type=record.mode,
            tags=[f"{group}={record.choices[group]}"[:64] for group in TAGS if group in record.choices],
            config={**record.config, "hash": record.hash},
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, disable_code=True, init_timeout=INIT_SECONDS, **watched
            ),
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        self.run.define_metric("row", hidden=True)
        if online:  # what the server has of it
            self.sent = int(self.run.summary.get("row", -1))
            self.has_artifacts = bool(self.run.summary.get(ARTIFACTS))
        self.describe()  # so that a run that is killed early can be told from W&B alone

    def send_new(self) -> None:
        """Sends the rows that have come, and the record with every evaluation."""
        evaluated = False
        for row, evaluation in self.journal.new_rows():
            if row["row"] > self.sent:
                self.run.log(row)
                self.sent, evaluated = row["row"], evaluated or evaluation
        if evaluated:
            self.describe()

    def describe(self, *, final: bool = False) -> None:
        """Puts into the summary how the run stands, and for the report the whole record."""
        self.record = record = read_record(self.folder)
        scores = {f"{split}/{name}": value for split, found in record.metrics.items() for name, value in found.items()}
        text = (self.folder / "record.json").read_text(encoding="utf-8")
        status = "killed" if final and record.status == "running" else record.status
        state = {"status": status, "cause": record.cause, "best_step": record.best_step, RECORD: text}
        self.run.summary.update({**scores, **state})

    def end(self) -> None:
        """Sends the last of it and closes the session. Raises RuntimeError where it did not reach the disk."""
        self.send_new()
        self.describe(final=True)
        metrics = self.folder / "metrics.csv"
        if metrics.is_file():
            self.run.summary.update({METRICS: metrics.read_text(encoding="utf-8")})
        if self.record.status == "completed" and not self.has_artifacts:
            self._keep_files(FILES[self.record.config.get("wandb.artifacts", "none")])
        if self.record.status == "interrupted":
            self.run.mark_preempting()
        self.run.finish(exit_code=EXIT_CODES[self.record.status])
        if self.mode == "offline":
            import wandb

            wandb.teardown()  # only then is the file whole
            segments = read_segments(self.folder / "wandb", self.record.wandb_id)
            if last_row(segments) < self.sent or not segments or segments[-1].exit_code is None:
                raise RuntimeError(f"{last_row(segments) + 1} of {self.sent + 1} rows reached the disk; is it full?")

    def _keep_files(self, names: tuple[str, ...]) -> None:
        """Sends those of the run's files that exist as one artifact of type `run`, without copying them first."""
        import wandb

        present = [self.folder / name for name in names if (self.folder / name).is_file()]
        if not present:
            return
        artifact = wandb.Artifact(f"run-{self.record.wandb_id}", type="run")
        for file in present:
            artifact.add_file(str(file), policy="immutable", skip_cache=True)
        self.run.log_artifact(artifact)
        self.run.summary.update({ARTIFACTS: [file.name for file in present]})


def follow(copy: Copy, ended: threading.Event, parent: int) -> None:
    """Sends what comes until the run has ended, or its process is gone."""
    last = False
    while not last:
        last = ended.is_set() or os.getppid() != parent
        copy.send_new()
        ended.wait(POLL_SECONDS)


def watch(ended: threading.Event, seconds: float) -> None:
    """Waits for the word that the run has ended (a line, or the end of input); ends this process if W&B does not."""
    sys.stdin.readline()
    ended.set()
    time.sleep(seconds)
    say(f"TimeoutError: W&B has not taken everything within {seconds:.0f} s")
    os._exit(3)


def say(text: str) -> None:
    """A line on stdout, if the run is still there to read it."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def copy_run(folder: Path, mode: str, *, following: bool) -> None:
    """Copies the run in `folder`, alone: a second process waits its turn. Raises whatever goes wrong."""
    ended, parent = threading.Event(), os.getppid()
    copy = Copy(folder=folder, mode=mode)
    if following:
        limit = patience(copy.record.config.get("wandb.artifacts", "none"))
        threading.Thread(target=watch, args=(ended, limit), daemon=True).start()
    (copy.folder / "wandb").mkdir(exist_ok=True)
    with FileLock(str(copy.folder / "wandb" / ".lock"), timeout=patience("none")):
        copy.begin(parent if following else None)
        if following:
            say("ready")
            follow(copy, ended, parent)
        copy.end()
    if not following:
        later = f" Then: wandb sync {copy.folder / 'wandb'}" if mode == "offline" else ""
        say(f"W&B's copy of {folder} is whole: {copy.sent + 1} rows.{later}")


def patience(artifacts: str) -> float:
    """Seconds after the end of a run in which W&B may begin and finish."""
    return INIT_SECONDS + FINISH_SECONDS[artifacts]


def main() -> int:
    """0: W&B has all of it; 1: it has not, and the reason is one line on stdout."""
    parser = argparse.ArgumentParser(prog="python -m xcls.train.wandb_copy", description="Copies a run to W&B.")
    parser.add_argument("folder", type=Path, help="a run folder, e.g. finetune/base")
    parser.add_argument("--mode", choices=("offline", "online"), default="offline")
    parser.add_argument("--follow", action="store_true", help="as a run does: until standard input says it has ended")
    options = parser.parse_args()
    try:
        copy_run(options.folder, options.mode, following=options.follow)
    except (Exception, SystemExit) as error:  # wandb raises the latter too
        first = (str(error).strip().splitlines() or [""])[0]
        say(f"{type(error).__name__}: {first[:200]}")
        os._exit(1)  # past whatever still hangs in wandb's threads and exit handlers
    return 0


if __name__ == "__main__":
    sys.exit(main())
