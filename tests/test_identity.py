"""The hash covers what shapes the result, and nothing else."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path

import pytest

from xcls.config.schema import Config, UserError
from xcls.runs.identity import code_of, run_folder, run_hash, run_name
from xcls.runs.record import Record, write_record
from xcls.stages.folder import decide

CHOICES = {"dataset": "pydocs", "attention": "sdpa", "position": "rope", "size": "tiny"}


def config(mode: str = "finetune") -> dict:
    tree = asdict(Config())
    tree.update(mode=mode, attention={"_target_": "a.B", "name": "sdpa"}, position={"_target_": "p.Q", "name": "rope"})
    return tree


def digest(tree: dict, data: str = "d", dtype: str = "fp32", parent: str | None = None, code: str = "c") -> str:
    return run_hash(tree, data=data, dtype=dtype, parent=parent, code={"attention": code, "position": "c"})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 1),
        ("seq_len", 64),
        ("attention.name", "x"),
        ("size.width", 64),
        ("finetuning.lr", 0.1),
        ("head.pooling", "cls"),
        ("dataset.limit", 5),
        ("dataset.truncate", "tail"),
        ("tokenizer.vocab_size", 99),
        ("finetuning.batch_size", 64),
    ],
)
def test_what_shapes_the_result_changes_the_hash(path: str, value: object) -> None:
    tree = config()
    node, *rest = path.split(".")
    (tree[node] if rest else tree)[rest[0] if rest else node] = value
    assert digest(tree) != digest(config())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("exp", "x"),
        ("sweep", "s"),
        ("resume", True),
        ("wandb.mode", "online"),
        ("hardware.micro_batch", 4),
        ("hardware.micro_tokens", 4096),
        ("hardware.compile", True),
        ("dataset.path", "/elsewhere"),
        ("finetuning.checkpoint_every_steps", 3),
        ("finetuning.keep", 9),
        ("pretraining.lr", 1.0),
        ("study", "t"),
    ],
)
def test_what_does_not_leaves_it(path: str, value: object) -> None:
    tree = config()
    node, *rest = path.split(".")
    (tree[node] if rest else tree)[rest[0] if rest else node] = value
    assert digest(tree) == digest(config())


def test_data_dtype_parent_and_code_are_part_of_it() -> None:
    tree = config()
    assert (
        len(
            {
                digest(tree),
                digest(tree, data="e"),
                digest(tree, dtype="bf16"),
                digest(tree, parent="p"),
                digest(tree, code="e"),
            }
        )
        == 5
    )


def test_the_code_of_attention_and_position_is_known_without_importing_it() -> None:
    tree = {"mode": "finetune", "attention": {"_target_": "xcls.attention.mean.Mean"}}
    found = {
        name: code_of({**tree, "position": {"_target_": name}})
        for name in ("xcls.position.rope.Rotary", "xcls.position.sin.Sinusoidal")
    }
    one, other = found.values()
    assert (
        one["attention"] == other["attention"]
        and one["position"] != other["position"]
        and code_of({"mode": "baseline"}) == {}
    )


def test_a_baseline_does_not_know_the_architecture() -> None:
    one, other = config("baseline"), config("baseline")
    other["attention"], other["size"]["width"], other["seq_len"] = {"name": "x"}, 999, 7
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    ("code", "named"),
    [({"attention": "old", "position": "p"}, True), ({"attention": "new", "position": "p"}, False), ({}, False)],
)
def test_a_run_made_with_other_code_is_not_gone_on_with(tmp_path: Path, code: dict, named: bool) -> None:
    write_record(
        Record(run="r", mode="finetune", status="interrupted", hash="a" * 64, seed=0, seq_len=8, code=code), tmp_path
    )
    with pytest.raises(UserError) as refused:
        decide(
            tmp_path, "b" * 64, resume=True, sweep=False, retry_failed=False, code={"attention": "new", "position": "p"}
        )
    assert ("other code of attention than" in str(refused.value)) is named and str(tmp_path) in str(refused.value)


def test_folders(tmp_path: Path) -> None:
    tree = config()
    name = run_name(tree, CHOICES, "abcdef123")
    assert name == "pydocs/finetune-sdpa-rope-tiny-n512-s0-abcdef"
    assert (
        run_folder(tree, CHOICES, "abcdef123", sweep="quick", root=tmp_path) == tmp_path / "multirun" / "quick" / name
    )
    named = copy.deepcopy(tree) | {"exp": "ft"}
    assert run_folder(named, CHOICES, "abcdef123", sweep=None, root=tmp_path) == tmp_path / "finetune" / "ft"
    assert run_folder(tree, CHOICES, "abcdef123", sweep=None, root=tmp_path).parent == tmp_path / "finetune"
    assert run_name(config("baseline"), CHOICES, "abcdef123") == "pydocs/tfidf_logreg-s0-abcdef"
