"""The report names the best run and the command that predicts with it, ready for a shell."""

from __future__ import annotations

import html
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from xcls.report.groups import group_runs, results_by_dataset
from xcls.report.load import collect
from xcls.report.settings import Settings
from xcls.report.text import best_runs
from xcls.report.write import write_report


def words_of(command: str) -> list[str]:
    return shlex.split(command)


def usable(sweep: Path) -> None:
    for record in sweep.rglob("record.json"):
        (record.parent / "ckpt_best.pt").touch()


def test_the_page_and_the_text_have_the_command_of_the_best_run(make: Any, tmp_path: Path) -> None:
    made = [*make.seeds("sdpa", (0.8, 0.95, 0.9)), *make.seeds("performer", (0.7, 0.7, 0.7)), make.baseline(0.99)]
    usable(make.save(made, tmp_path))
    (tmp_path / "run.py").touch()
    said = write_report(Settings(runs=["multirun/demo"], out="out"), root=tmp_path)
    expected = [
        "python",
        "run.py",
        "mode=predict",
        f"exp=multirun/demo/{made[1].run}",
        "input=new.csv",
        "output=predictions.csv",
    ]
    page = html.unescape((tmp_path / "out" / "index.html").read_text())
    for text in (said, (tmp_path / "out" / "report.md").read_text(), page):
        commands = re.findall(r"^(?: {4}|.*<pre>)(python run\.py mode=predict[^<\n]*)", text, re.MULTILINE)
        assert [words_of(command) for command in commands] == [expected]


@pytest.mark.parametrize("name", ["my runs", "Bob's (copy), v2", "a=b{c}&<d>", "Jürgen", 'q"x\\'])
def test_odd_names_survive_the_shell_and_hydra(name: str, make: Any, tmp_path: Path) -> None:
    root = tmp_path / name
    usable(make.save([make.finetune("sdpa")], root))
    boards = results_by_dataset(group_runs(collect([root / "multirun"], tmp_path)), "macro_f1")
    (best,) = best_runs(boards, "macro_f1", tmp_path)  # no run.py there, so the whole path is needed
    exp = OverridesParser.create().parse_override(words_of(best.command)[3])
    assert Path(exp.value()) == root.resolve() / "multirun" / "demo" / make.finetune("sdpa").run


def test_the_best_is_by_the_measure_and_never_chosen_by_test(make: Any, tmp_path: Path) -> None:
    made = [
        make.finetune("sdpa", 0, macro_f1=0.9, test=0.5, time=20.0),
        make.finetune("sdpa", 1, macro_f1=0.8, test=0.9, time=10.0),
    ]
    sweep = make.save(made, tmp_path)
    boards = results_by_dataset(group_runs(collect([sweep], tmp_path)), "macro_f1")
    assert best_runs(boards, "macro_f1", tmp_path) == []  # no checkpoint is left
    usable(sweep)
    for measure, run in (("macro_f1", made[0]), ("test_macro_f1", made[0]), ("time_per_epoch", made[1])):
        assert run.run in best_runs(boards, measure, tmp_path)[0].command


def test_a_run_that_learned_nothing_is_not_the_best(make: Any, tmp_path: Path) -> None:
    made = make.seeds("sdpa", (0.2, 0.2, 0.2))
    for record in made:
        record.data["classes"] = {"validation": {"a": 3, "b": 3, "c": 3}}
    sweep = make.save(made, tmp_path)
    usable(sweep)
    boards = results_by_dataset(group_runs(collect([sweep], tmp_path)), "macro_f1")
    assert (
        boards
        and all(group.learned_nothing for group in boards[0].groups)
        and best_runs(boards, "macro_f1", tmp_path) == []
    )


def test_a_home_folder_in_the_reports_paths_is_written_out(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make.save([make.finetune("sdpa")], tmp_path)
    (tmp_path / "work").mkdir()
    write_report(Settings(runs=["~/multirun"], out="~/x"), root=tmp_path / "work")
    assert (tmp_path / "x" / "index.html").is_file() and not (tmp_path / "work" / "~").exists()
