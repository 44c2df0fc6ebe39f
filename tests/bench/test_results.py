"""Rows, ratios, crossovers, tables and plots from known events."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from xcls.bench.plot import crossover_plot
from xcls.bench.results import add_memory, add_times, columns, compare, crossovers, fail, hold_against, to_csv
from xcls.bench.table import markdown, number, report

MACHINE = {"flops_per_s": 1e9, "bytes_per_s": 1e9}
REFERENCES = ["sdpa", "sdpa_fused"]
PERFORMER = {"_target_": "xcls.attention.favor.Performer", "num_features": 128}
REFORMER = {"_target_": "xcls.attention.lsh.Reformer", "num_hashes": 1, "bucket_size": 64}


def row(
    mechanism: str, milliseconds: float | None, seq_len: int = 512, origin: str = "xcls", memory: float = 10.0
) -> dict[str, Any]:
    made = {
        "mechanism": mechanism,
        "origin": origin,
        "position": "none",
        "part": "module",
        "seq_len": seq_len,
        "dtype": "bf16",
        "batch": 2,
        "device": "cpu",
        "compile": False,
        "status": "completed",
        "cause": None,
    }
    if milliseconds is not None:
        seconds = milliseconds / 1000
        times = {m: [seconds, 0.5 * seconds, 2 * seconds] for m in ("inference", "forward", "training")}
        flops = {
            "training_flops": 1e6,
            "training_bytes": 2e6,
            "training_flops_counted": 1.5e6,
            "inference_flops_counted": 7e5,
        }
        add_times(made, {"times": times, "compile_s": None, **flops})
        hold_against(made, MACHINE)
        add_memory(made, {"inference_MiB": memory / 2, "training_MiB": memory})
    return made


def test_times_are_medians_with_extremes_and_held_against_the_machine() -> None:
    found = row("sdpa", 4.0)
    assert [found[f"training_{word}ms"] for word in ("", "min_", "max_")] == [4.0, 2.0, 8.0] and found["rounds"] == 3
    assert found["training_share_of_peak"] == pytest.approx(0.25)  # 1e6 by formula in 4 ms, of 1e9 a second
    assert found["training_bound_ms"] == pytest.approx(2.0) and found["training_times_bound"] == pytest.approx(2.0)
    assert found["inference_share_of_peak"] == pytest.approx(0.175)  # no formula: the counter's number
    assert "inference_bound_ms" not in found


def test_host_and_device_are_told_apart_where_they_are_two() -> None:
    found = row("sdpa", 4.0)
    assert (found["host_ms"], found["device_ms"]) == (None, None) and {"host_ms", "device_ms"} <= set(
        columns(REFERENCES)
    )
    times = {"training": [0.004, 0.005, 0.006]}
    add_times(
        found, {"times": times, "host": [0.003, 0.001, 0.002], "device": [0.004, 0.003, 0.005], "compile_s": None}
    )
    assert (found["host_ms"], found["device_ms"]) == (2.0, 4.0)


def test_ratios_are_to_references_and_to_the_quickest_rival() -> None:
    rows = [
        row("sdpa", 8.0),
        row("sdpa_fused", 4.0),
        row("reformer", 2.0, memory=6.0),
        row("sdpa", 100.0, seq_len=64),
        row("reformer-pytorch, 1 round", 10.0, origin="reformer-pytorch"),
        row("transformers LSH, 1 round", 5.0, origin="transformers", memory=12.0),
        row("reformer-pytorch, 4 rounds", 1.0, origin="reformer-pytorch"),
    ]
    compare(rows, REFERENCES, {"reformer": REFORMER, "sdpa": {}, "sdpa_fused": {}})
    assert (rows[2]["training_ms_vs_sdpa"], rows[2]["training_ms_vs_sdpa_fused"]) == (0.25, 0.5)
    assert rows[2]["rival"] == "transformers LSH, 1 round"
    assert (rows[2]["training_ms_vs_rival"], rows[2]["training_MiB_vs_rival"]) == (pytest.approx(0.4), 0.5)
    assert "rival" not in rows[0] and rows[4]["training_ms_vs_sdpa"] == 1.25


def test_a_failed_rival_or_reference_gives_no_ratio() -> None:
    rows = [row("sdpa", None), row("performer", 2.0), row("performer-pytorch", None, origin="performer-pytorch")]
    fail(rows[0], "out of memory")
    compare(rows, REFERENCES, {"performer": PERFORMER})
    assert not [key for key in rows[1] if "_vs_" in key] and rows[0]["cause"] == "out of memory"


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [([2.0, 0.5], 1024.0), ([0.5, 0.4], 0.0), ([2.0, 1.5], None), ([0.5, 2.0], None), ([0.5, 2.0, 0.5], 2048.0)],
)
def test_crossovers_are_interpolated_and_hold_to_the_end(ratios: list[float], expected: float | None) -> None:
    rows = []
    for place, ratio in enumerate(ratios):
        length = 512 * 4**place if len(ratios) == 2 else 256 * 4**place
        rows += [row("sdpa", 1.0, length), row("performer", ratio, length)]
    compare(rows, ["sdpa"], {})
    (found,) = crossovers(rows, ["sdpa"])
    assert found["mechanism"] == "performer" and found["from"] == (
        None if expected is None else pytest.approx(expected)
    )


def test_the_csv_has_every_column_and_keeps_what_failed() -> None:
    rows = [row("sdpa", 8.0), row("performer", None)]
    fail(rows[1], 'RuntimeError: "x", y')
    compare(rows, REFERENCES, {})
    read = list(csv.DictReader(io.StringIO(to_csv(rows, REFERENCES))))
    assert list(read[0]) == columns(REFERENCES)
    assert (read[0]["training_ms"], read[1]["training_ms"]) == ("8", "")
    assert (read[1]["status"], read[1]["cause"]) == ("failed", 'RuntimeError: "x", y')


def test_a_table_drops_empty_columns_and_keeps_its_bars() -> None:
    columns = [("a", lambda r: r["a"]), ("empty", lambda r: "–"), ("b", lambda r: r["b"])]
    assert markdown(columns, [{"a": "x|y", "b": "1"}]) == "| a    | b |\n|------|--:|\n| x\\|y | 1 |"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (0.12345, "0.123"), (12.345, "12.3"), (12345.6, "12,346"), (0.000012, "1.2e-05")],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


def test_the_report_has_costs_work_failures_and_the_machine() -> None:
    rows = [row("sdpa", 8.0), row("performer", 2.0), row("reformer", None)]
    fail(rows[2], "killed")
    compare(rows, REFERENCES, {})
    text = report(rows, crossovers(rows, REFERENCES), REFERENCES, {"bf16": MACHINE})
    (line,) = [line for line in text.splitlines() if line.startswith("| performer") and "…" in line]
    assert [cell.strip() for cell in line.split("|")][5:11] == ["2", "2", "2 (1…4)", "0.25", "10", "1"]
    assert "TFLOP/s in large matrix products" in text and "× bound" in text
    assert [line for line in text.splitlines() if line.startswith("| reformer") and "killed" in line]
    assert "sdpa_fused" not in text  # nothing was compared with it


def test_the_plot_has_a_line_for_each_mechanism() -> None:
    rows = [row(name, 1.0 + place, length) for place, name in enumerate(("sdpa", "performer")) for length in (64, 256)]
    picture = crossover_plot(rows, "module", "title")
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and picture == crossover_plot(rows, "module", "title")
    assert crossover_plot(rows, "core", "title") is None
