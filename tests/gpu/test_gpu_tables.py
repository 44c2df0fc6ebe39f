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
        **{
            dtype: {"errors": [0.001, 0.25], "finite": True, "repeats": [True, dtype == "fp32"]}
            for dtype in ("fp32", "bf16")
        },
    },
    "errors window 512": {"attention": "window", "tokens": 512, "failed": "RuntimeError: no"},
}


def test_steps_and_repeats(tmp_path: Path) -> None:
    (tmp_path / "checks.json").write_text(json.dumps(FOUND))
    document = tmp_path / "gpu.md"
    document.write_text(
        "a\n<!-- measured: steps -->\nnone\n<!-- end -->\nb\n<!-- measured: repeats -->\nnone\n<!-- end -->\n"
    )
    tables.main(str(tmp_path), str(document))
    text = document.read_text()
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line.startswith("| ")
    }
    assert rows["performer"] == ["32 × 512", "bf16", "7", "0.7", "5", "9", "321", "0", "1,000", "0.5"]
    assert rows["sdpa"] == ["512", "0.25, repeats", "0.25, output repeats"] + ["–"] * (len(rows["window"]) - 3)
    assert rows["window"][1] == "failed"
    assert text.count("*Measured on A card, torch 2.13.0, 2026-12-24.*") == 2 and "none" not in text


def test_nothing_measured_changes_nothing() -> None:
    text = "<!-- measured: steps -->\nNot measured yet.\n<!-- end -->"
    assert tables.refresh(text, {"device": "A card", "torch": "2.13.0", "date": "2026-12-24"}) == text
