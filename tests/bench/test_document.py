"""Tables of a document, made anew from what benches left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xcls.bench import document

ROW = {
    "mechanism": "performer",
    "origin": "xcls",
    "position": "none",
    "part": "module",
    "seq_len": 512,
    "dtype": "bf16",
    "status": "completed",
    "training_ms": 75.0,
    "training_ms_vs_rival": 0.97,
    "rival": "performer-pytorch",
    "training_MiB_vs_rival": 0.54,
}
CORE = {**ROW, "part": "core", "training_ms": 37.0, "training_ms_vs_rival": 0.89}
TEXT = "Before.\n\n<!-- table: rivals of one -->\nold\n<!-- end -->\n\nAfter.\n"


def bench(folder: Path, name: str, rows: list[dict]) -> None:
    about = {
        "rows": rows,
        "device": {"name": "a CPU", "threads": 2},
        "versions": {"torch": "2.13"},
        "machine": {"bf16": {"flops_per_s": 4.2e11, "bytes_per_s": 2e10}},
    }
    (folder / name).mkdir(parents=True)
    (folder / name / "bench.json").write_text(json.dumps(about), encoding="utf-8")


def test_a_table_is_made_anew_and_the_words_around_it_stay(tmp_path: Path) -> None:
    bench(tmp_path, "one", [ROW, CORE])
    text, missing = document.refresh(TEXT, tmp_path)
    assert missing == [] and "old" not in text
    assert text.startswith("Before.\n\n<!-- table: rivals of one -->\n| mechanism")
    assert text.endswith("<!-- end -->\n\nAfter.\n")
    cells = [cell.strip() for cell in text.splitlines()[5].strip("|").split("|")]
    assert cells == ["performer", "512", "bf16", "performer-pytorch", "75", "0.97", "0.89", "0.54"]
    assert "0.42 TFLOP/s" in text and "torch 2.13" in text
    assert document.refresh(text, tmp_path)[0] == text


def test_memory_is_laid_out_by_position(tmp_path: Path) -> None:
    step = {"part": "step", "status": "completed"}
    rows = [
        {**step, "mechanism": name, "position": place, "training_MiB": 1000.0 + n, "inference_MiB": 300.0}
        for n, (name, place) in enumerate((name, place) for name in ("sdpa", "mean") for place in ("sin", "rope"))
    ]
    rows[1].update(status="failed", cause="out of memory", training_MiB=None)
    bench(tmp_path, "one", rows)
    lines = document.refresh(TEXT.replace("rivals", "places"), tmp_path)[0].splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[3], *lines[5:7])] == [
        ["mechanism", "sin", "rope"],
        ["sdpa", "1,000 (300)", "out of memory (300)"],
        ["mean", "1,002 (300)", "1,003 (300)"],
    ]


def test_a_missing_bench_leaves_its_table(tmp_path: Path) -> None:
    assert document.refresh(TEXT, tmp_path) == (TEXT, ["one"])


def test_the_exit_code_says_whether_any_bench_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(TEXT + TEXT.replace("of one", "of two"), encoding="utf-8")
    monkeypatch.setattr(document, "BENCHES", tmp_path)
    assert document.main([str(page)]) == 1 and page.read_text(encoding="utf-8").count("old") == 2
    bench(tmp_path, "two", [ROW, CORE])
    assert document.main([str(page)]) == 0 and page.read_text(encoding="utf-8").count("old") == 1


def test_an_unknown_table_is_an_error(tmp_path: Path) -> None:
    bench(tmp_path, "one", [ROW])
    with pytest.raises(KeyError):
        document.refresh(TEXT.replace("rivals", "nothing"), tmp_path)


def test_every_mark_of_the_document_names_a_table_and_a_bench_that_make_measures() -> None:
    root = Path(__file__).resolve().parents[2]
    marks = document.MARK.findall((root / "docs" / "mechanisms.md").read_text(encoding="utf-8"))
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    assert len(marks) > 5
    for _, kind, name, _ in marks:
        assert kind in document.TABLES and f"bench.name={name}" in makefile
