"""Untyped nodes are held to the signature of their target, read without importing it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from xcls.config.schema import UserError
from xcls.config.targets import check_node, parameters

MODULE = """
from __future__ import annotations
from typing import Literal, Optional
class Base:
    def __init__(self, *, given: int, rate: float = 0.5, kind: Literal["a", "b"] = "a", size: int | None = None, on: bool = True, free: Optional[str] = None) -> None: ...
class Child(Base):
    pass
class Grown(Base):
    def __init__(self, *, depth: int = 2, **rest) -> None:
        super().__init__(rate=depth / 10, **rest)
def build(*, needed: str): ...
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "some_mechanism.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "some_mechanism"


def test_a_signature_is_read_without_importing(module: str) -> None:
    assert list(parameters(f"{module}.Child")) == ["given", "rate", "kind", "size", "on", "free"]
    assert module not in sys.modules


def test_what_a_constructor_passes_on_is_taken_too_but_for_what_it_gives_itself(module: str) -> None:
    assert list(parameters(f"{module}.Grown")) == ["depth", "given", "kind", "size", "on", "free"]
    assert check_node("attention", {"_target_": f"{module}.Grown", "depth": 3, "kind": "b"}, ("name", "given")) is None
    with pytest.raises(UserError, match="attention.rate: unknown key"):
        check_node("attention", {"_target_": f"{module}.Grown", "rate": 1.0}, ("name", "given"))


def test_a_fitting_node_passes(module: str) -> None:
    node = {"_target_": f"{module}.Child", "name": "x", "rate": 1, "kind": "b", "size": None, "on": False, "free": "t"}
    assert check_node("attention", node, ("name", "given")) is None


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ({"rte": 1.0}, "attention.rte: unknown key. Did you mean 'rate'"),
        ({"rate": "fast"}, "attention.rate=fast: float"),
        ({"kind": "c"}, "Literal"),
        ({"size": 1.5}, "int | None"),
        ({"size": True}, "int | None"),
        ({"on": 1}, "bool"),
        ({"given": 3}, None),
    ],
)
def test_a_wrong_node_is_refused(module: str, extra: dict, word: str | None) -> None:
    node = {"_target_": f"{module}.Child", **extra}
    if word is None:
        assert check_node("attention", node, ("given",)) is None
        return
    with pytest.raises(UserError) as error:
        check_node("attention", node, ("given",))
    assert word in str(error.value)


@pytest.mark.parametrize("target", ["some_mechanism.Nope", "no_module.X", "x"])
def test_a_target_that_is_not_there(module: str, target: str) -> None:
    with pytest.raises(UserError, match="no such class"):
        check_node("attention", {"_target_": target})


def test_a_needed_key(module: str) -> None:
    with pytest.raises(UserError, match="needed must be set"):
        check_node("dataset.source", {"_target_": f"{module}.build"})
    with pytest.raises(UserError, match="a node with a `_target_`"):
        check_node("attention", "sdpa")


def test_a_target_outside_its_home_is_refused(module: str) -> None:
    with pytest.raises(UserError, match="_target_=os.system: a class of the package xcls.attention is needed"):
        check_node("attention", {"_target_": "os.system", "command": "x"}, home="xcls.attention.")
    assert check_node("attention", {"_target_": f"{module}.Child", "given": 1}, home="some_") is None


@pytest.mark.parametrize("value", [{"_target_": "os.system"}, [{"_target_": "os.system"}], ["a", 1], "a"])
def test_a_list_of_texts_holds_texts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    (tmp_path / "some_source.py").write_text(
        "from __future__ import annotations\nclass S:\n    def __init__(self, *, names: list[str] | None = None): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert check_node("dataset.source", {"_target_": "some_source.S", "names": ["a", "b"]}) is None
    with pytest.raises(UserError, match="dataset.source.names="):
        check_node("dataset.source", {"_target_": "some_source.S", "names": value})
