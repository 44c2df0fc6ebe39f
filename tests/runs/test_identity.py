"""The hash covers what shapes the result, and nothing else; the folder of a run is its own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from xcls.config.schema import Config, UserError
from xcls.runs.folder import decide
from xcls.runs.identity import code_of, run_folder, run_hash, run_name
from xcls.runs.record import Record, write_record

CHOICES = {"dataset": "pydocs", "attention": "sdpa", "position": "rope", "size": "tiny"}
SHAPING = {
    "seed": 1,
    "seq_len": 64,
    "attention.name": "x",
    "size.width": 64,
    "finetuning.lr": 0.1,
    "finetuning.batch_size": 64,
    "head.pooling": "cls",
    "dataset.limit": 5,
    "dataset.truncate": "tail",
    "tokenizer.vocab_size": 99,
}
OTHERS = {
    "exp": "x",
    "sweep": "s",
    "resume": True,
    "study": "t",
    "wandb.mode": "online",
    "hardware.micro_batch": 4,
    "hardware.compile": True,
    "dataset.path": "/elsewhere",
    "finetuning.checkpoint_every_steps": 3,
    "finetuning.keep": 9,
    "pretraining.lr": 1.0,
}


def config(mode: str = "finetune", **changes: Any) -> dict[str, Any]:
    """A configuration tree; `changes` are whole nodes."""
    tree = asdict(Config())
    tree.update(mode=mode, attention={"_target_": "a.B", "name": "sdpa"}, position={"_target_": "p.Q", "name": "rope"})
    return {**tree, **changes}


def digest(tree: dict[str, Any], **changes: Any) -> str:
    known = {"data": "d", "dtype": "fp32", "parent": None, "code": {"attention": "c", "position": "c"}, **changes}
    return run_hash(tree, **known)


@pytest.mark.parametrize("key", [*SHAPING, *OTHERS])
def test_what_shapes_the_result_changes_the_hash_and_nothing_else_does(key: str) -> None:
    tree, (node, _, leaf) = config(), key.partition(".")
    (tree[node] if leaf else tree)[leaf or node] = {**SHAPING, **OTHERS}[key]
    assert (digest(tree) != digest(config())) == (key in SHAPING)


def test_data_dtype_parent_and_code_are_part_of_it_and_a_baseline_knows_no_architecture() -> None:
    code = {"attention": "e", "position": "c"}
    changes: list[dict[str, Any]] = [{}, {"data": "e"}, {"dtype": "bf16"}, {"parent": "p"}, {"code": code}]
    assert len({digest(config(), **change) for change in changes}) == 5
    assert digest(config("baseline")) == digest(config("baseline", attention={"name": "x"}, seq_len=7))


def test_the_code_of_attention_and_position_is_known_without_importing_it() -> None:
    tree = {"mode": "finetune", "attention": {"_target_": "xcls.attention.mean.Mean"}}
    one, other = (
        code_of({**tree, "position": {"_target_": name}})
        for name in ("xcls.position.rope.Rotary", "xcls.position.sin.Sinusoidal")
    )
    assert one["attention"] == other["attention"] and one["position"] != other["position"]
    assert code_of({"mode": "baseline"}) == {}


@pytest.mark.parametrize(("code", "named"), [({"attention": "old"}, True), ({"attention": "new"}, False), ({}, False)])
def test_a_run_of_another_hash_is_refused_and_changed_code_is_named(tmp_path: Path, code: dict, named: bool) -> None:
    what = {"run": "r", "mode": "finetune", "status": "interrupted", "seed": 0, "seq_len": 8}
    write_record(Record(**what, hash="a" * 64, code=code), tmp_path)
    with pytest.raises(UserError) as refused:
        decide(tmp_path, "b" * 64, resume=True, sweep=False, retry_failed=False, code={"attention": "new"})
    assert ("code of attention" in str(refused.value)) is named and str(tmp_path) in str(refused.value)


@pytest.mark.parametrize(
    ("status", "how", "action"),
    [
        ("completed", "", None),
        ("completed", "resume", "done"),
        ("completed", "sweep", "done"),
        ("failed", "", None),
        ("failed", "resume", "fresh"),
        ("failed", "sweep", "done"),
        ("failed", "sweep retry_failed", "fresh"),
        ("interrupted", "", None),
        ("interrupted", "sweep", "fresh"),
        ("interrupted", "resume checkpoint", "resume"),
    ],
)
def test_what_becomes_of_a_folder(status: str, how: str, action: str | None, tmp_path: Path) -> None:
    what = {"run": "r", "mode": "finetune", "seed": 0, "seq_len": 8}
    write_record(Record(**what, status=status, hash="a" * 64), tmp_path)
    if "checkpoint" in how:
        (tmp_path / "ckpt_step00000001.pt").touch()
    asked = {name: name in how.split() for name in ("resume", "sweep", "retry_failed")}
    if action is None:
        with pytest.raises(UserError, match="exp="):
            decide(tmp_path, "a" * 64, code={}, **asked)
    else:
        assert decide(tmp_path, "a" * 64, code={}, **asked)[0] == action


def test_folders(tmp_path: Path) -> None:
    name, known = "pydocs/finetune-sdpa-rope-tiny-n512-s0-abcdef", (CHOICES, "abcdef123")
    assert run_name(config(), *known) == name
    assert run_name(config("baseline"), *known) == "pydocs/tfidf_logreg-s0-abcdef"
    assert run_folder(config(), *known, sweep="quick", root=tmp_path) == tmp_path / "multirun" / "quick" / name
    assert run_folder(config(exp="ft"), *known, sweep=None, root=tmp_path) == tmp_path / "finetune" / "ft"
    assert run_folder(config(), *known, sweep=None, root=tmp_path).parent == tmp_path / "finetune"
