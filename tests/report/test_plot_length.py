"""Cost against length: every line crosses the reference that is its own, and the names do not lie on one another."""

from __future__ import annotations

import pytest
from matplotlib import rc_context

from tests.report.test_answer import sized
from xcls.report import plot_learning, plot_length
from xcls.report.aggregate import group_runs, make_boards
from xcls.report.collect import Bench, collect
from xcls.report.plot_learning import learning_plot
from xcls.report.plot_length import bench_plot, length_plot
from xcls.report.plot_style import SETTINGS, Looks


def board_of(make, root, records):
    (board,) = make_boards(group_runs(collect([make.save(records, root)], root)), "macro_f1")
    return board


def plotted(make, root, records):
    with rc_context(SETTINGS):
        return length_plot(board_of(make, root, records), "sdpa", Looks())


def test_each_size_crosses_the_reference_of_its_own_size(make, tmp_path):
    made = []
    for length, time in ((512, 10.0), (1024, 30.0)):
        for size, factor in (("mini", 4.0), ("tiny", 1.0)):
            made += sized(make, "sdpa", size, seq_len=length, time=time * factor)
            made += sized(make, "performer", size, seq_len=length, time=time * factor * 1.2)
    words = plotted(make, tmp_path, made).words
    assert "Cheaper than sdpa mini for good: performer mini: not at the longest." in words
    assert "Cheaper than sdpa tiny for good: performer tiny: not at the longest." in words
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
    words = plotted(make, tmp_path, made).words
    assert words.count("at every length measured") == 1 and "reformer" in words.split("at every length")[0]
    assert "Without a sdpa alike at two of their lengths, so without a crossing: performer" in words


def test_a_bench_over_several_positions_compares_within_each(tmp_path):
    times = {("sdpa", "none"): 1.0, ("sdpa", "rope"): 4.0, ("performer", "none"): 2.0, ("performer", "rope"): 3.0}
    rows = [
        {"origin": "xcls", "part": "module", "position": position, "dtype": "fp32", "mechanism": name, "seq_len": n,
         "batch": 1, "training_ms": time * n, "training_MiB": 1.0 * n}
        for (name, position), time in times.items() for n in (512, 1024)
    ]  # fmt: skip
    words = bench_plot(Bench(tmp_path, "", {}, rows), "sdpa", Looks()).words
    assert "Cheaper than sdpa none for good: performer none: not at the longest." in words
    assert "Cheaper than sdpa rope for good: performer rope: at every length measured." in words


NAMES = ("sdpa", "sdpa_fused", "performer", "performer_band", "reformer", "window")


def close_lines(make, share=0.65, lower=0.018):
    """One line that ends above five others, by as much as their names take."""
    made = []
    for length, time in ((512, 10.0), (4096, 80.0)):
        for place, name in enumerate(NAMES):
            factor = 1.0 if name == "sdpa" else share * 0.99**place * (2.5 if length == 512 else 1.0)  # they cross
            score = 0.9 if name == "sdpa" else 0.9 - lower - place / 1000
            made += make.seeds(name, (score, score), seq_len=length, time=time * factor)
    return made


def overlaps(axes):
    renderer = axes.figure._get_renderer()
    axes.figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in axes.texts if "≈" not in text.get_text()]
    return len(boxes), [(a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[:i] if one.overlaps(two)]


@pytest.mark.parametrize("module", [plot_length, plot_learning], ids=["length", "learning"])
def test_the_names_of_lines_keep_their_places_beside_a_long_key(make, tmp_path, monkeypatch, module):
    drawn, plain = [], module.name_ends
    monkeypatch.setattr(module, "name_ends", lambda axes, ends: (plain(axes, ends), drawn.append(axes)))
    board = board_of(make, tmp_path, close_lines(make))
    with rc_context(SETTINGS):
        if module is plot_length:
            length_plot(board, "sdpa", Looks())
        else:
            about = {"name": "x", "title": "x", "board": None}
            learning_plot(board.groups, "macro_f1", **about, looks=Looks())
    assert drawn and [overlaps(axes) for axes in drawn] == [(6, [])] * len(drawn)


def test_a_crossing_is_labelled_with_its_mechanism(make, tmp_path, monkeypatch):
    drawn, plain = [], plot_length.name_ends
    monkeypatch.setattr(plot_length, "name_ends", lambda axes, ends: (plain(axes, ends), drawn.append(axes)))
    plotted(make, tmp_path, close_lines(make))
    labels = [text.get_text().split(" ≈ ")[0] for text in drawn[0].texts if "≈" in text.get_text()]
    assert sorted(labels) == ["performer", "performer_band", "reformer", "sdpa_fused", "window"]
