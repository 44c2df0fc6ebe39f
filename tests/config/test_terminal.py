"""Exit codes, readers that leave, encodings, missing packages, secrets, and how memory is kept."""

from __future__ import annotations

import ctypes
import io
import os
import subprocess
import sys

import pytest

from tests.conftest import Project
from tests.entry import entered
from xcls.runs.allocator import RETAIN, retain_memory
from xcls.runs.identity import runs_root
from xcls.runs.redact import hide_secrets, without_secrets
from xcls.runs.terminal import end_early, exit_code


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ValueError("bad"), 2, "bad"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("stopped at step 3"), 130, "stopped at step 3"),
    ],
)
def test_every_end_has_its_exit_code(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(lambda: raising(error), str) == code
    assert told in capsys.readouterr().err
    assert exit_code(lambda: 1, str) == 1


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0, lambda error: None)


def test_a_missing_package_names_the_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    end_early(ModuleNotFoundError, ModuleNotFoundError("No module named 'hydra'", name="hydra"), None)
    said = capsys.readouterr().err
    assert codes == [2] and "'hydra'" in said and "make setup" in said and sys.executable in said


def test_output_takes_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert exit_code(lambda: print("0.5 ± 0.1 Übung") or 0, str) == 0
    assert out.buffer.getvalue() == b"0.5 ? 0.1 ?bung\n"


def test_values_of_secrets_in_the_environment_are_hidden_whoever_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SOME_API_KEY": "of-this-machine", "DB_PASS": "word-pass", "XPATH": "no secret"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KEY_FILE_TOKEN", sys.executable)  # the path of a secret is no secret
    assert (
        without_secrets(f"of-this-machine word-pass no secret {sys.executable}")
        == f"*** *** no secret {sys.executable}"
    )
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    hide_secrets()
    hide_secrets()
    print("key=of-this-machine", file=sys.stderr)
    assert out.getvalue() == "key=***\n"


def test_freed_memory_is_kept_here_and_in_children_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[int, int]] = []
    library = type("Library", (), {"mallopt": staticmethod(lambda *given: calls.append(given))})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "environ", {})
    retain_memory()
    assert os.environ == RETAIN and (-1, -1) in calls and (-4, 0) in calls
    calls.clear()
    monkeypatch.setattr(os, "environ", {"MALLOC_TOP_PAD_": "0"})
    retain_memory()
    assert calls == [] and os.environ == {"MALLOC_TOP_PAD_": "0"}


@pytest.mark.slow
@pytest.mark.parametrize("words", ["run.py --help", "-P run.py --cfg job", "report.py --help"])
def test_help_into_a_reader_that_leaves_shows_no_traceback(project: Project, words: str) -> None:
    line = ["bash", "-c", f"{sys.executable} {words} | head -1; exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(line, cwd=project.folder, env=project.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 141) and done.stdout and done.stderr == ""


def test_runs_go_where_the_environment_says(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs_root(project.folder) == project.folder
    elsewhere = project.folder / "other runs"
    monkeypatch.setenv("XCLS_RUNS", str(elsewhere))
    data = ["dataset=files", "dataset.path=rows.csv", "wandb=disabled"]
    with entered(project.folder) as enter:
        outcomes = [enter(*data, f"mode={mode}", "exp=x") for mode in ("init", "pretrain", "baseline")]
    assert [outcome.code for outcome in outcomes] == [0] * 3, [outcome.stderr for outcome in outcomes]
    assert enter.stages[0] == str(elsewhere / "pretrain" / "x") and str(elsewhere / "multirun" / "x") in enter.stages[1]
    assert (elsewhere / "pretrain" / "x" / "config.yaml").is_file() and not (project.folder / "pretrain").exists()


def test_a_project_that_cannot_be_written_names_the_setting(project: Project) -> None:
    for name in ("multirun", "finetune"):
        (project.folder / name).write_text("a file where the folder should be")
    with entered(project.folder) as enter:
        outcome = enter("exp=x", "dataset=files", "dataset.path=rows.csv", "wandb=disabled")
    assert outcome.code == 2 and "XCLS_RUNS" in outcome.stderr and str(project.folder / "finetune/x") in outcome.stderr
