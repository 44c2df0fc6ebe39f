"""bench=growth: point by point along each axis, every contender in a process of its own, by turns."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from xcls.bench.growth_plan import ROWS, STARTUP, Cell, GrowthPlan, cell_recipe, cell_texts
from xcls.bench.growth_results import add_bytes_per_row, report, to_csv
from xcls.bench.growth_rows import write_rows
from xcls.bench.growth_startup import startup_rows
from xcls.bench.process import allocator_settings, environment, measure
from xcls.bench.results import COMPLETED, Row, fail
from xcls.bench.training_meter import TIME, WARM
from xcls.bench.training_plan import Recipe, TextFiles, as_job, make_recipe
from xcls.bench.training_process import TrainingProcess
from xcls.bench.training_results import add_segments
from xcls.config.schema import Config
from xcls.runs.record import plain, write_atomic
from xcls.train.provenance import commit
from xcls.train.versions import describe_device, versions

STEPS_OF_ROWS = 50  # of steps_per_segment: steps of the trainings on files
SEQ_LEN_OF_ROWS = 64


class Growth:
    """A bench under way: its rows, and the processes that fill them."""

    def __init__(self, config: Config, plan: GrowthPlan, *, device: str, scratch: Path, bar: tqdm) -> None:
        self.config, self.plan, self.device, self.scratch, self.bar = config, plan, device, scratch, bar
        self.variables = environment(config.bench.allocator)
        self.rows: list[Row] = []
        self.slow: dict[tuple[str, str], str] = {}  # (axis, contender) -> why it goes no further

    def cell(self, cell: Cell) -> None:
        """Starts all contenders that are still quick enough, and times them by turns."""
        recipe = cell_recipe(self.config, cell, device=self.device, texts=cell_texts(cell, self.scratch))
        rows = [self._row(cell, contender.name) for contender in self.plan.contenders]
        self.rows += rows
        processes: dict[int, TrainingProcess] = {}
        try:
            for place, contender in enumerate(self.plan.contenders):
                reason = self.slow.get((cell.axis, contender.name))
                if reason is not None:
                    fail(rows[place], reason)
                    continue
                self.bar.set_postfix_str(f"{cell.axis}: {contender.name} starts")
                processes[place] = TrainingProcess(as_job(recipe, contender, count=False), self.variables)
                if processes[place].ready:
                    rows[place]["parameters"] = processes[place].ready["parameters"]
                for _ in range(2):
                    processes[place].ask(WARM)
            self._rounds(processes, rows)
        finally:
            for process in processes.values():
                process.close()
        for row in rows:
            seconds = row.get("step_ms", 0.0) / 1000
            if seconds > self.config.bench.longest_step:
                why = f"a step takes {seconds:.1f} s already at the point before"
                self.slow[(cell.axis, row["contender"])] = why
        self.bar.update()

    def _rounds(self, processes: dict[int, TrainingProcess], rows: list[Row]) -> None:
        """The timed segments, by turns; after `seconds` the least number of rounds is enough."""
        settings, began = self.config.bench, time.perf_counter()
        timed: dict[int, list[dict[str, Any]]] = {place: [] for place in processes}
        for number in range(settings.rounds):
            if number >= settings.least_rounds and time.perf_counter() - began > settings.seconds:
                break
            for place, process in processes.items():
                segment = process.ask(TIME)
                if segment is not None:
                    timed[place].append(segment)
        for place, process in processes.items():
            if process.cause is not None:
                fail(rows[place], process.cause)
            elif timed[place]:
                add_segments(rows[place], timed[place])

    def _row(self, cell: Cell, contender: str) -> Row:
        settings = self.config.bench
        where = {"position": settings.positions[0], "dtype": settings.dtypes[0]}
        return {"contender": contender, **where, **asdict(cell), "status": COMPLETED, "cause": None}

    def documents(self, count: int) -> None:
        """The path of a file with `count` rows, with cold caches and with warm ones."""
        contender, settings = self.plan.contenders[0], self.config.bench
        row: Row = {"axis": ROWS, "contender": contender.name, "rows": count, "status": COMPLETED, "cause": None}
        self.rows.append(row)
        place = self.scratch / f"rows-{count}"
        place.mkdir()
        write_rows(place / "rows.csv", count)
        variables = {**self.variables, "XCLS_CACHE": str(place / "cache")}
        job = {
            "recipe": asdict(self._recipe_of_rows()),
            "contender": asdict(contender),
            "path": str(place / "rows.csv"),
            "rows": count,
            "tokenizer": asdict(self.config.tokenizer),
            "threads": self.config.hardware.threads,
        }
        told: dict[str, dict[str, Any]] = {}
        for caches in ("cold", "warm"):
            self.bar.set_postfix_str(f"{count:,} documents, {caches} caches")
            outcome = measure({**job, "began": time.time()}, variables, lambda event: None, "xcls.bench.growth_rows")
            if outcome.cause is not None:
                fail(row, outcome.cause)
                return
            told[caches] = outcome.of("rows")[0]
        row |= {"dtype": settings.dtypes[0], "position": settings.positions[0], "seq_len": SEQ_LEN_OF_ROWS}
        row |= {"batch": self.config.finetuning.batch_size, "width": settings.width, "num_layers": settings.num_layers}
        for caches, event in told.items():
            row[f"prepare_{caches}_s"], row[f"first_step_{caches}_s"] = event["prepare_s"], event["first_step_s"]
        row |= {"memory_MiB": told["cold"]["memory_MiB"], "memory_warm_MiB": told["warm"]["memory_MiB"]}
        row |= {"prepare_MiB": told["cold"]["prepare_MiB"], "tokens_per_s": told["warm"]["tokens_per_s"]}
        row["file_MiB"] = (place / "rows.csv").stat().st_size / 2**20
        row["cache_MiB"] = sum(file.stat().st_size for file in (place / "cache").rglob("*") if file.is_file()) / 2**20

    def _recipe_of_rows(self) -> Recipe:
        """Fine-tuning by the run's own recipe, for a few steps."""
        settings, nothing = self.config.bench, TextFiles("", "", "", 0, 0)
        recipe = make_recipe(self.config, "finetune", device=self.device, dtype=settings.dtypes[0], texts=nothing)
        size = replace(
            recipe.size,
            width=settings.width,
            num_heads=settings.num_heads,
            num_layers=settings.num_layers,
            feed_forward=4 * settings.width,
        )
        training = replace(
            recipe.training, max_steps=STEPS_OF_ROWS * settings.steps_per_segment, eval_every_epochs=None
        )
        return replace(recipe, size=size, seq_len=SEQ_LEN_OF_ROWS, training=training)


