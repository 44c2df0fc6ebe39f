"""What `make sweeps` writes; that it measures what it says is seen by `python -m tests.launcher.overhead 1`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.launcher.overhead import write


def test_the_table_stands_between_the_marks_of_the_document(tmp_path: Path) -> None:
    document = tmp_path / "sweeps.md"
    document.write_text((ROOT / "docs" / "sweeps.md").read_text())
    before = document.read_text().partition("<!-- measured:begin -->")[0]
    for seconds in ("1 s", "2 s"):  # the second time in place of the first
        write(document, [("a job", seconds, "0 s")])
    text = document.read_text()
    assert text.startswith(before) and text.rstrip().endswith("| a job | 2 s | 0 s |\n<!-- measured:end -->")
    assert (
        "| 1 s |" not in text
        and "Not measured yet" not in text
        and text.count("| what | measured | ideal |\n| --- | --- | --- |\n") == 1
    )
    document.write_text("no marks")
    with pytest.raises(ValueError, match="measured:begin"):
        write(document, [("a job", "1 s", "0 s")])
