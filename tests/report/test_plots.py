"""The plots: what is drawn follows from the runs, everything has a name, and nothing needs colour."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from matplotlib.image import imread

from tests.report.examples import sized, study_of
from xcls.report.load import collect
from xcls.report.plots import draw, pareto_front, read_curve
from xcls.runs.record import sha256


def drawn(make, root, records, **options):
    return {plot.name: plot for plot in draw(study_of(make, root, records, **options))}


def test_the_pareto_front_holds_what_nothing_beats_in_both():
    means = {"a": (1.0, 0.7), "b": (2.0, 0.9), "c": (3.0, 0.8), "d": (2.0, 0.9), "e": (0.5, 0.6), "f": (1.5, 0.7)}
    front = pareto_front(pd.DataFrame(means, index=["cost", "score"]).T)
    assert list(front.index) == ["e", "a", "b", "d"]


def test_a_study_has_its_plots_and_their_words_hold_the_numbers(make, tmp_path):
    made = [*make.seeds("sdpa", (0.90, 0.91, 0.92)), make.baseline(0.85)]
    made += make.seeds("performer", (0.89, 0.90, 0.91), time=7.0, memory=60.0)
    plots = drawn(make, tmp_path, made)
    assert {"quality_vs_time_per_epoch-demo", "quality_vs_rss_growth_MiB-demo", "learning-demo"} <= set(plots)
    plot = plots["quality_vs_time_per_epoch-demo"]
    assert "sdpa 10 and 0.910 (n = 3)" in plot.numbers and "performer 7 and 0.900 (n = 3)" in plot.numbers
    assert plot.words.endswith("performer, sdpa.")  # the Pareto front
    assert all(imread(io.BytesIO(plot.image), format="png").std() > 0.02 for plot in plots.values())


def test_costs_of_two_devices_are_in_two_plots(make, tmp_path):
    made = [*make.seeds("sdpa"), *make.seeds("performer", time=1.0, device={"kind": "cuda", "name": "a GPU"})]
    plots = drawn(make, tmp_path, made)
    first, second = (plots[f"quality_vs_time_per_epoch-demo-device{number}"].numbers for number in (1, 2))
    assert ("sdpa" in first) != ("sdpa" in second) and ("performer" in first) != ("performer" in second)


def test_curves_are_over_time_and_over_tokens(make, tmp_path):
    (run,) = collect([make.save([make.finetune()], tmp_path)], tmp_path).runs
    lines = "step,macro_f1,time_per_step,tokens_per_s\n10,0.5,0.2,1000\n20,0.6,0.3,\n30,,0.3,1000\n40,nan,1,1\n"
    (run.folder / "metrics.csv").write_text(lines, encoding="utf-8")
    run.record.files["metrics.csv"] = sha256(run.folder / "metrics.csv")
    curve = read_curve(run, "macro_f1")
    assert list(curve["seconds"]) == [2.0, 6.0] and list(curve["score"]) == [0.5, 0.6]
    assert curve["tokens"].iloc[0] == 2000.0 and np.isnan(curve["tokens"].iloc[1]) and read_curve(run, "auroc") is None


def test_cost_against_length_is_of_runs_alike_but_for_it(make, tmp_path):
    made = [make.finetune("sdpa", seed, seq_len=n, time=n / 100) for n in (512, 2048) for seed in (0, 1)]
    made += [*sized(make, "performer", "mini", seq_len=512), *sized(make, "performer", "tiny", seq_len=2048)]
    plots = drawn(make, tmp_path, made)
    assert "5.12 s per epoch at 512" in plots["cost_vs_length-demo"].numbers
    assert "20.5 s per epoch at 2,048 tokens" in plots["cost_vs_length-demo"].numbers
    assert "performer" not in plots["cost_vs_length-demo"].numbers
    assert {"quality_vs_time_per_epoch-demo-n512", "quality_vs_time_per_epoch-demo-n2048"} <= set(plots)