def _write(growth: Growth, folder: Path, about: dict[str, Any]) -> None:
    """results.csv and bench.json as they stand."""
    config = growth.config
    add_bytes_per_row(growth.rows)
    write_atomic(folder / "results.csv", to_csv(growth.rows))
    whole = {
        "name": config.bench.name,
        "settings": asdict(config.bench),
        "finetuning": asdict(config.finetuning),
        "hardware": asdict(config.hardware),
        "attentions": growth.plan.nodes,
        "versions": versions(),
        "commit": commit(),
        "environment": allocator_settings(growth.variables),
        **about,
        "rows": growth.rows,
    }
    write_atomic(folder / "bench.json", json.dumps(plain(whole), indent=1, ensure_ascii=False) + "\n")


def run_growth_bench(
    config: Config, plan: GrowthPlan, *, device: str, folder: Path, root: Path, progress: bool
) -> Path:
    """Measures, prints the tables, leaves results.csv and bench.json in `folder`, which it returns.

    device: 'cpu' or 'cuda'; root: the project whose run.py is started. A contender that fails is a row with its cause.
    """
    settings, folder = config.bench, Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    threads = {"threads": config.hardware.threads} if config.hardware.threads else {}
    about = {"device": describe_device(torch.device(device)) | threads, "started": time.time()}
    counts = sorted(settings.row_counts) if ROWS in settings.axes else []
    total, status = len(plan.cells) + len(counts) + (STARTUP in settings.axes), "interrupted"
    with tempfile.TemporaryDirectory() as place, tqdm(total=total, desc="bench", disable=not progress) as bar:
        growth = Growth(config, plan, device=device, scratch=Path(place), bar=bar)
        try:
            if STARTUP in settings.axes:
                bar.set_postfix_str("start-up")
                growth.rows += startup_rows(root, starts=settings.starts, words=[f"wandb={config.wandb.mode}"])
                bar.update()
            for cell in plan.cells:
                growth.cell(cell)
                _write(growth, folder, {**about, "status": "running"})
            for count in counts:
                growth.documents(count)
                bar.update()
                _write(growth, folder, {**about, "status": "running"})
            status = "completed"
        finally:
            _write(growth, folder, {**about, "status": status, "ended": time.time()})
    print(report(growth.rows))
    print(f"Written: {folder / 'results.csv'} and bench.json beside it.")
    return folder
