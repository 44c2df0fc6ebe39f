"""Whatever is typed, and whatever stands in a run's file: a valid configuration, or one message and nothing written.

No traceback, no hang, no process, no file outside the run's folder, no half-made folder. 170 inputs here, 50 of them
command lines and 120 YAML files; among the slow tests 10,000 (or XCLS_FUZZ), three tenths of them command lines.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from tests.conftest import SMALL, Project
from tests.entry import Entry, Outcome, entered
from tests.fuzzing import BASE, command_lines, mutations
from xcls.config.schema import UserError
from xcls.data.pydocs import Pydocs

pytestmark = pytest.mark.slow

COMMANDS, FILES = 50, 120  # inputs of the fast tests
MADE = ("pretrain", "finetune", "multirun", "cache", "hub")
COUNTS: dict[str, int] = {"refused": 0, "accepted": 0}


def runs(count: int, *, fixed: bool) -> settings:
    """`count` inputs, the same ones each time if `fixed`; every fault is kept, so nothing is shrunk."""
    return settings(
        max_examples=count, derandomize=fixed, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )


def many(share: float) -> int:
    """Inputs of one kind in the slow tests. A command line takes three times as long as a file."""
    return round(share * int(os.environ.get("XCLS_FUZZ", 10_000)))


def not_in_a_test(self: Any) -> Any:
    raise UserError("The embedded data set is not made in this test.")


@pytest.fixture(scope="module")
def entry(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    """run.py in a copy of a project with complete runs."""
    from xcls.stages import evaluate, predict

    place = tmp_path_factory.mktemp("fuzz") / "project"
    shutil.copytree(finished.folder, place, symlinks=True)
    with entered(place) as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pydocs, "load", not_in_a_test)
        patch.setattr(evaluate, "score_split", lambda model, rows, **_: SimpleNamespace(logits=np.eye(2)[rows.labels]))
        patch.setattr(predict, "_predicted", lambda *_, **__: {})
        yield made


def fault_of(outcome: Outcome, entry: Entry) -> str | None:
    """What is wrong with how a call ended; None where it is well."""
    roots = tuple(str(entry.folder / name) for name in MADE)
    strange = [
        write
        for write in outcome.files
        if not write.startswith(("open ", "os.mkdir ", "os.rename ", "os.remove ", "os.rmdir ", "shutil.rmtree "))
    ]
    outside = [write for write in outcome.files if not write.partition(" ")[2].startswith(roots)]
    kept = [
        write
        for write in outcome.files
        if not write.endswith("/multirun")
        and not write.partition(" ")[2].startswith((str(entry.folder / "cache"), str(entry.folder / "hub")))
    ]
    if outcome.traceback or "Traceback" in outcome.stderr:
        return "traceback: " + (outcome.traceback or outcome.stderr)[-900:]
    if outcome.code not in (0, None, 2):
        return f"exit code {outcome.code}: {outcome.stderr[-500:]}"
    if strange or outside:
        return f"does what it may not: {(strange or outside)[:3]}"
    if outcome.code == 2 and kept:
        return f"refused, but wrote {kept[:3]}: {outcome.stderr[-300:]}"
    if outcome.code == 2 and ("run.py: " not in outcome.stderr or len(outcome.stderr.strip()) < 20):
        return f"refused without a message: {outcome.stderr[:500]!r}"
    return None


def tidy(entry: Entry, before: set[Path]) -> None:
    """Removes what a call has made and `before` does not hold."""
    for path in sorted(set(runs_of(entry.folder)) - before, reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def runs_of(folder: Path) -> list[Path]:
    return [path for name in MADE[:3] for path in (folder / name).rglob("*")]


def check_all(kind: str, test: Any) -> None:
    """Runs a hypothesis test that fills its `faults`, and shows all of them at once."""
    test()
    shown = "\n\n".join(f"{len(found)} x {fault}\n   e.g. {found[0]!r}" for fault, found in test.faults.items())
    print(
        f"\n{kind} and before: {COUNTS['refused']} refused, {COUNTS['accepted']} accepted, {sum(map(len, test.faults.values()))} faults"
    )
    assert not test.faults, shown


def note(test: Any, entry: Entry, outcome: Outcome, what: Any) -> None:
    fault = fault_of(outcome, entry)
    COUNTS["refused" if outcome.code == 2 else "accepted"] += 1
    if fault is not None:
        test.faults.setdefault(fault, []).append(what)


def command_line_test(entry: Entry, how: settings) -> Any:
    before = set(runs_of(entry.folder))

    @how
    @given(command_lines())
    def test(words: list[str]) -> None:
        outcome = entry(*words)
        note(test, entry, outcome, words)
        tidy(entry, before)

    test.faults = {}
    return test


def yaml_test(entry: Entry, how: settings) -> Any:
    """Mutations of a file that `mode=init` wrote, as pretrain/<exp>/config.yaml and as a template."""
    text = (entry.folder / "pretrain" / "written" / "config.yaml").read_text()
    ways = [
        entry.composed(*SMALL, "mode=pretrain", "exp=edited"),
        entry.composed(*BASE, "mode=init", "exp=fresh", "template=t.yaml"),
    ]
    files = [entry.folder / "pretrain" / "edited" / "config.yaml", entry.folder / "t.yaml"]
    files[0].parent.mkdir(exist_ok=True)
    before = {*runs_of(entry.folder), files[0]}
    turn = iter(range(10**9))

    @how
    @given(mutations(text))
    def test(content: bytes) -> None:
        way = next(turn) % 2
        files[way].write_bytes(content)
        outcome = ways[way]()
        note(test, entry, outcome, content)
        files[way].write_bytes(content)
        tidy(entry, before)

    test.faults = {}
    return test


def test_command_lines(entry: Entry) -> None:
    check_all("command lines", command_line_test(entry, runs(COMMANDS, fixed=True)))


def test_yaml_files(entry: Entry) -> None:
    check_all("YAML files", yaml_test(entry, runs(FILES, fixed=True)))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_command_lines(entry: Entry) -> None:
    check_all("command lines", command_line_test(entry, runs(many(0.3), fixed=False)))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_yaml_files(entry: Entry) -> None:
    check_all("YAML files", yaml_test(entry, runs(many(0.7), fixed=False)))


@pytest.mark.slow
def test_thirty_processes_say_what_the_call_in_this_process_says(entry: Entry, finished: Project) -> None:
    """What only a process shows: the exit code, a traceback on stderr, a file that it made."""
    left = iter(range(30))
    before = finished.files()
    kept = set(runs_of(entry.folder))

    @runs(200, fixed=True)
    @given(command_lines())
    def test(words: list[str]) -> None:
        outcome = entry(*words)
        tidy(entry, kept)
        if outcome.code != 2 or next(left, None) is None:
            return
        result = finished.run(*words, small=False, fresh=True)
        assert result.returncode == 2 and "Traceback" not in result.stderr
        assert result.stderr.replace(str(finished.folder), "") == outcome.stderr.replace(str(entry.folder), "")
        assert finished.files() <= before

    test()
    assert next(left, None) is None
