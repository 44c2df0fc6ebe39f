"""Limits, names, flat keys: what a configuration may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xcls.config.files import check_texts
from xcls.config.schema import Config, UserError, check, check_name, flatten, unflatten


def good() -> Config:
    config = Config()
    config.pretraining.select_by = "val_loss"
    return config


def test_the_defaults_are_possible() -> None:
    assert check(good()) is None


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        ("seq_len", 0, "from 1 to 16384"),
        ("seq_len", 20_000, "from 1 to 16384"),
        ("size.num_heads", 3, "must divide the width 128"),
        ("size.norm", "per", "'pre'"),
        ("finetuning.lr", float("nan"), "from 0.0 to 10.0"),
        ("finetuning.epochs", 0.0, "more than 0"),
        ("masking.mask_share", 0.95, "at most 1 together"),
        ("head.num_classes", 1, "from 2"),
        ("head.pooling", "sum", "mean, cls, max"),
        ("exp", "../../x", "plain name"),
        ("exp", "/abs", "plain name"),
        ("exp", "a b", "plain name"),
    ],
)
def test_an_impossible_value_is_refused_with_its_key(path: str, value: object, word: str) -> None:
    config = good()
    node, *rest = path.split(".")
    setattr(getattr(config, node), rest[0], value) if rest else setattr(config, node, value)
    with pytest.raises(UserError, match=word) as error:
        check(config)
    assert path in str(error.value)


def test_every_fault_is_named_at_once() -> None:
    config = good()
    config.seq_len, config.size.dropout, config.hardware.dtype = 0, 2.0, "fp8"
    with pytest.raises(UserError) as error:
        check(config)
    assert [line.split("=")[0] for line in str(error.value).splitlines()] == [
        "seq_len",
        "size.dropout",
        "hardware.dtype",
    ]


@given(st.text(max_size=40))
def test_a_name_never_leaves_its_folder(name: str) -> None:
    try:
        check_name("exp", name)
    except UserError:
        return
    assert name and "/" not in name and "\\" not in name and not name.startswith(".") and name.isascii()


leaves = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())
keys = st.text(alphabet="abc_", min_size=1, max_size=4)
trees = st.dictionaries(
    keys, st.recursive(leaves, lambda inner: st.dictionaries(keys, inner, min_size=1), max_leaves=8)
)


@given(trees)
def test_flat_keys_come_back(tree: dict) -> None:
    assert unflatten(flatten(tree)) == tree


def test_a_key_cannot_be_a_value_and_a_node() -> None:
    with pytest.raises(UserError, match="size"):
        unflatten({"size": 3, "size.width": 4})


@pytest.mark.parametrize(
    "value", ["a\0b", "\x1b[31m", "\udcff", "\u2028", ["fine", "a\x07"], "${oc.env:HOME}", "\ufeff"]
)
def test_texts_that_no_file_holds_are_refused(value: object) -> None:
    assert check_texts({"study": "Zażółć: 🙂\ttab\nline", "dataset.extra": ["a", "b"], "seed": 1, "exp": None}) is None
    with pytest.raises(UserError, match="study="):
        check_texts({"study": value})
