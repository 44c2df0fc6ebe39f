"""What the bench will measure, and what it refuses before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from xcls.bench.cases import make
from xcls.bench.plan import check, check_dtypes, choose, make_cells, make_contenders, with_dtype
from xcls.bench.rivals import rivals_of
from xcls.bench.run import run_bench
from xcls.config.schema import Bench, Config, Training, UserError
from xcls.train.cards import Card

CONF = Path(__file__).resolve().parents[2] / "conf"
NODES = {
    group: {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CONF / group).glob("*.yaml"))}
    for group in ("attention", "position")
}


@pytest.mark.parametrize("path", sorted((CONF / "bench").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_of_the_group_is_a_plan(path: Path) -> None:
    settings = with_dtype(Bench(**yaml.safe_load(path.read_text())), "fp32")
    check(Config(bench=settings))
    assert "auto" not in settings.dtypes
    if settings.what == "training":
        contenders = make_contenders(Config(bench=settings), NODES, settings.stages[0], "fp32", "cpu")
        assert [one.name for one in contenders if one.origin == "xcls"] == settings.attentions
        return
    cells, _ = make_cells(settings, NODES, "cpu")
    sizes = {(cell[0].seq_len, cell[0].dtype) for cell in cells}
    assert sizes == {(n, dtype) for n in settings.seq_lens for dtype in settings.dtypes}
    assert all({case.mechanism for case in cell} >= set(settings.attentions) for cell in cells)


def test_a_batch_has_tokens_per_step_tokens_and_at_least_one_sequence() -> None:
    settings = Bench(seq_lens=[512, 16_384], dtypes=["bf16"], tokens_per_step=8192, others=False)
    assert [{case.batch for case in cell} for cell in make_cells(settings, NODES, "cpu")[0]] == [{16}, {1}]


def test_every_axis_of_growth_has_its_points_and_no_others() -> None:
    sizes: dict[str, Any] = {"width": 16, "num_heads": 2, "num_layers": 1, "widths": [16, 128], "depths": [2, 1]}
    settings = Bench(what="growth", axes=["width", "length"], seq_lens=[64, 16], dtypes=["fp32"], **sizes)
    cells, _ = make_cells(settings, NODES, "cpu")
    found = [(c.axis, c.part, c.seq_len, c.width, c.num_heads, c.num_layers) for c in (cell[0] for cell in cells)]
    assert found == [
        ("length", "step", 16, 16, 2, 1),
        ("length", "step", 64, 16, 2, 1),
        ("width", "step", 16, 16, 1, 1),
        ("width", "step", 16, 128, 2, 1),
    ]


def test_a_change_after_the_colon_reaches_the_mechanism() -> None:
    entry = "reformer:num_hashes=4,bucket_size=32"
    attention = make(choose("attention", [entry], NODES)[entry], num_heads=2, head_dim=8, layer=0, seed=0)
    assert attention.rotations.shape[0] == 4 and attention.bucket_size == 32


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"attentions": []}, "bench.attentions"),
        ({"attentions": ["sdpa", "sdpa"]}, "bench.attentions"),
        ({"attentions": ["performr"]}, "bench.attentions: performr.*'performer'"),
        ({"attentions": ["performer:num_feature=4"]}, "performer:num_feature=4.*'num_features'"),
        ({"attentions": ["performer:num_features=many"]}, "num_features=many"),
        ({"attentions": ["performer:64"]}, "name=value"),
        ({"positions": ["rop"]}, "bench.positions: rop"),
        ({"seq_lens": [0]}, "bench.seq_lens: 0"),
        ({"seq_lens": [20_000]}, "bench.seq_lens: 20000"),
        ({"dtypes": ["bf15"]}, "bench.dtypes: bf15.*'bf16'"),
        ({"num_heads": 3}, "bench.width=256"),
        ({"name": "../x"}, "bench.name"),
        ({"time": False, "memory": False, "error": False}, "bench.time"),
        ({"gradient_checkpointing": True}, "bench.gradient_checkpointing"),
        ({"trained": "nowhere"}, "bench.trained=nowhere"),
        ({"what": "growth", "axes": ["lenght"]}, "bench.axes: lenght.*'length'"),
        ({"what": "growth", "widths": [200]}, "bench.width=200"),
        ({"what": "growth", "depths": [0]}, "bench.depths: 0"),
        ({"what": "training", "stages": ["finetun"]}, "bench.stages: finetun.*'finetune'"),
        ({"what": "training", "stages": []}, "bench.stages"),
        ({"what": "training"}, "finetuning.optimizer"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_its_key(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    config = Config(bench=Bench(**changed), finetuning=Training(optimizer="lion"))
    with pytest.raises(UserError, match=words):
        run_bench(config, NODES, device="cpu", folder=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named_with_the_command_that_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xcls.bench.rivals.Rival.installed", property(lambda rival: False))
    cells, (note,) = make_cells(Bench(), NODES, "cpu")
    assert "performer-pytorch, reformer-pytorch, transformers" in note and "make setup-bench" in note
    assert all(case.origin == "xcls" for cell in cells for case in cell)


def test_rivals_have_the_same_settings() -> None:
    performer, reformer = NODES["attention"]["performer"], NODES["attention"]["reformer"]
    assert rivals_of(performer) == ["performer-pytorch"] and rivals_of({**performer, "num_features": 64}) == []
    assert rivals_of(reformer) == ["reformer-pytorch, 1 round", "transformers LSH, 1 round"]
    assert len(rivals_of({**reformer, "num_hashes": 4})) == 2 and rivals_of(NODES["attention"]["sdpa"]) == []


def test_bf16_is_not_measured_where_it_is_emulated() -> None:
    t4, a100 = Card("Tesla T4", (7, 5)), Card("NVIDIA A100", (8, 0))
    with pytest.raises(UserError, match=r"bench.dtypes: bf16: Tesla T4.*'bench.dtypes=\[fp32,fp16\]'"):
        check_dtypes(["fp32", "bf16"], [t4])
    for dtypes, cards in ((["fp16"], [t4]), (["bf16"], [a100]), (["bf16"], [])):
        assert check_dtypes(dtypes, cards) is None
