"""Where run.py is started, by whom, and who reads it: only its own process starts anew, and no reader or encoding ends it badly."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Project
from xcls.runs.allocator import RETAIN, start_anew
from xcls.runs.terminal import any_encoding, end_early, reader_left

RUN = str(ROOT / "run.py")


@pytest.mark.parametrize(
    ("original", "argv", "anew"),
    [
        (["python", RUN, "seed=1"], [RUN, "seed=1"], True),
        (["python", "-u", "-W", "ignore", RUN], [RUN], True),
        (["python", "ipython", RUN, "seed=1"], [RUN, "seed=1"], False),
        (["python", "-m", "pdb", RUN], [RUN], False),
        (["python", "-m", "ipykernel_launcher", "-f", "kernel.json"], [RUN, "seed=1"], False),
        (["python", "-"], ["-"], False),
        (["python", "-c", "import runpy"], [RUN], False),
        (["python", str(ROOT / "report.py")], [str(ROOT / "report.py")], False),
        (["python"], [""], False),
    ],
)
def test_only_the_main_program_of_a_process_starts_anew(
    monkeypatch: pytest.MonkeyPatch, original: list[str], argv: list[str], anew: bool
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", original)
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(os, "environ", {})
    calls: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, words: calls.append(words))
    start_anew(RUN)
    assert calls == ([[sys.executable, *original[1:]]] if anew else []) and bool(os.environ) == anew
    calls.clear()
    os.environ.update(RETAIN)
    start_anew(RUN)
    assert calls == []


def test_where_the_interpreter_may_not_be_started_again_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, words: list[str]) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", RUN])
    monkeypatch.setattr(sys, "argv", [RUN])
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "execv", refuse)
    start_anew(RUN)
    assert os.environ == {}


def test_a_missing_package_is_one_line_that_names_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    error = ModuleNotFoundError("No module named 'hydra'", name="hydra")
    end_early(type(error), error, None)
    said = capsys.readouterr().err
    assert codes == [2] and all(
        word in said for word in ("'hydra'", "make setup", "source .venv/bin/activate", sys.executable)
    )


def test_output_takes_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    any_encoding()
    print("0.5 ± 0.1 Übung")
    out.flush()
    assert out.buffer.getvalue() == b"0.5 ? 0.1 ?bung\n"


@pytest.mark.parametrize(("asked", "code"), [(True, 0), (False, 141)])
def test_a_reader_that_leaves_is_no_bad_input(monkeypatch: pytest.MonkeyPatch, asked: bool, code: int) -> None:
    moved: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "dup2", lambda source, target: moved.append((source, target)))
    assert reader_left(asked=asked) == code and moved[0][1] == 1
    os.close(moved[0][0])


@pytest.mark.slow
@pytest.mark.parametrize("words", ["run.py --help", "run.py --cfg job", "-P run.py --cfg job", "report.py --help"])
def test_help_into_a_reader_that_leaves(project: Project, words: str) -> None:
    line = f"{sys.executable} {words} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=project.folder, env=project.environment, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.splitlines()[-1], done.stderr) == ("0", "")


def test_runs_go_where_the_environment_says(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.entry import entered
    from xcls.runs.identity import runs_root

    assert runs_root(tmp_path) == tmp_path
    elsewhere = project.folder / "other runs"
    monkeypatch.setenv("XCLS_RUNS", str(elsewhere))
    assert runs_root(tmp_path) == elsewhere
    data = ["dataset=files", "dataset.path=rows.csv", "wandb=disabled"]
    with entered(project.folder) as enter:
        outcomes = [enter(*data, f"mode={mode}", "exp=x") for mode in ("init", "pretrain", "baseline")]
    assert [outcome.code for outcome in outcomes] == [0] * 3, [outcome.stderr for outcome in outcomes]
    assert enter.stages[0] == str(elsewhere / "pretrain" / "x") and enter.stages[1].startswith(
        str(elsewhere / "multirun" / "x")
    )
    assert (elsewhere / "pretrain" / "x" / "config.yaml").is_file() and not (project.folder / "pretrain").exists()


def test_a_project_that_is_read_only_names_the_setting(project: Project) -> None:
    from tests.entry import entered

    (project.folder / "multirun").write_text("a file where the folder should be")
    (project.folder / "finetune").write_text("a file where the folder should be")
    with entered(project.folder) as enter:
        outcome = enter("exp=x", "dataset=files", "dataset.path=rows.csv", "wandb=disabled")
    assert (
        outcome.code == 2 and "XCLS_RUNS" in outcome.stderr and str(project.folder / "finetune" / "x") in outcome.stderr
    )
