"""bench=growth: what is refused, what is planned, and a tiny bench along every axis."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Project
from xcls.bench import document, growth_run
from xcls.bench.growth_plan import Cell, GrowthPlan, cell_recipe, cell_texts, plan_growth, synthetic_text
from xcls.bench.growth_results import COLUMNS, add_bytes_per_row
from xcls.bench.growth_rows import CLASSES, WORDS_A_TEXT, Peak, write_rows
from xcls.bench.growth_run import run_growth_bench
from xcls.bench.growth_startup import first_step_time, startup_rows
from xcls.bench.training_plan import Recipe
from xcls.config.schema import Bench, Config, Hardware, Size, Training, UserError

ATTENTIONS = {
    "sdpa": {"_target_": "xcls.attention.softmax.Sdpa", "name": "sdpa"},
    "performer": {"_target_": "xcls.attention.favor.Performer", "name": "performer_favor", "num_features": 8},
    "broken": {"_target_": "xcls.attention.favor.Performer", "name": "broken", "num_features": -1},
}
POSITIONS = {name: {"_target_": "xcls.position.none.NoPosition", "name": name} for name in ("none", "sin")}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def config(**changes: Any) -> Config:
    settings: dict[str, Any] = {
        "what": "growth",
        "name": "growth",
        "attentions": ["performer"],
        "references": [],
        "positions": ["none"],
        "dtypes": ["fp32"],
        "others": False,
        "rounds": 2,
        "least_rounds": 1,
        "seconds": 60.0,
        "steps_per_segment": 1,
        "axes": ["length"],
        "seq_lens": [16],
        "widths": [16, 128],
        "depths": [1, 2],
        "row_counts": [200],
        "tokens_per_step": 64,
        "width": 16,
        "num_heads": 2,
        "num_layers": 1,
        "starts": 1,
    }
    return Config(
        seq_len=24,
        size=Size(num_layers=1, width=16, num_heads=2, feed_forward=32),
        finetuning=Training(batch_size=8),
        hardware=Hardware(threads=1),
        bench=Bench(**{**settings, **changes}),
    )


def planned(settings: Config) -> GrowthPlan:
    return plan_growth(settings, attentions=ATTENTIONS, positions=POSITIONS)


def bench(folder: Path, settings: Config, root: Path = Path(".")) -> list[dict[str, str]]:
    assert (
        run_growth_bench(settings, planned(settings), device="cpu", folder=folder, root=root, progress=False) == folder
    )
    return list(csv.DictReader((folder / "results.csv").open()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": ["lenght"]}, "bench.axes: lenght: one of startup, length, .*Did you mean 'length'"),
        ({"axes": []}, "bench.axes=.*at least one"),
        ({"widths": [128, 128]}, "bench.widths=.*each named once"),
        ({"widths": [4]}, "bench.widths: 4: at least 8"),
        ({"widths": [200]}, "bench.widths: 200: a multiple of 3"),
        ({"depths": [0]}, "bench.depths: 0: at least 1"),
        ({"row_counts": [10]}, "bench.row_counts: 10: at least 100"),
        ({"dtypes": ["fp32", "bf16"]}, "bench=growth takes one of each"),
        ({"positions": ["none", "sin"]}, "bench=growth takes one of each"),
        ({"seq_lens": [16385]}, "bench.seq_lens: 16385"),
        ({"attentions": ["sdpo"]}, "no such file in conf/attention"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(config(**changes))


def test_every_axis_has_its_points_and_no_others() -> None:
    settings = config(axes=["width", "length", "depth"], seq_lens=[64, 16, 256])
    cells = planned(settings).cells
    assert [(cell.axis, cell.seq_len, cell.width, cell.num_heads, cell.num_layers, cell.batch) for cell in cells] == [
        ("length", 16, 16, 2, 1, 4),
        ("length", 64, 16, 2, 1, 1),
        ("length", 256, 16, 2, 1, 1),
        ("width", 16, 16, 1, 1, 4),
        ("width", 16, 128, 2, 1, 4),
        ("depth", 16, 16, 2, 1, 4),
        ("depth", 16, 16, 2, 2, 4),
    ]
    assert planned(config(axes=["rows"])).cells == []


def test_a_cell_s_text_fills_its_length_and_its_recipe_is_the_run_s(tmp_path: Path) -> None:
    cell = Cell("length", 16, 128, 2, 3, 4)
    text = synthetic_text(cell)
    assert (
        (text.encoded.lengths == 16).all() and len(text.encoded) == 16 and text.encoded[3][[0, -1]].tolist() == [2, 3]
    )
    files = cell_texts(cell, tmp_path)
    encoded, labels, _ = files.read()
    assert (encoded.ids == text.encoded.ids).all() and (labels == text.labels).all()
    recipe = cell_recipe(config(), cell, device="cpu", texts=files)
    size = recipe.size
    assert (size.width, size.num_heads, size.num_layers, size.feed_forward) == (128, 2, 3, 512)
    assert (recipe.seq_len, recipe.training.batch_size, recipe.training.group_by_length) == (16, 4, False)
    assert recipe.training.lr == Training().lr and Recipe.from_plain(json.loads(json.dumps(asdict(recipe)))) == recipe


def test_the_file_of_documents_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_rows(tmp_path / name, 150)
    lines = (tmp_path / "one").read_text().splitlines()
    assert lines == (tmp_path / "two").read_text().splitlines() and len(lines) == 151
    assert all(len(line.rsplit(",", 1)[0].split()) == WORDS_A_TEXT for line in lines[1:])
    assert {line.rsplit(",", 1)[1] for line in lines[1:]} == {f"class {number}" for number in range(CLASSES)}


def test_the_peak_of_memory_is_seen_after_it_is_gone() -> None:
    peak = Peak()
    peak.start()
    held = np.ones(64 * 2**17)  # 64 MiB
    while peak.growth < 50 and peak.is_alive():  # the thread looks every few milliseconds
        held.sum()
    del held
    peak.ended.set()
    peak.join()
    assert 50 <= peak.growth < 200


def test_bytes_of_a_document_are_those_above_the_smallest_file() -> None:
    rows = [
        {"axis": "rows", "rows": count, "status": "completed", "memory_MiB": memory}
        for count, memory in ((10_000, 100.0), (20_000, 90.0), (10_000 + 2**20, 200.0))
    ]
    add_bytes_per_row(rows)
    assert "bytes_per_row" not in rows[0] and "bytes_per_row" not in rows[1] and rows[2]["bytes_per_row"] == 100.0


def test_a_slow_mechanism_goes_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, int]] = []

    class Timed:
        cause = None

        def __init__(self, job: dict[str, Any], variables: dict[str, str]) -> None:
            self.name, self.length = job["contender"]["name"], job["recipe"]["seq_len"]
            started.append((self.name, self.length))
            self.ready = {"parameters": 7}

        def ask(self, word: str) -> dict[str, Any]:
            seconds = 0.1 if self.name == "performer" else (self.length / 16) ** 2
            return {"seconds": seconds, "steps": 1, "tokens": 64, "computed": 64, "memory_MiB": 1.0}

        def close(self) -> None:
            pass

    monkeypatch.setattr(growth_run, "TrainingProcess", Timed)
    rows = bench(tmp_path, config(attentions=["performer", "sdpa"], seq_lens=[16, 48, 64, 128], longest_step=4.0))
    assert started == [
        ("performer", 16),
        ("sdpa", 16),
        ("performer", 48),
        ("sdpa", 48),
        ("performer", 64),
        ("performer", 128),
    ]
    causes = [row["cause"] for row in rows if row["contender"] == "sdpa"]
    assert causes == ["", "", *["a step takes 9.0 s already at the point before"] * 2]


@pytest.mark.slow
def test_a_tiny_bench_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = bench(tmp_path / "growth", config(attentions=["performer", "broken"]))
    assert [(row["contender"], row["status"]) for row in rows] == [("performer", "completed"), ("broken", "failed")]
    assert float(rows[0]["tokens_per_s"]) > 0 and float(rows[0]["memory_MiB"]) > 0 and rows[0]["rounds"] == "2"
    assert (
        float(rows[0]["parameters"]) > 8192 * 16
        and "num_features" in rows[1]["cause"]
        and list(rows[0]) == list(COLUMNS)
    )
    assert json.loads((tmp_path / "growth" / "bench.json").read_text())["status"] == "completed"
    shown = capsys.readouterr().out
    assert "## Against the length" in shown and "| performer" in shown
    page, missing = document.refresh("<!-- table: length of growth -->\n<!-- end -->\n", tmp_path)
    assert missing == [] and "| performer" in page and "tokens/s (min…max)" in page


@pytest.mark.slow
def test_documents_and_start_up_for_real(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)
    row = bench(project.folder / "growth", config(axes=["rows"]))[0]
    assert row["status"] == "completed" and row["rows"] == "200", row["cause"]
    assert 0 < float(row["prepare_warm_s"]) < float(row["first_step_warm_s"])
    assert float(row["memory_MiB"]) > 0 and float(row["cache_MiB"]) > 0 and float(row["tokens_per_s"]) > 0
    words = [
        "dataset=files",
        f"dataset.path={project.folder / 'rows.csv'}",
        "seq_len=24",
        "tokenizer.vocab_size=120",
        "wandb=disabled",
    ]
    before = project.files()
    asked, stepped = startup_rows(project.folder, starts=1, words=words)
    assert asked["status"] == stepped["status"] == "completed", (asked, stepped)
    assert 0 < asked["seconds"] < stepped["seconds"] and project.files() == before
    assert (
        "no such file"
        in startup_rows(project.folder, starts=1, words=["dataset=files", "dataset.path=nowhere"])[1]["cause"]
    )


def test_half_a_line_of_events_is_not_read(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    assert first_step_time(events) is None
    events.write_text('{"event": "start", "time": 1.0}\n{"event": "st')
    assert first_step_time(events) is None
    events.write_text(
        '{"event": "start", "time": 1.0}\n{"event": "step", "time": 2.5}\n{"event": "step", "time": 3.0}\n'
    )
    assert first_step_time(events) == 2.5
