"""The faults of `make reliability`, few in the fast suite, at least two hundred kills in the slow one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.reliability import SIZES, TESTS, document
from tests.faults.tally import Tally

ROOT = Path(__file__).resolve().parents[2]


def tried(size: str, out: Path) -> dict[str, int]:
    """Runs the command. How often each kind of fault was tried, by the first words of its name."""
    command = [sys.executable, "-m", "tests.faults.reliability", size, str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"^\| (.+?) \| ([\d,]+) \|.*\| nothing \|$", out.read_text(encoding="utf-8"), re.MULTILINE)
    return {what: int(number.replace(",", "")) for what, number in lines}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.parametrize("size", ["tiny", pytest.param("slow", marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_nothing_is_lost(size: str, tmp_path: Path) -> None:
    found = tried(size, tmp_path / "table.md")
    numbers = SIZES[size]
    kills = sum(number for what, number in found.items() if "at a random instant" in what)
    assert kills >= numbers["kills"]
    assert found["kill before each file operation of a checkpoint write"] >= 20
    assert sum(number for what, number in found.items() if "of a whole run" in what) >= 4
    assert found["disk full in a checkpoint write"] == numbers["disks"]
    assert sum(number for what, number in found.items() if "damaged" in what) >= 3 * numbers["damages"]


def test_what_went_wrong_is_in_the_table() -> None:
    text = document([Tally("a", 3, 1, "nothing"), Tally("b", 2, 1, "nothing", problems=["run 7: metrics.csv"])], "quick", 60.0)
    assert "| a | 3 | 1 | nothing | nothing |" in text
    assert "| b | 2 | 1 | nothing | **1** |" in text and "- run 7: metrics.csv" in text


def test_the_slow_suite_kills_two_hundred_and_the_note_a_thousand() -> None:
    assert SIZES["slow"]["kills"] >= 200 and SIZES["full"]["kills"] >= 1000
    assert any((ROOT / path).exists() for paths in TESTS.values() for path in paths)
