"""The hash covers what shapes the result, and nothing else."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path

import pytest

from xcls.identity import run_folder, run_hash, run_name
from xcls.schema import Config

CHOICES = {"dataset": "pydocs", "attention": "sdpa", "position": "rope", "size": "tiny"}


def config(mode: str = "finetune") -> dict:
    tree = asdict(Config())
    tree.update(mode=mode, attention={"_target_": "a.B", "name": "sdpa"}, position={"_target_": "p.Q", "name": "rope"})
    return tree


def digest(tree: dict, data: str = "d", dtype: str = "fp32", parent: str | None = None) -> str:
    return run_hash(tree, data=data, dtype=dtype, parent=parent)


@pytest.mark.parametrize(
    ("path", "value"),
    [("seed", 1), ("seq_len", 64), ("attention.name", "x"), ("size.width", 64), ("finetuning.lr", 0.1), ("head.pooling", "cls"),
     ("dataset.limit", 5), ("dataset.truncate", "tail"), ("tokenizer.vocab_size", 99), ("finetuning.batch_size", 64)],
)
def test_what_shapes_the_result_changes_the_hash(path: str, value: object) -> None:
    tree = config()
    node, *rest = path.split(".")
    (tree[node] if rest else tree)[rest[0] if rest else node] = value
    assert digest(tree) != digest(config())


@pytest.mark.parametrize(
    ("path", "value"),
    [("exp", "x"), ("sweep", "s"), ("resume", True), ("wandb.mode", "online"), ("hardware.micro_batch", 4), ("hardware.micro_tokens", 4096), ("hardware.compile", True),
     ("dataset.path", "/elsewhere"), ("finetuning.checkpoint_every_steps", 3), ("finetuning.keep", 9), ("pretraining.lr", 1.0), ("study", "t")],
)
def test_what_does_not_leaves_it(path: str, value: object) -> None:
    tree = config()
    node, *rest = path.split(".")
    (tree[node] if rest else tree)[rest[0] if rest else node] = value
    assert digest(tree) == digest(config())


def test_data_dtype_and_parent_are_part_of_it() -> None:
    tree = config()
    assert len({digest(tree), digest(tree, data="e"), digest(tree, dtype="bf16"), digest(tree, parent="p")}) == 4


def test_a_baseline_does_not_know_the_architecture() -> None:
    one, other = config("baseline"), config("baseline")
    other["attention"], other["size"]["width"], other["seq_len"] = {"name": "x"}, 999, 7
    assert digest(one) == digest(other)


def test_folders(tmp_path: Path) -> None:
    tree = config()
    name = run_name(tree, CHOICES, "abcdef123")
    assert name == "pydocs/finetune-sdpa-rope-tiny-n512-s0-abcdef"
    assert run_folder(tree, CHOICES, "abcdef123", sweep="quick", root=tmp_path) == tmp_path / "multirun" / "quick" / name
    named = copy.deepcopy(tree) | {"exp": "ft"}
    assert run_folder(named, CHOICES, "abcdef123", sweep=None, root=tmp_path) == tmp_path / "finetune" / "ft"
    assert run_folder(tree, CHOICES, "abcdef123", sweep=None, root=tmp_path).parent == tmp_path / "finetune"
    assert run_name(config("baseline"), CHOICES, "abcdef123") == "pydocs/tfidf_logreg-s0-abcdef"
