"""The faults of `make reliability`, with two hundred kills."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_nothing_is_lost(tmp_path: Path) -> None:
    number = 200
    command = [sys.executable, "-m", "tests.faults.reliability", str(number), str(tmp_path / "table.md")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"^\| (.+?) \| ([\d,]+) \|.*\| nothing \|$", text, re.MULTILINE))
    assert sum(int(tried) for what, tried in found.items() if "instant" in what) >= number
    assert int(found["kill before each file operation of a checkpoint write"]) >= 20
    assert sum("damaged" in what for what in found) == 3
