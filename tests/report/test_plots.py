"""The plots: what is drawn follows from the runs, everything has a name, and nothing needs colour."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.image import imread

from tests.report.examples import board_of, sized, study_of
from tests.report.predicted import with_predictions
from xcls.report.drawing import COLOURS, SETTINGS, Looks, canvas, key, png, short
from xcls.report.load import Bench, collect
from xcls.report.plots import confusion, confusion_plot, draw, pareto_front, read_curve
from xcls.report.plots_of_length import bench_plots, crossover, length_plot
from xcls.report.predictions import Predictions
from xcls.runs.record import sha256


def drawn(make, root, records):
    study = study_of(make, root, records)
    return {plot.name: plot for plot in draw(study)}


def by_length(make, root, records):
    with rc_context(SETTINGS):
        return length_plot(board_of(study_of(make, root, records))[0], "sdpa", Looks())


def test_the_pareto_front_holds_what_nothing_beats_in_both():
    means = {"a": (1.0, 0.7), "b": (2.0, 0.9), "c": (3.0, 0.8), "d": (2.0, 0.9), "e": (0.5, 0.6), "f": (1.5, 0.7)}
    assert pareto_front(means) == ["e", "a", "b", "d"]


def test_a_study_has_its_plots_and_their_words_hold_the_numbers(make, tmp_path):
    made = [
        *make.seeds("sdpa", (0.90, 0.91, 0.92)),
        *make.seeds("performer", (0.89, 0.90, 0.91), time=7.0, memory=60.0),
        make.baseline(0.85),
    ]
    plots = drawn(make, tmp_path, made)
    assert list(plots) == [
        "quality_vs_time_per_epoch-demo",
        "quality_vs_rss_growth_MiB-demo",
        "seeds-demo",
        "learning-demo",
    ]
    plot = plots["quality_vs_time_per_epoch-demo"]
    assert "sdpa 10 and 0.910 (n = 3)" in plot.numbers and "performer 7 and 0.900 (n = 3)" in plot.numbers
    assert plot.words.endswith("performer, sdpa.")  # the Pareto front
    assert "performer 0.890 to 0.910 (n = 3)" in plots["seeds-demo"].numbers
    assert all(imread(io.BytesIO(plot.image), format="png").std() > 0.02 for plot in plots.values())


def test_costs_of_two_devices_are_in_two_plots(make, tmp_path):
    made = [*make.seeds("sdpa"), *make.seeds("performer", time=1.0, device={"kind": "cuda", "name": "a GPU"})]
    plots = drawn(make, tmp_path, made)
    first, second = (plots[f"quality_vs_time_per_epoch-demo-device{number}"].numbers for number in (1, 2))
    assert ("sdpa" in first) != ("sdpa" in second) and ("performer" in first) != ("performer" in second)


def test_names_that_are_code_elsewhere_are_names_here(make, tmp_path):
    odd = make.finetune("$\\frac{$", config={"attention.name": "$\\frac{$"}, run="demo/a")
    plots = drawn(make, tmp_path, [odd, make.finetune("_hidden\n\x00" + "x" * 99, run="demo/b")])
    assert len(plots) == 4 and short("_a\n\x00 b") == "a b" and len(short("x" * 99)) == 44


def test_a_group_looks_the_same_everywhere_and_like_no_other():
    looks = Looks()
    first = [looks.of(f"mechanism {number}") for number in range(12)]
    assert [looks.of(f"mechanism {number}") for number in reversed(range(12))] == first[::-1]
    assert len({look["marker"] for look in first}) == 12 and len({look["color"] for look in first[:8]}) == 8


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_are_dark_enough_on_white(colour):
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    light = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    assert 1.05 / (0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2] + 0.05) >= 4.5


@pytest.mark.parametrize("length", [10, 44])
def test_the_legend_names_every_line_and_fits_the_figure(length):
    with rc_context(SETTINGS):
        figure, (axes,) = canvas()
        for number in range(12):
            axes.plot([1, 2], [number, 3], label=f"{number:02d}".ljust(length, "x"))
        key(axes)
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
    assert len(legend.get_texts()) == 12 and box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0


def test_curves_are_over_time_and_over_tokens(make, tmp_path):
    sweep = make.save([make.finetune()], tmp_path)
    (run,) = collect([sweep], tmp_path).runs
    lines = "step,macro_f1,time_per_step,tokens_per_s\n10,0.5,0.2,1000\n20,0.6,0.3,\n30,,0.3,1000\n40,nan,1,1\n"
    (run.folder / "metrics.csv").write_text(lines, encoding="utf-8")
    run.record.files["metrics.csv"] = sha256(run.folder / "metrics.csv")
    curve = read_curve(run, "macro_f1")
    assert list(curve["seconds"]) == [2.0, 6.0] and list(curve["score"]) == [0.5, 0.6]
    assert curve["tokens"].iloc[0] == 2000.0 and np.isnan(curve["tokens"].iloc[1])
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
    plots = drawn(make, tmp_path, made)
    plot = plots["cost_vs_length-demo"]
    assert (
        "performer: from about 1,024 tokens on" in plot.words
        and "sdpa 5.12 s at 512 and 20.5 s at 2,048 tokens" in plot.numbers
    )
    assert {"quality_vs_time_per_epoch-demo-n512", "quality_vs_time_per_epoch-demo-n2048"} <= set(plots)
    assert by_length(make, tmp_path / "lone", [record for record in made if record.seq_len == 512]) is None


def test_each_size_crosses_the_reference_of_its_own_size(make, tmp_path):
    made = []
    for length, time in ((512, 10.0), (1024, 30.0)):
        for size, factor in (("mini", 4.0), ("tiny", 1.0)):
            made += sized(make, "sdpa", size, seq_len=length, time=time * factor)
            made += sized(make, "performer", size, seq_len=length, time=time * factor * 1.2)
    words = by_length(make, tmp_path, made).words
    assert all(
        f"Cheaper than sdpa {size} for good: performer {size}: not at the longest." in words
        for size in ("mini", "tiny")
    )
    assert "at every length" not in words


@pytest.mark.parametrize("device", [{"threads": 16}, {"name": "another CPU"}], ids=str)
def test_other_threads_and_devices_have_no_crossing_and_it_is_said(make, tmp_path, device):
    made = []
    for length, time in ((512, 10.0), (1024, 30.0)):
        made += make.seeds("sdpa", seq_len=length, time=3 * time)
        made += make.seeds("performer", seq_len=length, time=time, device=device)
        made += make.seeds("reformer", seq_len=length, time=time)
    for record in made:
        record.run += f"-{record.device['threads']}-{record.device['name']}"
    words = by_length(make, tmp_path, made).words
    assert words.count("at every length measured") == 1 and "reformer" in words.split("at every length")[0]
    assert "without a crossing: performer" in words


def bench_rows(times, position="none"):
    shape = {"origin": "xcls", "part": "module", "position": position, "dtype": "fp32", "batch": 2}
    return [
        {**shape, "mechanism": name, "seq_len": n, "training_ms": time, "training_MiB": 2.0 * n}
        for (name, n), time in times.items()
    ]


TIMES = {("sdpa", 512): 10.0, ("sdpa", 2048): 160.0, ("performer", 512): 20.0, ("performer", 2048): 80.0}


def test_cost_against_length_from_mode_bench(tmp_path):
    rows = [
        *bench_rows(TIMES),
        {"mechanism": "broken", "origin": "xcls", "part": "module", "seq_len": "x", "training_ms": None},
    ]
    (plot,) = bench_plots(Bench(tmp_path / "a b", "a b", {"device": {"name": "a CPU"}}, rows), "sdpa", Looks())
    assert plot.name == "bench-a-b" and "sdpa 5 ms at 512 and 80 ms at 2,048 tokens" in plot.numbers
    assert "performer: from about 1,024 tokens on" in plot.words and "a CPU" in plot.words
    assert bench_plots(Bench(tmp_path, "", {}, rows[:1]), "sdpa", Looks()) == []


def test_a_bench_over_several_positions_compares_within_each(tmp_path):
    rows = bench_rows(TIMES) + bench_rows(
        {(name, n): n / (500 if name == "sdpa" else 600) for name, n in TIMES}, "rope"
    )
    words = bench_plots(Bench(tmp_path, "", {}, rows), "sdpa", Looks())[0].words
    assert "Cheaper than sdpa none for good: performer none: from about 1,024" in words
    assert "Cheaper than sdpa rope for good: performer rope: at every length measured." in words


def test_measurements_are_found_beside_runs(make, tmp_path):
    sweep = make.save(make.seeds("sdpa"), tmp_path)
    texts = {"good": json.dumps({"rows": bench_rows(TIMES), "device": 3}), "bad": '{"rows": 3}', "cut": '{"rows": ['}
    for name, text in texts.items():
        (sweep / name).mkdir()
        (sweep / name / "bench.json").write_text(text, encoding="utf-8")
    found = collect([sweep], tmp_path)
    assert [bench.place for bench in found.benches] == ["multirun/demo/good"] and len(found.runs) == 3
    assert [item.place for item in found.unreadable] == ["multirun/demo/bad", "multirun/demo/cut"]


def test_confusion_is_of_each_true_class_the_share_named_as_each_over_all_runs():
    one, two = (Predictions("", 2, np.array([0, 0, 1]), np.array(said)) for said in ([0, 1, 1], [0, 0, 0]))
    np.testing.assert_array_equal(confusion([one, two]), [[0.75, 0.25], [0.5, 0.5]])


def predicted(make, root, classes):
    """One run that takes a quarter of the first class for the second one on test, and its board."""
    record = make.finetune()
    sweep = make.save([record], root)
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    said = np.eye(3)[[0, 0, 0, 1, 1, 1, 2, 2]]
    with_predictions(record, sweep / record.run, {"test": (labels, said)}, classes=classes)
    return board_of(study_of(make, root))[0]


def test_the_confusion_matrix_is_of_the_test_split(make, tmp_path):
    plot = confusion_plot(predicted(make, tmp_path, ("a", "b", "c")))
    assert "sdpa: a taken for b (25 %)" in plot.words and plot.board == "demo"


def test_class_names_that_the_font_lacks_are_numbered(make, tmp_path, recwarn):
    plot = confusion_plot(predicted(make, tmp_path, ("Überfluß", "电器", "🤮")))
    assert "(2) 电器, (3) 🤮." in plot.words and "(1)" not in plot.words
    assert [str(found.message) for found in recwarn if "Glyph" in str(found.message)] == []


def test_no_confusion_matrix_from_a_file_that_is_something_else(make, tmp_path):
    board = predicted(make, tmp_path, ("a", "b", "c"))
    (board.groups[0].runs[0].folder / "predictions.parquet").write_bytes(b"PAR1 and then nothing")
    assert confusion_plot(board) is None


def test_the_same_figure_gives_the_same_bytes():
    def once():
        with rc_context(SETTINGS):
            figure, (axes,) = canvas()
            axes.plot([1, 2], [3, 4], label="a")
            return png(figure)

    image = once()
    assert image == once() and b"Matplotlib" not in image and b"tIME" not in image
