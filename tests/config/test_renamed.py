"""Runs that were made under other names and settings can still be used."""

from __future__ import annotations

import pytest

from xcls.config.renamed import ATTENTION, current
from xcls.config.schema import UserError, unflatten
from xcls.config.targets import check_node

BUILT = ("name", "num_heads", "head_dim", "layer", "seed")
BLOCKS = {"attention.block_size": 256, "attention.block_above": 2**26}
FEATURES = {"attention.num_features": 64, "attention.orthogonal": True, "attention.epsilon": 1e-12}
HASHES = {"attention.num_hashes": 2, "attention.bucket_size": 64, "attention.hash_rotated": False}
OLD = [
    ("sdpa.Sdpa", BLOCKS),
    ("sdpa_fused.SdpaFused", BLOCKS),
    ("mean.Mean", {**BLOCKS, "attention.chunk_size": 64}),
    ("performer.Performer", {**BLOCKS, **FEATURES, "attention.norm_in_stabiliser": True, "attention.chunk_size": 64}),
    ("performer_oprf.PerformerOprf", {**BLOCKS, **FEATURES, "attention.chunk_size": 64}),
    ("performer_sderf.PerformerSderf", {**BLOCKS, **FEATURES}),
    ("performer_relu.PerformerRelu", {**BLOCKS, **FEATURES}),
    ("performer_hyperbolic.PerformerHyperbolic", {**BLOCKS, **FEATURES}),
    ("performer_band.PerformerBand", {**BLOCKS, **FEATURES, "attention.window": 32}),
    ("performer_band.PerformerBandOprf", {**BLOCKS, **FEATURES, "attention.window": 32}),
    ("reformer.Reformer", HASHES),
    ("reformer_learned.ReformerLearned", HASHES),
    ("reformer_local.ReformerLocal", HASHES),
    ("reformer_shared.ReformerShared", HASHES),
]


@pytest.mark.parametrize(("target", "settings"), OLD)
def test_the_settings_of_an_old_run_are_those_of_a_class_that_is_there(target: str, settings: dict) -> None:
    old = {"seed": 1, "attention.name": "x", "attention._target_": f"xcls.attention.{target}", **settings}
    found = current(old)
    check_node("attention", unflatten(found)["attention"], BUILT, home="xcls.attention.")
    kept = set(settings) - {"attention.block_size", "attention.block_above", "attention.norm_in_stabiliser"}
    assert all(found[key] == settings[key] for key in kept) and found["seed"] == 1
    assert current(found) == found


def test_every_moved_module_is_tried() -> None:
    assert {target.partition(".")[0] for target, _ in OLD} == set(ATTENTION)


def test_what_would_change_the_result_is_refused() -> None:
    old = {"attention._target_": "xcls.attention.performer.Performer", "attention.norm_in_stabiliser": False}
    with pytest.raises(UserError, match="norm_in_stabiliser: unknown key"):
        check_node("attention", unflatten(current(old))["attention"], BUILT)


@pytest.mark.parametrize(
    "target", ["mine.attention.performer.Performer", "os.system", "xcls.attention.base.Attention", ""]
)
def test_other_names_stay(target: str) -> None:
    old = {"attention._target_": target, **BLOCKS}
    assert current(old) == old
