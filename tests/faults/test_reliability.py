"""The faults of `make reliability`, few in the fast suite, at least two hundred kills in the slow one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import elsewhere
from tests.faults.elsewhere import LIST, identifiers, run_fuzz, run_tests
from tests.faults.reliability import SIZES, document
from tests.faults.tally import Tally

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def tried(size: str, out: Path) -> dict[str, int]:
    """Runs the command. How often each kind of fault was tried, by the first words of its name."""
    command = [sys.executable, "-m", "tests.faults.reliability", size, str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"^\| (.+?) \| ([\d,]+) \|.*\| nothing \|$", out.read_text(encoding="utf-8"), re.MULTILINE)
    return {what: int(number.replace(",", "")) for what, number in lines}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.parametrize("size", ["tiny", pytest.param("slow", marks=pytest.mark.timeout(3000))])
def test_nothing_is_lost(size: str, tmp_path: Path) -> None:
    found = tried(size, tmp_path / "table.md")
    numbers = SIZES[size]
    kills = sum(number for what, number in found.items() if "at a random instant" in what)
    assert kills >= numbers["kills"]
    assert (
        sum(number for what, number in found.items() if "instant of training" in what) >= kills / 4
    )  # a machine may be slow
    assert found["kill before each file operation of a checkpoint write"] >= 20
    assert sum(number for what, number in found.items() if "of a whole run" in what) >= 4
    assert found["disk full in a checkpoint write"] == numbers["disks"]
    assert sum(number for what, number in found.items() if "damaged" in what) >= 3 * numbers["damages"]


def test_what_went_wrong_is_in_the_table() -> None:
    text = document(
        [Tally("a", 3, 1, "nothing"), Tally("b", 2, 1, "nothing", problems=["run 7: metrics.csv"])], "quick", 60.0
    )
    assert "| a | 3 | 1 | nothing | nothing |" in text
    assert "| b | 2 | 1 | nothing | **1** |" in text and "- run 7: metrics.csv" in text


def test_the_slow_suite_kills_two_hundred_and_the_note_a_thousand() -> None:
    assert SIZES["slow"]["kills"] >= 200 and SIZES["full"]["kills"] >= 1000
    assert SIZES["full"]["fuzz"] >= 10_000


def test_the_tests_that_are_counted_are_there() -> None:
    names = [name for tests in LIST.values() for name in identifiers(tests)]
    assert len(names) == len(set(names)) > 40
    for name in names:
        file, _, test = name.partition("::")
        assert (ROOT / file).is_file() and f"def {test or 'test_'}" in (ROOT / file).read_text(encoding="utf-8"), name


def test_only_what_was_tried_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_it.py").write_text(
        "import os, pytest\n"
        "@pytest.mark.parametrize('n', [1, 2])\ndef test_a(n): assert n\n"
        "@pytest.mark.slow\ndef test_slow(): assert True\n"
        "def test_fails(): assert False\n"
        "def test_other(): assert True\n"
        "@pytest.mark.skip\ndef test_skipped(): assert True\n"
        "@pytest.mark.slow\ndef test_many(): print('x and before: 2 refused, 1 accepted, 0 faults')\n"
        "@pytest.mark.slow\ndef test_many_more(): print(f\"x and before: {os.environ['XCLS_FUZZ']} refused, 4 accepted, 0 faults\")\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\naddopts = -m 'not slow'\n")
    monkeypatch.setattr(elsewhere, "ROOT", tmp_path)
    monkeypatch.setattr(elsewhere, "FUZZ", "test_it.py")
    found = run_tests("x", {"test_it.py": "a slow fails skipped"})
    assert (found.tried, found.problems) == (4, ["test_it::test_fails"]) and found.what == "x: tests in `test_it.py`"
    assert "ended with 4" in run_tests("x", {"test_it.py": "gone"}).problems[0]
    assert (run_fuzz(7).tried, run_fuzz(7).problems) == (11, [])
    monkeypatch.setattr(elsewhere, "FUZZ", "pytest.ini")
    assert run_fuzz(7).tried == 0 and "0 inputs were tried, not 7" in run_fuzz(7).problems
