"""What the bench will measure, and what it refuses before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from xcls.bench.make import choose, make
from xcls.bench.others import others, rivals
from xcls.bench.plan import make_plan, settled
from xcls.bench.start import check_dtypes
from xcls.config.schema import Bench, UserError
from xcls.train.cards import Card

ROOT = Path(__file__).resolve().parents[2]


def nodes(group: str) -> dict[str, dict[str, Any]]:
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "conf" / group).glob("*.yaml"))}


def plan_of(settings: Bench) -> Any:
    return make_plan(settings, attentions=nodes("attention"), positions=nodes("position"), device="cpu")


OWN = ("training", "growth")  # have plans of their own
PLANNED = [path for path in sorted((ROOT / "conf" / "bench").glob("*.yaml")) if path.stem not in OWN]


@pytest.mark.parametrize("path", PLANNED, ids=lambda path: path.stem)
def test_every_file_of_the_group_is_a_plan(path: Path) -> None:
    settings = settled(Bench(**yaml.safe_load(path.read_text())), "fp32")
    assert "auto" not in settings.dtypes
    plan = plan_of(settings)
    assert [(cell.seq_len, cell.dtype) for cell in plan.cells] == [
        (n, d) for n in settings.seq_lens for d in settings.dtypes
    ]
    assert {case.mechanism for case in plan.cells[0].cases} >= set(settings.attentions)


def test_a_batch_has_tokens_per_step_tokens_and_at_least_one_sequence() -> None:
    plan = plan_of(Bench(seq_lens=[512, 16_384], dtypes=["bf16"], tokens_per_step=8192, others=False))
    assert [{case.batch for case in cell.cases} for cell in plan.cells] == [{16}, {1}]


def test_a_change_after_the_colon_reaches_the_mechanism() -> None:
    node = choose("attention", "reformer:num_hashes=4,bucket_size=32", nodes("attention"))
    attention = make(node, {"num_heads": 2, "head_dim": 8, "layer": 0, "seed": 0})
    assert attention.rotations.shape[0] == 4 and attention.bucket_size == 32


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"attentions": ["performr"]}, "performr: no such file in conf/attention. Did you mean 'performer'"),
        ({"attentions": ["performer:num_feature=4"]}, "Did you mean 'num_features'"),
        ({"attentions": ["performer:num_features=many"]}, "num_features=many: int is needed"),
        ({"attentions": ["performer:64"]}, "name=value"),
        ({"attentions": []}, "bench.attentions: at least one"),
        ({"attentions": ["sdpa", "sdpa"]}, "named once"),
        ({"positions": ["rop"]}, "bench.positions: rop"),
        ({"seq_lens": [0]}, "bench.seq_lens: 0: from 1 to 16384"),
        ({"seq_lens": [20_000]}, "from 1 to 16384"),
        ({"dtypes": ["bf15"]}, "Did you mean 'bf16'"),
        ({"num_heads": 3}, "must divide the width 256"),
        ({"name": "../x"}, "bench.name"),
        ({"time": False, "memory": False, "error": False}, "nothing is left to measure"),
        ({"gradient_checkpointing": True}, "bench.gradient_checkpointing=true: only a whole step"),
        ({"trained": "nowhere"}, "bench.trained=nowhere"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_its_key(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        plan_of(Bench(**changed))
    assert words in str(error.value)


def test_missing_packages_are_one_line_that_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xcls.bench.others.Other.installed", property(lambda other: False))
    plan = plan_of(Bench())
    assert plan.notes == [
        "Not measured: performer-pytorch, reformer-pytorch, transformers are not installed. To measure them too: make setup-bench"
    ]
    assert all(case.origin == "xcls" for cell in plan.cells for case in cell.cases)


def test_rivals_have_the_same_settings() -> None:
    table = nodes("attention")
    assert rivals(table["performer"]) == ["performer-pytorch"]
    assert rivals({**table["performer"], "num_features": 64}) == []
    assert rivals(table["reformer"]) == ["reformer-pytorch, 1 round", "transformers LSH, 1 round"]
    assert rivals({**table["reformer"], "num_hashes": 4}) == [
        "reformer-pytorch, 4 rounds",
        "transformers LSH, 4 rounds",
    ]
    assert rivals(table["sdpa"]) == []


@pytest.mark.parametrize("other", others(), ids=lambda other: other.name)
def test_other_implementations_are_built_and_have_gradients(other: Any) -> None:
    import torch

    if not other.installed:
        pytest.skip(f"{other.package} is not installed (extra `bench`)")
    for part, node in other.parts.items():
        model = make(node, {"width": 16, "num_heads": 2})
        shape = (1, 128, 16) if part == "module" else (1, 2, 128, 8)
        x = torch.randn(shape, requires_grad=True)
        out = model(x) if part == "module" else model(x, x, x)
        out.square().sum().backward()
        assert out.shape == x.shape and torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0


def test_bf16_is_not_measured_where_it_is_emulated() -> None:
    t4, a100 = Card("Tesla T4", (7, 5)), Card("NVIDIA A100", (8, 0))
    with pytest.raises(
        UserError, match=r"bench.dtypes: bf16: Tesla T4, capability 7.5 .* 'bench.dtypes=\[fp32,fp16\]'"
    ):
        check_dtypes(["fp32", "bf16"], [t4])
    check_dtypes(["fp32", "fp16"], [t4])
    check_dtypes(["fp32", "bf16"], [a100])
    check_dtypes(["fp32", "bf16"], [])
