"""bench=training: every contender in a process of its own, segments by turns (A B C … A B C …), rows and files.

On a GPU each sees that one GPU alone, and leaves it between its turns, but for CUDA's own context (some hundred MB).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from xcls.bench.cases import OURS
from xcls.bench.peaks import card_peak
from xcls.bench.process import allocator_settings, environment
from xcls.bench.results import Row, fail
from xcls.bench.timing import LEAST_ROUNDS
from xcls.bench.training_meter import COUNT, PARTS, PEAK, TIME, WARM
from xcls.bench.training_plan import (
    TRANSFORMERS,
    Contender,
    Recipe,
    StageText,
    TrainingPlan,
    as_job,
    make_recipe,
    write_texts,
)
from xcls.bench.training_process import TrainingProcess
from xcls.bench.training_results import add_parts, add_segments, add_work, compare, report, row_of, to_csv
from xcls.config.schema import Config
from xcls.runs.record import plain, write_atomic
from xcls.train.provenance import commit
from xcls.train.versions import describe_device, versions

Segment = dict[str, Any]


class Contest:
    """The trainings of one stage and dtype, side by side."""

    def __init__(
        self,
        *,
        recipe: Recipe,
        contenders: list[Contender],
        variables: dict[str, dict[str, str]],
        bar: tqdm,
        card: float | None = None,
    ) -> None:
        """variables: the environment of a process, for each origin of a contender. card: operations a second by its data sheet."""
        self.card = card
        self.recipe, self.contenders, self.variables, self.bar = recipe, contenders, variables, bar
        self.rows = [row_of(recipe, contender) for contender in contenders]
        self.processes: dict[int, TrainingProcess] = {}
        self.counted: dict[int, Segment | None] = {}
        self.peak: float | None = None

    def run(self, rounds: int, seconds: float) -> None:
        """Starts and warms up all, times the rounds, then each once more for the parts of its step."""
        try:
            for place in range(len(self.contenders)):
                self._start(place)
            timed = self._rounds(rounds, seconds)
            for place, segments in timed.items():
                if place in self.processes:
                    add_segments(self.rows[place], segments)
            for place in list(self.processes):
                segment = self._turn(place, PARTS)
                if segment is not None:
                    add_parts(self.rows[place], segment)
            rates = [told["flops_per_s"] for place in list(self.processes) if (told := self._turn(place, PEAK))]
            self.peak = max(rates, default=None)
            for place, row in enumerate(self.rows):
                add_work(row, self.counted.get(place), self.peak, self.card)
        finally:
            for process in self.processes.values():
                process.close()

    def _start(self, place: int) -> None:
        """Starts a training and lets two segments pass, the first of them counted where the counter can follow."""
        for count in (False,) if self.recipe.compile else (True, False):
            self._show(place, "start")
            contender = self.contenders[place]
            process = TrainingProcess(as_job(self.recipe, contender, count=count), self.variables[contender.origin])
            first = process.ask(COUNT if count else WARM) if process.ready else None
            if first is not None:
                self.processes[place] = process
                self.counted[place] = first if count else None
                self.rows[place]["parameters"] = process.ready["parameters"]
                self._turn(place, WARM)
                self.bar.update()
                return
            failed = process.ready is None  # before the counter had anything to do with it
            cause = process.cause
            process.close()
            if failed:
                break
        fail(self.rows[place], str(cause))
        self.bar.update()

    def _rounds(self, rounds: int, seconds: float) -> dict[int, list[Segment]]:
        """The timed segments of each that is left, by turns. Once `seconds` are over, LEAST_ROUNDS are enough."""
        timed: dict[int, list[Segment]] = {place: [] for place in self.processes}
        began = time.perf_counter()
        for number in range(rounds):
            if number >= LEAST_ROUNDS and time.perf_counter() - began > seconds:
                break
            for place in list(self.processes):
                segment = self._turn(place, TIME, f", round {number + 1}")
                if segment is not None:
                    timed[place].append(segment)
            self.bar.update()
        return timed

    def _turn(self, place: int, word: str, more: str = "") -> Segment | None:
        """Asks one training for a segment. One that fails is out, and its row says why."""
        self._show(place, word + more)
        event = self.processes[place].ask(word)
        if event is None:
            process = self.processes.pop(place)
            fail(self.rows[place], str(process.cause))
            process.close()
        return event

    def _show(self, place: int, doing: str) -> None:
        self.bar.set_postfix_str(f"{self.recipe.stage}, {self.contenders[place].name}: {doing}")


def _write(
    config: Config, plan: TrainingPlan, folder: Path, rows: list[Row], peaks: dict[str, float], about: dict[str, Any]
) -> None:
    """results.csv and bench.json as they stand."""
    compare(rows)
    write_atomic(folder / "results.csv", to_csv(rows))
    known = {name: _version(name) for name in ("transformers", "accelerate")}
    keys = ("size", "dataset", "tokenizer", "masking", "head", "pretraining", "finetuning", "hardware")
    whole = {
        "name": config.bench.name,
        "settings": asdict(config.bench),
        "seq_len": config.seq_len,
        "seed": config.seed,
        **{key: asdict(getattr(config, key)) for key in keys},
        "attentions": plan.nodes,
        "machine": peaks,
        "versions": {**versions(), **known},
        "commit": commit(),
        "notes": plan.notes,
        **about,
        "rows": rows,
    }
    write_atomic(folder / "bench.json", json.dumps(plain(whole), indent=1, ensure_ascii=False) + "\n")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def run_training_bench(
    config: Config,
    plan: TrainingPlan,
    *,
    texts: dict[str, StageText],
    vocab_size: int,
    continues: np.ndarray,
    device: str,
    folder: Path,
    progress: bool,
    fingerprint: str = "",
) -> Path:
    """Measures, prints the tables, leaves results.csv and bench.json in `folder`, which it returns.

    texts: the training text of each of bench.stages. continues: bool [V], the tokens that go on with a word. device:
    'cpu' or 'cuda'. A contender that fails is a row with its cause; the others go on.
    """
    settings, rows, peaks = config.bench, [], {}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for note in plan.notes:
        print(note, file=sys.stderr)
    theirs = settings.allocator if settings.others_allocator == "same" else settings.others_allocator
    variables = {OURS: environment(settings.allocator), TRANSFORMERS: environment(theirs)}
    threads = {"threads": config.hardware.threads} if config.hardware.threads else {}
    about = {
        "device": describe_device(torch.device(device)) | threads,
        "environment": allocator_settings(variables[OURS]),
        "others_environment": allocator_settings(variables[TRANSFORMERS]),
        "fingerprint": fingerprint,
        "started": time.time(),
    }
    total = len(settings.dtypes) * sum(len(plan.contenders[stage]) + settings.rounds for stage in settings.stages)
    status = "interrupted"
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=total, desc="bench", disable=not progress) as bar:
        try:
            for stage in settings.stages:
                text = {"vocab_size": vocab_size, "continues": continues}
                files = write_texts(texts[stage], Path(scratch) / stage, **text)
                for dtype in settings.dtypes:
                    recipe = make_recipe(config, stage, device=device, dtype=dtype, texts=files)
                    contenders = plan.contenders[stage]
                    card = card_peak(about["device"].get("name"), dtype)
                    contest = Contest(recipe=recipe, contenders=contenders, variables=variables, bar=bar, card=card)
                    rows += contest.rows
                    contest.run(settings.rounds, settings.seconds)
                    if contest.peak is not None:
                        peaks[dtype] = max(contest.peak, peaks.get(dtype, 0.0))
                    _write(config, plan, folder, rows, peaks, {**about, "status": "running"})
            status = "completed"
        finally:
            _write(config, plan, folder, rows, peaks, {**about, "status": status, "ended": time.time()})
    print(report(rows, peaks))
    print(f"Written: {folder / 'results.csv'} and bench.json beside it.")
    return folder
