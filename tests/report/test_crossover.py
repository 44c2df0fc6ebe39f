"""Where efficient attention pays: what three repeats each can tell, the table, the page, and what is printed."""

from __future__ import annotations

import json
import re

import pytest

from tests.report.examples import contents, records, report
from xcls.report.collect import Bench
from xcls.report.crossover import CHANCE, Crossover, crossovers, sentence, table

TIMES = {  # ms of each repeat, by mechanism and length
    ("sdpa", 512): (10.0, 11.0, 12.0), ("sdpa", 2048): (20.0, 21.0, 22.0), ("sdpa", 8192): (80.0, 81.0, 82.0),
    ("sdpa_fused", 512): (7.0, 8.0, 9.0), ("sdpa_fused", 2048): (14.0, 15.0, 16.0), ("sdpa_fused", 8192): (40.0, 41.0, 42.0),
    ("performer", 512): (11.5, 12.5, 13.0), ("performer", 2048): (13.0, 13.5, 15.0), ("performer", 8192): (12.0, 13.0, 14.0),
    ("reformer", 512): (30.0, 31.0, 32.0), ("reformer", 2048): (30.0, 31.0, 32.0), ("reformer", 8192): (39.0, 43.0, 44.0),
}  # fmt: skip


def step_bench(root, *, rounds=3, device="a test CPU", left_out=()):
    rows = [
        {"origin": "xcls", "part": "step", "position": "rope", "dtype": "fp32", "mechanism": name, "seq_len": length,
         "batch": 8192 // length, "rounds": rounds, "status": "completed", "training_ms": times[1], "training_min_ms": times[0],
         "training_max_ms": times[2], "training_MiB": 100.0 * length / 512}
        for (name, length), times in TIMES.items()
    ]  # fmt: skip
    for row in rows:
        if (row["mechanism"], row["seq_len"]) in left_out:
            row.update(status="failed", cause="out of memory", training_ms=None, training_min_ms=None, training_max_ms=None)
    data = {
        "device": {"kind": "cpu", "name": device}, "rows": rows, "status": "completed", "attentions": {},
        "settings": {"references": ["sdpa", "sdpa_fused"], "num_layers": 2, "width": 128},
    }  # fmt: skip
    folder = root / "multirun" / "bench" / "crossover"
    folder.mkdir(parents=True)
    (folder / "bench.json").write_text(json.dumps(data), encoding="utf-8")
    return Bench(folder, "multirun/bench/crossover", data, rows)


def one(root, **changes) -> Crossover:
    (found,) = crossovers([step_bench(root, **changes)], [])
    return found


def test_quicker_means_every_repeat_and_is_open_where_they_overlap(tmp_path):
    found = one(tmp_path)
    assert [found.told("performer", "sdpa", length) for length in (512, 2048, 8192)] == ["cannot tell", "quicker", "quicker"]
    assert [found.told("performer", "sdpa_fused", length) for length in (512, 2048, 8192)] == ["slower", "cannot tell", "quicker"]
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
    assert cells["performer"]["2,048 tokens, ms"] == "13.5 (0.64×, 0.90×)" and cells["performer"]["repeats"] == "3, 3, 3"
    assert cells["sdpa_fused"]["512 tokens, MiB"] == "100 (1.00×, –)"
    assert cells["sdpa"]["8,192 tokens, ms"] == "failed" and cells["performer"]["8,192 tokens, ms"] == "13 (–, 0.32×)"


def test_one_length_and_another_machine_show_nothing(make, tmp_path, judged_groups):
    bench = step_bench(tmp_path, device="another CPU")
    assert crossovers([bench], judged_groups) == [] and len(crossovers([bench], [])) == 1
    alone = Bench(bench.folder, bench.place, bench.data, [row for row in bench.rows if row["seq_len"] == 512])
    broken = Bench(bench.folder, bench.place, {"settings": 3}, [{**bench.rows[0], "seq_len": "x"}, {**bench.rows[0], "batch": 0}])
    assert crossovers([alone, broken], []) == []


@pytest.fixture
def judged_groups(make, tmp_path):
    from xcls.report.aggregate import group_runs
    from xcls.report.collect import collect

    return group_runs(collect([make.save(make.seeds("sdpa"), tmp_path / "runs")], tmp_path))


def test_the_page_shows_it_beside_quality_and_the_screen_stays_short(make, tmp_path):
    step_bench(tmp_path)
    said = report(make, tmp_path)
    made = contents(tmp_path / "out")
    page = made["index.html"].decode()
    section = page[page.index('<section id="crossover">') :].partition("</section>")[0]
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
