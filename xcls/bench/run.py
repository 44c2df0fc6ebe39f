"""mode=bench: measures, compares and prints. The files are written again after every size and dtype."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from xcls.bench import plan, results
from xcls.bench.cases import OURS, Case
from xcls.bench.machine import card_peak
from xcls.bench.results import FAILED, Row, add
from xcls.bench.rivals import rivals
from xcls.bench.table import report
from xcls.bench.worker import Outcome, Worker, allocator_settings, environment
from xcls.config.files import read_yaml
from xcls.config.schema import Config
from xcls.runs.folder import check_case_collision
from xcls.stages.spec import RunSpec
from xcls.train.provenance import commit, describe_device, versions

LEAST_ROUNDS = 3  # of whole trainings, also after `bench.seconds`
PACKAGES = ("transformers", "accelerate")  # their versions are recorded for bench=training


@dataclass
class RunningTraining:
    """A training of bench=training: its row, its process, and the answers for its segments."""

    row: Row
    worker: Worker
    segments: list[Row] = field(default_factory=list)

    def add_segment(self, outcome: Outcome) -> bool:
        """Takes the outcome of a segment. If it failed, marks the row as failed, ends the process and returns False."""
        if outcome.cause is None:
            self.segments.append(outcome.answer)
        else:
            add(self.row, {"cause": outcome.cause})
            self.worker.close()
        return outcome.cause is None


class Bench:
    """A running bench: its rows, the rates of the machine, and the files that hold both."""

    def __init__(
        self, config: Config, nodes: plan.Nodes, *, device: str, folder: Path, bar: tqdm, notes: list[str], data: str
    ) -> None:
        """notes: lines for the reader; data: fingerprint of the data in bench=training."""
        self.config, self.settings, self.device, self.folder = config, config.bench, device, folder
        self.bar, self.notes, self.data = bar, notes, data
        self.attentions = plan.choose("attention", self.settings.attentions, nodes)
        threads = config.hardware.threads
        self.variables = environment(self.settings.allocator, threads)
        # For trainings of transformers: default allocator, as their users have it
        self.plain = environment("plain", threads)
        self.rows: list[Row] = []
        self.machine: dict[str, dict[str, float]] = {}  # dtype -> rates
        self.started = time.time()

    def write(self, status: str) -> None:
        """Writes results.csv and bench.json with the rows so far."""
        config, threads = self.config, self.config.hardware.threads
        about = {
            "status": status,
            "name": self.settings.name,
            "settings": asdict(self.settings),
            "attentions": self.attentions,
            "device": describe_device(torch.device(self.device)) | ({"threads": threads} if threads else {}),
            "environment": allocator_settings(self.variables),
            "machine": self.machine,
            "versions": versions(*dict.fromkeys([rival.package for rival in rivals()] + list(PACKAGES))),
            "commit": commit(),
            "notes": self.notes,
            "started": self.started,
            "ended": time.time(),
            "fingerprint": self.data,
        }
        if self.settings.what == "training":
            keys = ("size", "dataset", "tokenizer", "masking", "head", "pretraining", "finetuning", "hardware")
            about |= {key: asdict(getattr(config, key)) for key in keys}
            about |= {"seq_len": config.seq_len, "seed": config.seed}
            results.compare_trainings(self.rows)
        else:
            results.add_rates(self.rows, self.machine)
            results.compare(self.rows, self.settings.references, self.attentions)
        results.write(self.folder, self.rows, about)

    def ask(self, task: str, **changes: Any) -> Outcome:
        """Runs one task in a new process."""
        self.bar.set_postfix_str(task)
        with Worker(self.variables) as worker:
            return worker.ask(task, **changes)

    def measure_rates(self, dtype: str) -> None:
        """Measures the rates again and keeps the best ones, because other work on the machine lowers them at times."""
        found = self.ask("rates", dtype=dtype, device=self.device).answer or {}
        best = self.machine.setdefault(dtype, {})
        best.update({key: max(value, best.get(key, 0.0)) for key, value in found.items()})

    # Cases: attention, step, growth.

    def measure_cell(self, cases: list[Case]) -> None:
        """Measures memory, then the time of the cases that have not failed, then their error; writes the files."""
        rows = [results.row_of(case) for case in cases]
        self.rows += rows
        if self.settings.memory:
            self._memory(cases, rows)
        if self.settings.time:
            self._time(cases, rows)
        if self.settings.error:
            self._error(cases, rows)
        self.write("running")
        self.bar.update()

    def _memory(self, cases: list[Case], rows: list[Row]) -> None:
        """Peak memory, each case in a new process: memory that an earlier case left would count too.

        Not for cores: there the caller decides how long tensors live. A mechanism that fails here is not timed.
        """
        pairs = [(case, row) for case, row in zip(cases, rows) if case.part != "core"]
        brief = self.settings.brief

        def ask(pair: tuple[Case, Row]) -> Outcome:
            return self.ask("memory", case=pair[0], brief=brief)

        with ThreadPoolExecutor(2 if brief and self.device == "cpu" else 1) as pool:
            for (case, row), outcome in zip(pairs, pool.map(ask, pairs)):
                add(row, outcome.answer or {"cause": outcome.cause})
                for other, its_row in zip(cases, rows) if row["status"] == FAILED else ():
                    if (other.mechanism, other.position) == (case.mechanism, case.position):
                        add(its_row, {"cause": row["cause"]})

    def _time(self, cases: list[Case], rows: list[Row]) -> None:
        """Times all cases that have not failed, in one process. If it dies, repeats without the case that killed it."""
        if not self.settings.brief:
            self.measure_rates(cases[0].dtype)
        limits = {key: getattr(self.settings, key) for key in ("rounds", "least_rounds", "seconds", "brief")}
        while left := [place for place, row in enumerate(rows) if row["status"] != FAILED]:
            outcome = self.ask("time", cases=[cases[place] for place in left], **limits)
            if outcome.cause is None:
                for place, found in zip(left, outcome.answer):
                    add(rows[place], found)
                break
            for place in left if outcome.last is None else [left[outcome.last]]:
                add(rows[place], {"cause": outcome.cause})

    def _error(self, cases: list[Case], rows: list[Row]) -> None:
        """The error of each core, for one position encoding only (it does not depend on it).

        Not for LSH of other packages: they scale logits differently, so there is no common exact attention.
        """
        once = cases[0].position
        places = [
            place
            for place, (case, row) in enumerate(zip(cases, rows))
            if case.part == "core"
            and row["status"] != FAILED
            and (case.position == once if case.origin == OURS else "num_hashes" not in case.node)
        ]
        if places:
            outcome = self.ask("error", cases=[cases[place] for place in places])
            for place, found in zip(places, outcome.answer or []):
                rows[place].update(found)

    def measure_trained(self) -> None:
        """The error on queries and keys of the layers of a trained run: a row for each mechanism."""
        names, folder = list(self.attentions), self.settings.trained
        outcome = self.ask("trained", folder=folder, device=self.device, nodes=list(self.attentions.values()))
        for name, found in zip(names, outcome.answer or [{"cause": outcome.cause}] * len(names)):
            row = dict.fromkeys(("position", "seq_len", "batch"))
            row |= {"mechanism": name, "origin": OURS, "part": "trained", "dtype": "fp32", "device": self.device}
            self.rows.append(row | {"status": "completed", "cause": None})
            add(self.rows[-1], found)

    # Whole trainings.

    def measure_trainings(self, contenders: list[plan.Contender]) -> None:
        """Starts all trainings, with two segments each to warm up, then times interleaved rounds (A B C … A B C …)."""
        dtype = contenders[0].dtype
        self.measure_rates(dtype)
        left: list[RunningTraining] = []
        with ExitStack() as stack:
            for contender in contenders:
                self.bar.set_postfix_str(f"{contender.stage}, {contender.name}: start")
                self.rows.append(results.row_of_contender(contender))
                worker, outcome = self._start(contender)
                stack.callback(worker.close)
                training = RunningTraining(self.rows[-1], worker)
                if training.add_segment(outcome) and training.add_segment(worker.ask("segment")):
                    left.append(training)
            began = time.perf_counter()
            for number in range(self.settings.rounds):
                if number >= LEAST_ROUNDS and time.perf_counter() - began > self.settings.seconds:
                    break
                self.bar.set_postfix_str(f"round {number + 1}")
                left = [training for training in left if training.add_segment(training.worker.ask("segment"))]
        card = card_peak(describe_device(torch.device(self.device)).get("name"), dtype)
        for training in left:
            counted, _, *timed = training.segments
            results.add_segments(training.row, timed)
            results.add_work(training.row, counted, self.machine[dtype].get("flops_per_s"), card)
        self.write("running")
        self.bar.update()

    def _start(self, contender: plan.Contender) -> tuple[Worker, Outcome]:
        """Starts a training and runs its first segment, with operations counted if PyTorch's counter can trace it."""
        variables = self.variables if contender.origin == OURS else self.plain
        for count in (False,) if self.settings.compile else (True, False):
            worker = Worker(variables)
            outcome = worker.ask("training", contender=contender, count=count)
            if outcome.cause is None:
                break
            worker.close()
        return worker, outcome


