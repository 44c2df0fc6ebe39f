"""mode=bench: plan, measure, compare, print. What is measured is written after every length and dtype."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from xcls.bench.cases import OURS, Case
from xcls.bench.others import others
from xcls.bench.plan import MEMORY_PARTS, Cell, Plan, make_plan
from xcls.bench.plot import crossover_plot
from xcls.bench.process import Outcome, allocator_settings, environment, measure
from xcls.bench.results import (
    COMPLETED,
    FAILED,
    Row,
    add_error,
    add_memory,
    add_times,
    compare,
    crossovers,
    fail,
    hold_against,
    row_of,
    to_csv,
)
from xcls.bench.table import TITLES, report
from xcls.config.schema import Bench
from xcls.runs.record import plain, write_atomic
from xcls.train.checkpoint import write_bytes
from xcls.train.provenance import commit
from xcls.train.versions import describe_device, versions


class Measuring:
    """A bench under way: its rows, and the processes that fill them."""

    def __init__(
        self, *, settings: Bench, plan: Plan, device: str, folder: Path, threads: int | None, bar: tqdm
    ) -> None:
        self.settings, self.plan, self.bar = settings, plan, bar
        self.device, self.folder, self.threads = device, folder, threads
        self.variables = environment(settings.allocator)
        self.rows: list[Row] = []
        self.machine: dict[str, dict[str, float]] = {}  # dtype -> rates
        self.started = time.time()

    def cell(self, cell: Cell) -> None:
        """Memory of each, then the time of all that are left, then their error; then everything is written."""
        rows = [row_of(case) for case in cell.cases]
        self.rows += rows
        if self.settings.memory:
            self._memory(cell, rows)
        if self.settings.time:
            self._time(cell, rows)
        if self.settings.error:
            self._error(cell, rows)
        self.write("running")

    def trained(self) -> None:
        """The error on the queries and keys of a trained run's layers, a row for each mechanism."""
        names = list(self.plan.nodes)
        job = {
            "folder": self.settings.trained,
            "device": self.device,
            "nodes": [self.plan.nodes[name] for name in names],
        }
        outcome = self._ask("trained", job, names)
        told = {event["case"]: event for event in (*outcome.of("error"), *outcome.of("no_error"))}
        for place, name in enumerate(names):
            row = dict.fromkeys(("position", "seq_len", "batch"))
            row |= {"mechanism": name, "origin": OURS, "part": "trained", "dtype": "fp32", "device": self.device}
            row["status"] = COMPLETED
            event = told.get(place, {"cause": outcome.cause})
            add_error(row, event)
            if event.get("cause"):
                fail(row, event["cause"])
            self.rows.append(row)

    def _ask(self, task: str, job: dict[str, Any], names: list[str]) -> Outcome:
        """Runs one measuring process, with its doings beside the progress bar."""

        def hear(event: dict[str, Any]) -> None:
            if event["event"] == "begin":
                count = f", round {event['round']}" if "round" in event else ""
                self.bar.set_postfix_str(f"{names[event['case']]}: {task}{count}")

        return measure(
            {"task": task, "threads": self.threads, "brief": self.settings.brief, **job}, self.variables, hear
        )

    def _cases(self, task: str, cases: list[Case], job: dict[str, Any]) -> Outcome:
        names = [f"{case.mechanism}, {case.seq_len} tokens, {case.dtype}" for case in cases]
        return self._ask(task, {**job, "cases": [asdict(case) for case in cases]}, names)

    def _memory(self, cell: Cell, rows: list[Row]) -> None:
        """Peak memory, each case in a process of its own: what an earlier one left behind would count too, or hide a part.
        A mechanism that dies there is not timed at that length.
        """
        pairs = [(case, row) for case, row in zip(cell.cases, rows) if case.part in MEMORY_PARTS]
        with ThreadPoolExecutor(
            2 if self.settings.brief and self.device == "cpu" else 1
        ) as pool:  # beside another is as good
            for (case, row), outcome in zip(pairs, pool.map(lambda pair: self._cases("memory", [pair[0]], {}), pairs)):
                for event in outcome.of("memory"):
                    add_memory(row, event)
                for other, its_row in zip(cell.cases, rows) if outcome.cause is not None else ():
                    if (other.mechanism, other.position) == (case.mechanism, case.position):
                        fail(its_row, outcome.cause)
                self.bar.update()

    def _time(self, cell: Cell, rows: list[Row]) -> None:
        """Times all that have not failed, in one process; if that dies, once more without the one it was at."""
        left = [place for place, row in enumerate(rows) if row["status"] != FAILED]
        while left:
            settings = {key: getattr(self.settings, key) for key in ("rounds", "least_rounds", "seconds")}
            outcome = self._cases("time", [cell.cases[place] for place in left], settings)
            for event in outcome.of("machine"):
                best = self.machine.setdefault(cell.dtype, {})
                best.update({key: max(value, best.get(key, 0.0)) for key, value in event.items() if key != "event"})
            for event in outcome.of("failed"):
                fail(rows[left[event["case"]]], event["cause"])
            if outcome.cause is None:
                for event in outcome.of("timed"):
                    add_times(rows[left[event["case"]]], event)
                break
            guilty = left if outcome.last is None else [left[outcome.last]]
            for place in guilty:
                fail(rows[place], outcome.cause)
            left = [place for place in left if rows[place]["status"] != FAILED]
        self.bar.update()

    def _error(self, cell: Cell, rows: list[Row]) -> None:
        """Error of the cores, each once, whatever the positions."""
        once = cell.cases[0].position
        places = [
            place
            for place, (case, row) in enumerate(zip(cell.cases, rows))
            if case.part == "core"
            and row["status"] != FAILED
            and (case.position == once if case.origin == OURS else not _ties(case))
        ]
        if places:
            outcome = self._cases("error", [cell.cases[place] for place in places], {})
            for event in outcome.of("error"):
                add_error(rows[places[event["case"]]], event)
        self.bar.update()

    def write(self, status: str) -> None:
        """Writes results.csv, bench.json and the plots as they stand."""
        references = self.settings.references
        for row in self.rows:
            if row.get("training_ms") is not None and not self.settings.brief:
                hold_against(row, self.machine[row["dtype"]])
        compare(self.rows, references, self.plan.nodes)
        write_atomic(self.folder / "results.csv", to_csv(self.rows, references))
        packages = {other.package: _version(other.package) for other in others()}
        about = {
            "status": status,
            "name": self.settings.name,
            "settings": asdict(self.settings),
            "attentions": self.plan.nodes,
            "device": describe_device(torch.device(self.device)) | ({"threads": self.threads} if self.threads else {}),
            "environment": allocator_settings(self.variables),
            "machine": self.machine,
            "versions": {**versions(), **packages},
            "commit": commit(),
            "notes": self.plan.notes,
            "started": self.started,
            "ended": time.time(),
            "crossovers": crossovers(self.rows, references),
            "rows": self.rows,
        }
        write_atomic(self.folder / "bench.json", json.dumps(plain(about), indent=1, ensure_ascii=False) + "\n")
        for part in ("module", "core", "step"):
            picture = crossover_plot(self.rows, part, TITLES[part])
            if picture is not None:
                write_bytes(self.folder / f"crossover-{part}.png", picture)


