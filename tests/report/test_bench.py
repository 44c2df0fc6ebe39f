"""What mode=bench has measured: its ratios beside those of the runs, and where efficient attention pays."""

from __future__ import annotations

import json
import re

import pytest

from tests.report.examples import board_of, contents, report, study_of
from xcls.report.bench import CHANCE, Crossover, agree, crossovers, measured, sentence, table
from xcls.report.comparisons import disagreements, further_tables
from xcls.report.load import Bench, collect

TIMES = {  # ms of each repeat, by mechanism and length
    ("sdpa", 512): (10.0, 11.0, 12.0),
    ("sdpa", 2048): (20.0, 21.0, 22.0),
    ("sdpa", 8192): (80.0, 81.0, 82.0),
    ("sdpa_fused", 512): (7.0, 8.0, 9.0),
    ("sdpa_fused", 2048): (14.0, 15.0, 16.0),
    ("sdpa_fused", 8192): (40.0, 41.0, 42.0),
    ("performer", 512): (11.5, 12.5, 13.0),
    ("performer", 2048): (13.0, 13.5, 15.0),
    ("performer", 8192): (12.0, 13.0, 14.0),
    ("reformer", 512): (30.0, 31.0, 32.0),
    ("reformer", 2048): (30.0, 31.0, 32.0),
    ("reformer", 8192): (39.0, 43.0, 44.0),
}


def step_bench(root, *, rounds=3, device="a test CPU", left_out=()):
    rows = [
        {
            "origin": "xcls",
            "part": "step",
            "position": "rope",
            "dtype": "fp32",
            "mechanism": name,
            "seq_len": length,
            "batch": 8192 // length,
            "rounds": rounds,
            "status": "completed",
            "training_ms": times[1],
            "training_min_ms": times[0],
            "training_max_ms": times[2],
            "training_MiB": 100.0 * length / 512,
        }
        for (name, length), times in TIMES.items()
    ]
    for row in rows:
        if (row["mechanism"], row["seq_len"]) in left_out:
            row.update(
                status="failed", cause="out of memory", training_ms=None, training_min_ms=None, training_max_ms=None
            )
    data = {
        "device": {"kind": "cpu", "name": device},
        "rows": rows,
        "status": "completed",
        "attentions": {},
        "settings": {"references": ["sdpa", "sdpa_fused"], "num_layers": 2, "width": 128},
    }
    folder = root / "multirun" / "bench" / "crossover"
    folder.mkdir(parents=True)
    (folder / "bench.json").write_text(json.dumps(data), encoding="utf-8")
    return Bench(folder, "multirun/bench/crossover", data, rows)


def one(root, **changes) -> Crossover:
    (found,) = crossovers([step_bench(root, **changes)], [])
    return found


def test_quicker_means_every_repeat_and_is_open_where_they_overlap(tmp_path):
    found = one(tmp_path)
    assert [found.told("performer", "sdpa", length) for length in (512, 2048, 8192)] == [
        "cannot tell",
        "quicker",
        "quicker",
    ]
    assert [found.told("performer", "sdpa_fused", length) for length in (512, 2048, 8192)] == [
        "slower",
        "cannot tell",
        "quicker",
    ]
    assert found.quicker_from("performer", "sdpa") == "from 2,048 tokens on (cannot tell at 512)"
    assert found.quicker_from("performer", "sdpa_fused") == "from 8,192 tokens on (cannot tell at 2,048)"
    assert found.quicker_from("reformer", "sdpa") == "from 8,192 tokens on"
    assert found.quicker_from("reformer", "sdpa_fused") == "cannot tell at 8,192 tokens"
    assert found.quicker_from("sdpa", "sdpa_fused") == "not up to 8,192 tokens"
    said = sentence(found)
    assert "8,192 tokens" in said and "a test CPU" in said and said.index("sdpa_fused") < said.index("than with sdpa:")


@pytest.mark.parametrize(("rounds", "told"), [(2, "cannot tell"), (3, "quicker")])
def test_two_repeats_each_are_too_few(tmp_path, rounds, told):
    assert CHANCE == 20  # orders of three and three
    assert one(tmp_path, rounds=rounds).told("performer", "sdpa", 8192) == told


