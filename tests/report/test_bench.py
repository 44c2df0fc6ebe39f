"""What mode=bench has measured: its ratios beside those of the runs, and where efficient attention pays."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.report.examples import contents, records, report, study_of
from xcls.report.bench import Crossover, crossovers, sentence, table
from xcls.report.load import Bench, collect
from xcls.report.tables import claim_rows

TIMES = {  # ms of the fastest, the median and the slowest repeat, by mechanism and length
    ("sdpa", 512): (10.0, 11.0, 12.0),
    ("sdpa", 2048): (20.0, 21.0, 22.0),
    ("sdpa", 8192): (80.0, 81.0, 82.0),
    ("sdpa_fused", 512): (7.0, 8.0, 9.0),
    ("sdpa_fused", 2048): (14.0, 15.0, 16.0),
    ("sdpa_fused", 8192): (40.0, 41.0, 42.0),
    ("performer", 512): (11.5, 12.5, 13.0),
    ("performer", 2048): (13.0, 13.5, 15.0),
    ("performer", 8192): (12.0, 13.0, 14.0),
}
SHAPE = {"origin": "xcls", "part": "step", "position": "rope", "dtype": "fp32", "status": "completed", "compile": False}


def write_bench(root, name, made, *, device="a test CPU", **nodes):
    """The bench.json of these rows under root/multirun/bench/<name>."""
    folder = root / "multirun" / "bench" / name
    folder.mkdir(parents=True)
    data = {"device": {"kind": "cpu", "name": device}, "rows": made, **nodes}
    (folder / "bench.json").write_text(json.dumps(data), encoding="utf-8")


def step_bench(root, *, rounds=3, device="a test CPU", left_out=None) -> Bench:
    made = []
    for (name, length), times in TIMES.items():
        row = {**SHAPE, "mechanism": name, "seq_len": length, "batch": 8192 // length, "rounds": rounds}
        row |= dict(zip(("training_min_ms", "training_ms", "training_max_ms"), times))
        row["training_MiB"] = 100.0 * length / 512
        if (name, length) == left_out:
            row |= {"status": "failed", "cause": "out of memory", "training_ms": None, "training_min_ms": None}
        made.append(row)
    settings = {"references": ["sdpa", "sdpa_fused"], "num_layers": 2, "width": 128}
    write_bench(root, "crossover", made, device=device, settings=settings)
    (bench,) = collect(["multirun/bench"], root).benches
    return bench


def one(root, **changes) -> Crossover:
    (found,) = crossovers([step_bench(root, **changes)], [])
    return found


def test_quicker_means_every_repeat_and_is_open_where_they_overlap(tmp_path):
    found = one(tmp_path)
    told = {name: [found.compare("performer", name, n) for n in found.lengths] for name in found.references}
    assert told["sdpa"] == ["cannot tell", "quicker", "quicker"]
    assert told["sdpa_fused"] == ["slower", "cannot tell", "quicker"]
    assert found.quicker_from("performer", "sdpa") == "from 2,048 tokens on (cannot tell at 512)"
    assert found.quicker_from("sdpa", "sdpa_fused") == "not up to 8,192 tokens"
    said = sentence(found)
    assert "8,192 tokens" in said and "a test CPU" in said and said.index("sdpa_fused") < said.index("than with sdpa:")


def test_the_table_has_time_memory_ratios_and_repeats(tmp_path):
    cells = {row["mechanism"]: row for row in table(one(tmp_path, left_out=("sdpa", 8192))).rows}
    assert list(cells) == ["sdpa", "sdpa_fused", "performer"] and cells["performer"]["repeats"] == "3, 3, 3"
    assert cells["performer"]["2,048 tokens, ms"] == "13.5 (0.64×, 0.90×)"
    assert cells["sdpa"]["8,192 tokens, ms"] == "failed" and cells["performer"]["8,192 tokens, ms"] == "13 (–, 0.32×)"


def test_one_length_another_machine_and_broken_rows_show_nothing(make, tmp_path):
    bench = step_bench(tmp_path, device="another CPU")
    groups = study_of(make, tmp_path / "runs", make.seeds("sdpa")).groups
    assert crossovers([bench], groups) == [] and len(crossovers([bench], [])) == 1
    alone = replace(bench, rows=[row for row in bench.rows if row["seq_len"] == 512])
    broken = replace(bench, settings={}, rows=[{**row, "seq_len": "x", "batch": 0} for row in bench.rows])
    assert crossovers([alone, broken], []) == []
    write_bench(tmp_path, "forged", [], settings=3)
    found = collect(["multirun/bench"], tmp_path)
    assert len(found.benches) == 1 and found.unreadable[0][0] == "multirun/bench/forged"


def test_the_page_and_the_screen_show_it(make, tmp_path):
    report(make, tmp_path / "without")
    assert "mode=bench" in contents(tmp_path / "without" / "out")["index.html"].decode()
    step_bench(tmp_path)
    said, made = report(make, tmp_path, records(make), plots=True), contents(tmp_path / "out")
    section = made["index.html"].decode().partition('<section id="bench">')[2].partition("</section>")[0]
    assert section.count("<img ") == 1 and section.count("<table") == 1 and "plots/step-crossover.png" in made
    assert all("from 2,048 tokens on (cannot tell at 512)" in text for text in (section, said))


def bench_of(root, *, training=(100.0, 80.0), device="a test CPU", name="b", speeds=((), ()), **changes):
    attentions = {
        "sdpa": {"name": "sdpa", "_target_": "xcls.attention.sdpa.X"},
        "performer": {"name": "performer_favor", "_target_": "xcls.attention.performer.X"},
    }
    common = {**SHAPE, "seq_len": 512, "batch": 16, "rounds": 7, "training_MiB": 10.0, **changes}
    costs = zip(attentions, training, speeds)
    made = [{**common, "mechanism": label, "training_ms": ms, "speeds": each or None} for label, ms, each in costs]
    size = {"width": 128, "num_heads": None, "num_layers": None}
    write_bench(root, name, made, device=device, attentions=attentions, settings=size, size=size)


def claimed(make, root, **options):
    """The ratio that mode=bench has beside the time claim of performer against sdpa, and what is said of it."""
    records = [*make.seeds("sdpa"), *make.seeds("performer", time=8.0, **options), make.baseline(0.8)]
    benches = collect(["multirun/bench"], root).benches
    (row,) = [
        row
        for row in claim_rows(study_of(make, root, records, benches=benches))
        if [row[k] for k in ("label", "reference", "split", "measured")] == ["performer", "sdpa", "test", "time ratio"]
    ]
    return row["bench"], row["bench_agrees"]


def test_the_likest_measurement_stands_beside_the_claim(make, tmp_path):
    bench_of(tmp_path, part="core", training=(100.0, 50.0), name="a")  # no training step
    bench_of(tmp_path, training=(100.0, 120.0), name="b")
    ratio, told = claimed(make, tmp_path)
    assert ratio == 1.2 and told.startswith("no") and "multirun/bench/b" in told  # the runs say 0.8
    speeds = ([10.0, 20.0, 10.0], [20.0, 30.0, 50.0])
    bench_of(tmp_path, name="t", part=None, stage="finetune", speeds=speeds)  # whole trainings, by rounds
    ratio, told = claimed(make, tmp_path)
    assert ratio == 0.5 and told.startswith("yes")  # the ratios of the rounds: 1/2, 2/3, 1/5
    report(make, tmp_path, [])
    assert "multirun/bench/t" in (tmp_path / "out" / "wnf.csv").read_text()


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"seq_len": 1024}, {}),
        ({"dtype": "bf16"}, {}),
        ({"status": "failed"}, {}),
        ({"device": "another CPU"}, {}),
        ({"origin": "performer-pytorch"}, {}),
        ({}, {"config": {"attention.num_features": 64}}),
    ],
    ids=str,
)
def test_a_measurement_under_other_conditions_does_not_count(make, tmp_path, change, options):
    bench_of(tmp_path, **change)
    assert claimed(make, tmp_path, **options) == (None, None)
