"""What was measured gets into the document, and what was not leaves it alone."""

from __future__ import annotations

import json
from pathlib import Path

from tests.gpu import tables

STEP = {"batch": 32, "tokens": 512, "dtype": "bf16", "host_ms": 5.0, "busy_ms": 9.0, "kernels": 321, "waits": 0}
FOUND = {
    "device": "A card",
    "torch": "2.13.0",
    "date": "2026-12-24",
    "step sdpa 32x512 bf16": {"attention": "sdpa", "ms": 10.0, "peak_MiB": 2000, **STEP},
    "step performer 32x512 bf16": {"attention": "performer", "ms": 7.0, "peak_MiB": 1000, **STEP},
    "errors sdpa 512": {
        "attention": "sdpa",
        "tokens": 512,
        "fp32": {"errors": [0.001, 0.25], "finite": True, "repeats": [True, True]},
        "bf16": {"errors": [0.001, 0.25], "finite": True, "repeats": [True, False]},
    },
    "errors window 512": {"attention": "window", "tokens": 512, "failed": "RuntimeError: no"},
}


def test_what_was_measured_gets_into_its_table_and_nothing_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "checks.json").write_text(json.dumps(FOUND))
    document = tmp_path / "gpu.md"
    old = "<!-- measured: steps -->\nnone\n<!-- end -->\n<!-- measured: repeats -->\nnone\n<!-- end -->\n"
    document.write_text(old)
    tables.main(str(tmp_path), str(document))
    text = document.read_text()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    rows = {row[0]: row[1:] for row in cells}
    assert rows["performer"] == ["32 × 512", "bf16", "7", "0.7", "5", "9", "321", "0", "1,000", "0.5"]
    assert rows["sdpa"][:3] == ["512", "0.25, repeats", "0.25, output repeats"] and rows["window"][1] == "failed"
    assert text.count(FOUND["device"]) == 2 and "none" not in text
    assert tables.refresh(old, {"device": "A card", "torch": "2.13.0", "date": "2026-12-24"}) == old