def _ties(case: Case) -> bool:
    """Whether it is LSH of another package, whose logits are scaled otherwise: no common exact attention."""
    return "num_hashes" in case.node


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def run_bench(
    settings: Bench,
    *,
    attentions: dict[str, dict[str, Any]],
    positions: dict[str, dict[str, Any]],
    device: str,
    folder: Path,
    progress: bool,
    threads: int | None = None,
) -> Path:
    """Measures, prints the tables to standard output, and leaves results.csv, bench.json and plots in `folder`.

    attentions, positions: the nodes of every file of conf/attention and conf/position, by the file's name; settings
    names those to take. device: 'cpu' or 'cuda'. threads: of every measuring process; None for PyTorch's choice.
    A mechanism that fails is a row with its cause. Raises UserError before anything is measured. Returns `folder`.
    """
    plan = make_plan(settings, attentions=attentions, positions=positions, device=device)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("crossover-*.png"):
        old.unlink()
    for note in plan.notes:
        print(note, file=sys.stderr)
    with_memory = sum(case.part in MEMORY_PARTS for cell in plan.cells for case in cell.cases) if settings.memory else 0
    total = with_memory + len(plan.cells) * (settings.time + settings.error) + (settings.trained is not None)
    with tqdm(total=total, desc="bench", unit="job", disable=not progress) as bar:
        measuring = Measuring(settings=settings, plan=plan, device=device, folder=folder, threads=threads, bar=bar)
        try:
            for cell in plan.cells:
                measuring.cell(cell)
            if settings.trained is not None:
                measuring.trained()
                bar.update()
        except KeyboardInterrupt:
            measuring.write("interrupted")
            raise
    measuring.write("completed")
    crossings = crossovers(measuring.rows, settings.references)
    print(report(measuring.rows, crossings, settings.references, measuring.machine))
    print(f"Written: {folder / 'results.csv'}, bench.json and plots beside it.")
    return folder