def test_the_table_has_time_memory_ratios_and_repeats(tmp_path):
    header, rows = table(one(tmp_path, left_out={("sdpa", 8192)}), [])
    cells = {row[0]: dict(zip(header, row)) for row in rows}
    assert list(cells) == ["sdpa", "sdpa_fused", "performer", "reformer"] and len(header) == 8
    assert (
        cells["performer"]["2,048 tokens, ms"] == "13.5 (0.64×, 0.90×)" and cells["performer"]["repeats"] == "3, 3, 3"
    )
    assert cells["sdpa_fused"]["512 tokens, MiB"] == "100 (1.00×, –)"
    assert cells["sdpa"]["8,192 tokens, ms"] == "failed" and cells["performer"]["8,192 tokens, ms"] == "13 (–, 0.32×)"


def test_one_length_and_another_machine_show_nothing(make, tmp_path, judged_groups):
    bench = step_bench(tmp_path, device="another CPU")
    assert crossovers([bench], judged_groups) == [] and len(crossovers([bench], [])) == 1
    alone = Bench(bench.folder, bench.place, bench.data, [row for row in bench.rows if row["seq_len"] == 512])
    broken = Bench(
        bench.folder, bench.place, {"settings": 3}, [{**bench.rows[0], "seq_len": "x"}, {**bench.rows[0], "batch": 0}]
    )
    assert crossovers([alone, broken], []) == []


@pytest.fixture
def judged_groups(make, tmp_path):
    return study_of(make, tmp_path / "runs", make.seeds("sdpa")).groups


def test_the_page_shows_it_beside_quality_and_the_screen_stays_short(make, tmp_path):
    step_bench(tmp_path)
    said = report(make, tmp_path)
    made = contents(tmp_path / "out")
    page = made["index.html"].decode()
    section = page[page.index('<section id="bench">') :].partition("</section>")[0]
    assert section.count("<img ") == 1 and section.count("<table") == 1 and '<div class="scroll' in section
    assert re.search(r"performer</th>.*13\.5 <small>\(0\.64×, 0\.90×\)</small>.*0\.905 ± 0\.001", section)
    assert "from 2,048 tokens on (cannot tell at 512)" in section and "plots/step-crossover.png" in made
    assert "0.64×" in made["report.md"].decode()
    lines = said.splitlines()
    assert len(lines) <= 20 and "out/index.html" in said
    assert sum(line.startswith("| ") for line in lines) == 6  # the header, three mechanisms, two baselines
    assert any("from 2,048 tokens on (cannot tell at 512)" in line for line in lines)


def test_a_large_study_is_cut_on_the_screen_and_whole_in_the_files(make, tmp_path):
    made = [make.finetune("sdpa", seed, seq_len=length) for length in range(16, 46) for seed in (0,)]
    said = report(make, tmp_path, made)
    assert len(said.splitlines()) <= 24
    assert len(contents(tmp_path / "out")["groups.csv"].decode().splitlines()) == 31


def bench_of(root, *, training=(100.0, 80.0), device="a test CPU", part="step", torch="2.13.0", name="b", **changes):
    nodes = {
        "sdpa": {"name": "sdpa", "_target_": "xcls.attention.sdpa.X"},
        "performer": {"name": "performer_favor", "_target_": "xcls.attention.performer.X"},
    }
    common = {
        "origin": "xcls",
        "part": part,
        "position": "rope",
        "seq_len": 512,
        "dtype": "fp32",
        "batch": 16,
        "rounds": 7,
        "compile": False,
        "status": "completed",
        **changes,
    }
    made = {
        "device": {"kind": "cpu", "name": device, "threads": 1},
        "versions": {"torch": torch},
        "attentions": nodes,
        "settings": {"width": 128, "num_heads": None, "num_layers": None},
        "rows": [
            {**common, "mechanism": mechanism, "training_ms": ms, "training_MiB": 10.0}
            for mechanism, ms in zip(nodes, training)
        ],
    }
    folder = root / "multirun" / "bench" / name
    folder.mkdir(parents=True)
    (folder / "bench.json").write_text(json.dumps(made), encoding="utf-8")


