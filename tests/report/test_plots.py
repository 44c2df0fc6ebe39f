"""The plots: what is drawn follows from the runs, everything has a name, and nothing needs colour."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib import rc_context
from matplotlib.image import imread

from xcls.record import sha256, write_record
from xcls.report.aggregate import group_runs, make_boards
from xcls.report.collect import Bench, collect
from xcls.report.curves import read_curve
from xcls.report.plot_confusion import confusion_plot, shares
from xcls.report.plot_length import bench_plot, crossover, length_plot
from xcls.report.plot_quality import pareto_front
from xcls.report.plot_style import COLOURS, SETTINGS, Looks, canvas, name_ends, name_marks, png, short
from xcls.report.plots import draw


def drawn(make, root, records, reference="sdpa"):
    found = collect([make.save(records, root)], root)
    groups = group_runs(found)
    boards = make_boards(groups, "macro_f1")
    return {plot.name: plot for plot in draw(boards, groups, found.benches, reference)}, boards, found


def test_the_pareto_front_holds_what_nothing_beats_in_both():
    means = {"a": (1.0, 0.7), "b": (2.0, 0.9), "c": (3.0, 0.8), "d": (2.0, 0.9), "e": (0.5, 0.6), "f": (1.5, 0.7)}
    assert pareto_front(means) == ["e", "a", "b", "d"]


def test_a_study_has_its_plots_and_their_words_hold_the_numbers(make, tmp_path):
    made = [
        *make.seeds("sdpa", (0.90, 0.91, 0.92)),
        *make.seeds("performer", (0.89, 0.90, 0.91), time=7.0, memory=60.0),
        make.baseline(0.85),
    ]
    plots, _, _ = drawn(make, tmp_path, made)
    assert list(plots) == [
        "quality_vs_time_per_epoch-demo",
        "quality_vs_rss_growth_MiB-demo",
        "seeds-demo",
        "learning-demo",
    ]
    plot = plots["quality_vs_time_per_epoch-demo"]
    assert "sdpa 10 and 0.910 (n = 3)" in plot.numbers and "performer 7 and 0.900 (n = 3)" in plot.numbers
    assert "On the Pareto front, where nothing is both cheaper and better: performer, sdpa." in plot.words
    assert "performer 0.890 to 0.910 (n = 3)" in plots["seeds-demo"].numbers
    assert all(imread(io.BytesIO(plot.image), format="png").std() > 0.02 for plot in plots.values())


def test_costs_of_two_devices_are_in_two_plots(make, tmp_path):
    other = {"kind": "cuda", "name": "a GPU"}
    made = [*make.seeds("sdpa"), *make.seeds("performer", time=1.0, device=other)]
    plots, _, _ = drawn(make, tmp_path, made)
    first, second = (
        plots["quality_vs_time_per_epoch-demo-device1"].numbers,
        plots["quality_vs_time_per_epoch-demo-device2"].numbers,
    )
    assert ("sdpa" in first) != ("sdpa" in second) and ("performer" in first) != ("performer" in second)


def test_names_that_are_code_elsewhere_are_names_here(make, tmp_path):
    made = [
        make.finetune("$\\frac{$", config={"attention.name": "$\\frac{$"}, run="demo/a"),
        make.finetune("_hidden\n\x00" + "x" * 99, run="demo/b"),
    ]
    plots, _, _ = drawn(make, tmp_path, made)
    assert len(plots) == 4 and short("_a\n\x00 b") == "a b" and len(short("x" * 99)) == 44


def test_a_group_looks_the_same_everywhere_and_like_no_other():
    looks = Looks()
    first = [looks.of(f"mechanism {number}") for number in range(12)]
    assert [looks.of(f"mechanism {number}") for number in reversed(range(12))] == first[::-1]
    assert len({look.marker for look in first}) == 12 and len({(look.marker, look.line) for look in first}) == 12
    assert len({look.colour for look in first[:8]}) == 8


@pytest.mark.parametrize("colour", COLOURS)
def test_names_in_colour_are_dark_enough_on_white(colour):
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    light = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    assert 1.05 / (0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2] + 0.05) >= 4.5


def boxes(axes):
    renderer = axes.figure._get_renderer()
    return [text.get_window_extent(renderer) for text in axes.texts]


def test_names_beside_marks_do_not_lie_on_one_another():
    with rc_context(SETTINGS):
        figure, (axes,) = canvas()
        marks = [
            (x, y, f"mechanism {x:.2f} {y:.2f}", "black")
            for x, y in [(1, 1), (1.01, 1), (1.02, 1.01), (1.5, 1.2), (1.5, 1.19)]
        ]
        axes.scatter([x for x, *_ in marks], [y for _, y, *_ in marks])
        axes.margins(0.3)
        name_marks(axes, marks, [])
        placed = boxes(axes)
    assert len(placed) == 5 and not any(a.overlaps(b) for i, a in enumerate(placed) for b in placed[:i])


def test_names_at_the_ends_of_lines_stand_under_one_another():
    with rc_context(SETTINGS):
        figure, (axes,) = canvas()
        axes.set(xlim=(0, 2), ylim=(0, 1))
        name_ends(axes, [(1.0, 0.5, "one", "black"), (1.0, 0.5, "two", "black"), (1.0, 0.51, "three", "black")])
        placed = sorted(boxes(axes), key=lambda box: box.y0)
    assert len(placed) == 3 and all(low.y1 <= high.y0 + 3 for low, high in zip(placed, placed[1:]))


def test_curves_are_over_time_and_over_tokens(make, tmp_path):
    sweep = make.save([make.finetune()], tmp_path)
    (folder,) = [path.parent for path in sweep.rglob("record.json")]
    (run,) = collect([sweep], tmp_path).runs
    lines = "step,macro_f1,time_per_step,tokens_per_s\n10,0.5,0.2,1000\n20,0.6,0.3,\n30,,0.3,1000\n40,nan,1,1\n"
    (folder / "metrics.csv").write_text(lines, encoding="utf-8")
    run.record.files["metrics.csv"] = sha256(folder / "metrics.csv")
    curve = read_curve(run, "macro_f1")
    assert (
        curve.seconds == [2.0, 6.0]
        and curve.scores == [0.5, 0.6]
        and curve.tokens[0] == 2000.0
        and curve.tokens[1] != curve.tokens[1]
    )
    assert read_curve(run, "auroc") is None


@pytest.mark.parametrize(
    ("one", "other", "meets"),
    [
        ({512: [2.0], 2048: [2.0]}, {512: [1.0], 2048: [4.0]}, 1024.0),
        ({512: [1.0], 1024: [1.0]}, {512: [2.0], 1024: [2.0]}, 0.0),
        ({512: [1.0], 1024: [3.0]}, {512: [2.0], 1024: [2.0]}, None),
        ({512: [1.0]}, {512: [2.0]}, None),
        ({512: [3.0], 1024: [1.0], 2048: [3.0], 4096: [0.75]}, {n: [1.5] for n in (512, 1024, 2048, 4096)}, 2896.309),
    ],
)
def test_the_crossover_is_where_one_becomes_cheaper_for_good(one, other, meets):
    assert crossover(one, other) == (None if meets is None else pytest.approx(meets, rel=1e-6))


def test_cost_against_length_from_runs(make, tmp_path):
    made = [make.finetune("sdpa", seed, seq_len=n, time=n / 100) for n in (512, 2048) for seed in (0, 1)]
    made += [make.finetune("performer", seed, seq_len=n, time=10.24) for n in (512, 2048) for seed in (0, 1)]
    plots, boards, _ = drawn(make, tmp_path, made)
    plot = plots["cost_vs_length-demo"]
    assert (
        "performer: from about 1,024 tokens on" in plot.words
        and "sdpa 5.12 s at 512 and 20.5 s at 2,048 tokens" in plot.numbers
    )
    assert {"quality_vs_time_per_epoch-demo-n512", "quality_vs_time_per_epoch-demo-n2048"} <= set(plots)
    lone = [record for record in made if record.seq_len == 512]
    assert (
        "cost_vs_length-demo" not in drawn(make, tmp_path / "lone", lone)[0]
        and length_plot(boards[0], "sdpa", Looks()) is not None
    )


def bench_rows():
    shape = {"origin": "xcls", "part": "module", "position": "none", "dtype": "fp32"}
    times = {("sdpa", 512): 10.0, ("sdpa", 2048): 160.0, ("performer", 512): 20.0, ("performer", 2048): 80.0}
    return [
        {**shape, "mechanism": name, "seq_len": n, "batch": 2, "training_ms": time, "training_MiB": 2.0 * n}
        for (name, n), time in times.items()
    ]


def test_cost_against_length_from_mode_bench(tmp_path):
    rows = [
        *bench_rows(),
        {"mechanism": "broken", "origin": "xcls", "part": "module", "seq_len": "x", "training_ms": None},
    ]
    plot = bench_plot(Bench(tmp_path / "a b", "a b", {"device": {"name": "a CPU"}}, rows), "sdpa", Looks())
    assert plot.name == "bench-a-b" and "sdpa 5 ms at 512 and 80 ms at 2,048 tokens" in plot.numbers
    assert "performer: from about 1,024 tokens on" in plot.words and "a CPU" in plot.words
    assert bench_plot(Bench(tmp_path, "", {}, rows[:1]), "sdpa", Looks()) is None


def test_measurements_are_found_beside_runs(make, tmp_path):
    sweep = make.save(make.seeds("sdpa"), tmp_path)
    for name, text in (
        ("good", json.dumps({"rows": bench_rows(), "device": 3})),
        ("bad", '{"rows": 3}'),
        ("cut", '{"rows": ['),
    ):
        (sweep / name).mkdir()
        (sweep / name / "bench.json").write_text(text, encoding="utf-8")
    found = collect([sweep], tmp_path)
    assert [bench.place for bench in found.benches] == ["multirun/demo/good"] and len(found.runs) == 3
    assert [item.place for item in found.unreadable] == ["multirun/demo/bad", "multirun/demo/cut"]


def with_predictions(make, root, pairs):
    sweep = make.save([make.finetune()], root)
    (folder,) = [path.parent for path in sweep.rglob("record.json")]
    columns = {
        "split": ["test"] * len(pairs) + ["validation"],
        "label": [p[0] for p in pairs] + ["b"],
        "prediction": [p[1] for p in pairs] + ["a"],
    }
    pq.write_table(pa.table(columns), folder / "predictions.parquet")
    (run,) = collect([sweep], root).runs
    run.record.files["predictions.parquet"] = sha256(folder / "predictions.parquet")
    write_record(run.record, folder)
    return sweep


def test_confusion_counts_the_test_split_alone(make, tmp_path):
    sweep = with_predictions(make, tmp_path, [("a", "a")] * 3 + [("a", "b")] + [("b", "b")] * 2)
    (board,) = make_boards(group_runs(collect([sweep], tmp_path)), "macro_f1")
    plot = confusion_plot(board)
    assert "sdpa: a taken for b (25 %)" in plot.words and plot.board == "demo"
    assert shares({("a", "a"): 3, ("a", "b"): 1}, ["a", "b"]) == [[0.75, 0.25], [0.0, 0.0]]


def test_class_names_that_the_font_lacks_are_numbered(make, tmp_path, recwarn):
    sweep = with_predictions(make, tmp_path, [("电器", "food"), ("food", "food"), ("🤮", "🤮"), ("Überfluß", "Überfluß")])
    (board,) = make_boards(group_runs(collect([sweep], tmp_path)), "macro_f1")
    plot = confusion_plot(board)
    assert "(3) 电器, (4) 🤮." in plot.words and "Überfluß" not in plot.words
    assert [str(found.message) for found in recwarn if "Glyph" in str(found.message)] == []


def test_no_confusion_matrix_from_a_file_that_is_something_else(make, tmp_path):
    sweep = make.save([make.finetune()], tmp_path)
    (folder,) = [path.parent for path in sweep.rglob("record.json")]
    (folder / "predictions.parquet").write_bytes(b"PAR1 and then nothing")
    (run,) = collect([sweep], tmp_path).runs
    run.record.files["predictions.parquet"] = sha256(folder / "predictions.parquet")
    write_record(run.record, folder)
    found = collect([sweep], tmp_path)
    (board,) = make_boards(group_runs(found), "macro_f1")
    assert len(found.runs) == 1 and confusion_plot(board) is None


def test_the_same_figure_gives_the_same_bytes():
    def once():
        with rc_context(SETTINGS):
            figure, (axes,) = canvas()
            axes.plot([1, 2], [3, 4], label="a")
            return png(figure)

    image = once()
    assert image == once() and b"Matplotlib" not in image and b"tIME" not in image
