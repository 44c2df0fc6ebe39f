"""Rows, ratios, tables and documents from known measurements."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from xcls.bench import table
from xcls.bench.results import add, add_rates, add_segments, add_work, compare, compare_trainings, write
from xcls.bench.table import number, refresh, report

MACHINE = {"flops_per_s": 1e9, "bytes_per_s": 1e9}
REFERENCES = ["sdpa", "sdpa_fused"]
PERFORMER = {"_target_": "xcls.attention.favor.Performer", "num_features": 128}
REFORMER = {"_target_": "xcls.attention.lsh.Reformer", "num_hashes": 1, "bucket_size": 64}
TEXT = "Before.\n\n<!-- table: rivals of one -->\nold\n<!-- end -->\n\nAfter.\n"


def row(mechanism: str, ms: float | None, *, origin: str = "xcls", memory: float = 10.0, **changes: Any) -> Any:
    made = {"mechanism": mechanism, "origin": origin, "position": "none", "part": "module", "seq_len": 512}
    made |= {"dtype": "bf16", "batch": 2, "status": "completed", "cause": None, **changes}
    if ms is not None:
        times = {f"{m}_{word}ms": n * ms for m in ("inference", "training") for word, n in (("", 1.0), ("min_", 0.5))}
        add(made, {**times, "inference_max_ms": 2 * ms, "training_max_ms": 2 * ms, "training_MiB": memory})
        add(made, {"training_flops": 1e6, "training_bytes": 2e6, "inference_flops_counted": 7e5})
        add_rates([made], {"bf16": MACHINE})
    return made


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_times_are_held_against_the_machine() -> None:
    found = row("sdpa", 4.0)
    assert found["training_share_of_peak"] == pytest.approx(0.25)  # 1e6 by formula in 4 ms, of 1e9 a second
    assert found["training_bound_ms"] == pytest.approx(2.0) and found["training_times_bound"] == pytest.approx(2.0)
    assert found["inference_share_of_peak"] == pytest.approx(0.175)  # no formula: the counter's number
    assert "inference_bound_ms" not in found


def test_ratios_are_to_references_and_to_the_quickest_rival() -> None:
    rows = [row("sdpa", 8.0), row("sdpa_fused", 4.0), row("reformer", 2.0, memory=6.0), row("sdpa", 100.0, seq_len=64)]
    rows += [row("reformer-pytorch, 1 round", 10.0, origin="reformer-pytorch")]
    rows += [row("transformers LSH, 1 round", 5.0, origin="transformers", memory=12.0)]
    rows += [row("reformer-pytorch, 4 rounds", 1.0, origin="reformer-pytorch")]
    compare(rows, REFERENCES, {"reformer": REFORMER, "sdpa": {}, "sdpa_fused": {}})
    assert (rows[2]["training_ms_vs_sdpa"], rows[2]["training_ms_vs_sdpa_fused"]) == (0.25, 0.5)
    assert rows[2]["rival"] == "transformers LSH, 1 round"
    assert (rows[2]["training_ms_vs_rival"], rows[2]["training_MiB_vs_rival"]) == (pytest.approx(0.4), 0.5)
    assert "rival" not in rows[0] and rows[4]["training_ms_vs_sdpa"] == 1.25


def test_what_failed_has_no_ratio_and_keeps_its_cause(tmp_path: Path) -> None:
    rows = [row("sdpa", None), row("performer", 2.0), row("performer-pytorch", None, origin="performer-pytorch")]
    add(rows[0], {"cause": 'RuntimeError: "x", y', "inference_MiB": 3.0})
    compare(rows, REFERENCES, {"performer": PERFORMER})
    assert not [key for key in rows[1] if "_vs_" in key]
    write(tmp_path, rows, {"status": "completed"})
    read = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert (read[0]["status"], read[0]["cause"]) == ("failed", 'RuntimeError: "x", y')
    assert (read[0]["training_ms"], read[1]["training_ms"], read[0]["inference_MiB"]) == ("", "2", "3")
    assert json.loads((tmp_path / "bench.json").read_text())["rows"][1]["training_ms"] == 2.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (0.12345, "0.123"), (12.345, "12.3"), (12345.6, "12,346"), (0.000012, "1.2e-05")],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


def test_the_screen_has_costs_work_failures_and_the_machine() -> None:
    rows = [row("sdpa", 8.0), row("performer", 2.0), row("reformer", None)]
    add(rows[2], {"cause": "killed"})
    compare(rows, REFERENCES, {})
    text = report(rows, {"bf16": MACHINE})
    lines = [cells(line) for line in text.splitlines() if line.startswith("| ")]
    names = ["inference_ms", "training_ms", "training_ms_vs_sdpa", "training_MiB", "training_MiB_vs_sdpa"]
    assert lines[0][6:11] == names and lines[2][6:11] == ["2 (1…4)", "2 (1…4)", "0.25", "10", "1"]
    assert lines[3][0] == "reformer" and lines[3][-1] == "killed"
    assert (
        "training_times_bound" in text and "GB/s" in text and "sdpa_fused" not in text
    )  # nothing was compared with it


def bench(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    about: dict[str, Any] = {"rows": rows, "device": {"name": "a CPU", "threads": 2}, "versions": {"torch": "2.13"}}
    (folder / name).mkdir(parents=True)
    (folder / name / "bench.json").write_text(json.dumps({**about, "machine": {"bf16": MACHINE}}), encoding="utf-8")


def test_a_document_s_table_is_made_anew_and_the_words_around_it_stay(tmp_path: Path) -> None:
    assert refresh(TEXT, tmp_path) == (TEXT, ["one"])  # no such bench: it stays as it is
    bench(tmp_path, "one", [row("performer", 75.0, rival="performer-pytorch", training_ms_vs_rival=0.97)])
    text, missing = refresh(TEXT, tmp_path)
    assert missing == [] and "old" not in text and "0.97" in text and "torch 2.13" in text
    assert text.startswith("Before.\n\n<!-- table: rivals of one -->\n| mechanism")
    assert text.endswith("<!-- end -->\n\nAfter.\n") and refresh(text, tmp_path)[0] == text
    with pytest.raises(KeyError):
        refresh(TEXT.replace("rivals", "nothing"), tmp_path)


def test_memory_is_laid_out_by_position(tmp_path: Path) -> None:
    step: dict[str, Any] = {"part": "step", "status": "completed"}
    rows = [
        {**step, "mechanism": name, "position": place, "training_MiB": 1000.0 + n, "inference_MiB": 300.0}
        for n, (name, place) in enumerate((name, place) for name in ("sdpa", "mean") for place in ("sin", "rope"))
    ]
    rows[1].update(status="failed", cause="out of memory", training_MiB=None)
    bench(tmp_path, "one", rows)
    lines = refresh(TEXT.replace("rivals", "places"), tmp_path)[0].splitlines()
    assert [cells(line) for line in (lines[3], *lines[5:7])] == [
        ["mechanism", "sin", "rope"],
        ["sdpa", "1,000 (300)", "out of memory (300)"],
        ["mean", "1,002 (300)", "1,003 (300)"],
    ]


def test_the_exit_code_says_whether_any_bench_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(TEXT + TEXT.replace("of one", "of two"), encoding="utf-8")
    monkeypatch.setattr(table, "BENCHES", tmp_path)
    assert table.main([str(page)]) == 1 and page.read_text(encoding="utf-8").count("old") == 2
    bench(tmp_path, "two", [row("performer", 75.0, rival="performer-pytorch")])
    assert table.main([str(page)]) == 0 and page.read_text(encoding="utf-8").count("old") == 1


def test_every_mark_of_a_document_names_a_table_and_a_bench_that_make_measures() -> None:
    root = Path(__file__).resolve().parents[2]
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    pages = [root / "docs" / name for name in ("mechanisms.md", "performance.md")]
    marks = [mark for page in pages for mark in table.MARK.findall(page.read_text(encoding="utf-8"))]
    assert len(marks) > 10
    for _, kind, name, _ in marks:
        assert kind in table.TABLES and (f"bench.name={name}" in makefile or f"bench={name}" in makefile)


def test_trainings_are_compared_with_the_best_of_transformers_round_by_round() -> None:
    common = {"stage": "finetune", "dtype": "bf16"}
    of = (("xcls", [8.0, 4.0, 9.0]), ("transformers", [4.0, 1.0, 3.0]), ("transformers", [1.0, 1.0, 1.0]))
    rows: list[dict[str, Any]] = [
        {**common, "origin": origin, "speeds": speeds, "tokens_per_s": sorted(speeds)[1]} for origin, speeds in of
    ]
    other = {**common, "dtype": "fp32", "origin": "transformers", "speeds": [99.0], "tokens_per_s": 99.0}
    compare_trainings([*rows, other])
    assert [row["vs_transformers"] for row in rows] == [3.0, 1.0, 1 / 3]
    assert (rows[0]["vs_transformers_min"], rows[0]["vs_transformers_max"]) == (2.0, 4.0)


@pytest.mark.parametrize(
    ("card", "checkpointing", "mfu"), [(200.0, False, 0.375), (None, False, None), (200.0, True, None)]
)
def test_mfu_counts_the_real_tokens_alone(card: float | None, checkpointing: bool, mfu: float | None) -> None:
    """100 operations a second are 10 for each of 10 real tokens; of 40 computed positions 30 are real."""
    found: dict[str, Any] = {"gradient_checkpointing": checkpointing}
    segment = {"tokens": 30, "computed": 40, "seconds": 3.0, "steps": 1, "memory_MiB": 1.0, "parameters": 1}
    add_segments(found, [segment])
    add_work(found, {"flops": 300, "tokens": 30}, 1000.0, card)
    assert found["tflops_per_s"] * 1e12 == pytest.approx(100.0) and found["share_of_peak"] == pytest.approx(0.1)
    assert found.get("mfu") == (None if mfu is None else pytest.approx(mfu))