def both(make, root, **options):
    """The groups of performer and sdpa, and the measurement that stands beside them."""
    _, groups = board_of(study_of(make, root, [make.finetune("sdpa"), make.finetune("performer", **options)]))
    return measured(groups["performer"], groups["sdpa"], collect([root / "multirun" / "bench"], root).benches)


def test_the_likest_measurement_stands_beside_the_runs(make, tmp_path):
    bench_of(tmp_path, part="core", training=(100.0, 50.0), name="a")
    bench_of(tmp_path, training=(100.0, 80.0), name="b")
    found, reason = both(make, tmp_path)
    assert (found.time, found.memory, found.place, reason) == (0.8, 1.0, "multirun/bench/b", "")
    assert found.unlike == () and found.what.startswith("step, ")


def test_whole_trainings_are_liker_still_and_compared_round_by_round(make, tmp_path):
    bench_of(tmp_path)
    bench_of(tmp_path, name="t", part=None, stage="finetune")
    path = tmp_path / "multirun" / "bench" / "t" / "bench.json"
    data = json.loads(path.read_text())
    data["size"] = {"width": 128}
    for row, speeds in zip(data["rows"], ([10.0, 20.0, 10.0], [20.0, 30.0, 50.0])):
        row.update(contender=row.pop("mechanism"), speeds=speeds, memory_MiB=5.0)
    path.write_text(json.dumps(data))
    found, _ = both(make, tmp_path)
    assert found.place == "multirun/bench/t" and found.time == 0.5  # the ratios of the rounds: 1/2, 2/3, 1/5


@pytest.mark.parametrize(
    "change",
    [
        {"seq_len": 1024},
        {"dtype": "bf16"},
        {"status": "failed"},
        {"device": "another CPU"},
        {"origin": "performer-pytorch"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_measurement_under_other_conditions_does_not_count(make, tmp_path, change):
    bench_of(tmp_path, **change)
    found, reason = both(make, tmp_path)
    assert found is None and reason.startswith("not measured at 512 tokens in fp32")
    assert ("another CPU" in reason) == ("device" in change)


def test_other_settings_of_a_mechanism_are_another_mechanism(make, tmp_path):
    bench_of(tmp_path)
    assert both(make, tmp_path, config={"attention.num_features": 64})[0] is None


def test_what_differs_otherwise_is_said(make, tmp_path):
    bench_of(tmp_path, torch="2.12.0", position="none", compile=True)
    found, _ = both(make, tmp_path)
    assert found.unlike == (
        "compile False in the runs, True in the bench",
        "torch 2.13.0 in the runs, 2.12.0 in the bench",
        "position rope in the runs",
    )


def test_a_disagreement_is_told(make, tmp_path):
    assert (agree(0.8, 0.7), agree(1.2, 1.0), agree(None, 0.5)) == ("yes", "yes", "")
    assert agree(1.1, 0.9) == "no: the runs say dearer, the bench cheaper"
    bench_of(tmp_path, training=(100.0, 120.0))
    records = [make.finetune("sdpa"), make.finetune("performer", time=8.0)]
    benches = collect([tmp_path / "multirun" / "bench"], tmp_path).benches
    made = further_tables(study_of(make, tmp_path, records, benches=benches))
    (row,) = next(one.rows for one in made if one.name == "bench_ratios" and one.board is None)
    assert (row["time_ratio"], row["bench_time_ratio"]) == (0.8, 1.2) and row["agree"].startswith(
        "no: the runs say cheaper"
    )
    (told,) = disagreements(made)
    assert told.startswith("performer against sdpa: the time ratio of the runs is 0.80, that of mode=bench 1.20")


def test_where_nothing_was_measured_in_turns_it_is_said(make, tmp_path):
    report(make, tmp_path)
    assert "python run.py mode=bench" in contents(tmp_path / "out")["index.html"].decode()