def run_bench(
    config: Config, nodes: plan.Nodes, *, device: str, folder: Path, progress: bool, fingerprint: str = ""
) -> Path:
    """Measures, prints the tables to standard output, and writes results.csv and bench.json to `folder`.

    nodes: all files of conf/attention and conf/position; `config.bench` selects among them. device: 'cpu' or 'cuda'.
    fingerprint: of the data in bench=training. A failed case is a row with its cause. Raises UserError before the first
    measurement. Returns `folder`.
    """
    plan.check(config)
    cells, trainings, notes = plan.make_jobs(config, nodes, device)
    folder.mkdir(parents=True, exist_ok=True)
    for note in notes:
        print(note, file=sys.stderr)
    status = "interrupted"
    with tqdm(total=len(trainings) + len(cells), desc="bench", disable=not progress) as bar:
        bench = Bench(config, nodes, device=device, folder=folder, bar=bar, notes=notes, data=fingerprint)
        try:
            for cell in cells:
                bench.measure_cell(cell)
            for contenders in trainings:
                bench.measure_trainings(contenders)
            if config.bench.trained is not None:
                bench.measure_trained()
            status = "completed"
        finally:
            bench.write(status)
    print(report(bench.rows, bench.machine))
    print(f"Written: {folder / 'results.csv'} and bench.json beside it.")
    return folder


def bench(spec: RunSpec) -> int:
    """mode=bench: time, memory, operations and error of mechanisms; `multirun/bench/<name>/`. Returns the exit code."""
    config = spec.config
    folder = spec.runs / "multirun" / "bench" / (config.exp or config.bench.name)
    check_case_collision(folder)
    spec.check_device()
    precision = spec.precision
    config.bench = plan.with_dtype(config.bench, precision.dtype)
    plan.check_dtypes(config.bench.dtypes, spec.find().cards if precision.device == "cuda" else ())
    nodes = {
        group: {path.stem: read_yaml(path) for path in sorted((spec.root / "conf" / group).glob("*.yaml"))}
        for group in ("attention", "position")
    }
    run_bench(
        config,
        nodes,
        device=precision.device,
        folder=folder,
        progress=os.environ.get("XCLS_PROGRESS") != "0",
        fingerprint=spec.fingerprint if config.bench.what == "training" else "",
    )
    return 0
