"""The habits of the house, held by tests: import directions, config at the door, strict constructors, asserting tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "xcls").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
RUNGS = [{"schema", "record", "identity", "signature", "wandb_file"}, {"attention", "position", "data"}, {"model"}, {"train"}, {"stages"}, {"build"}]


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


def rung(name: str) -> int | None:
    part = name.split(".")[1] if "." in name else ""
    return next((place for place, rooms in enumerate(RUNGS) if part in rooms), None)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    own = rung(".".join(path.relative_to(ROOT).with_suffix("").parts))
    names = [name for name in imported(path) if name.startswith("xcls.")]
    if path.parts[-2] == "report":
        assert all(name.split(".")[1] in {"schema", "record", "identity", "wandb_file", "report"} for name in names), names
    elif own is not None:
        assert all((rung(name) or 0) <= own for name in names), names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_config_stops_at_the_door(path: Path) -> None:
    if path.relative_to(ROOT).as_posix() == "xcls/build.py":
        assert "hydra" in {name.split(".")[0] for name in imported(path)}
    else:
        assert not {"hydra", "omegaconf"} & {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_constructors_swallow_nothing_and_the_public_is_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "a module says what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.args.kwarg is None, f"{node.name} swallows **kwargs"
            assert node.end_lineno - node.lineno < 70, f"{node.name} is too long"
            if not node.name.startswith("_") and node in tree.body:
                assert ast.get_docstring(node), f"{node.name} has no docstring"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


@pytest.mark.parametrize("path", sorted((ROOT / "xcls" / "attention").glob("*.py")), ids=lambda p: p.name)
def test_mechanisms_hold_no_projections(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "nn.Linear" not in text and "nn.MultiheadAttention" not in text


def test_no_shortcut_for_the_encoder() -> None:
    for path in MODULES:
        names = {node.attr for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)}
        assert not {"TransformerEncoder", "TransformerEncoderLayer", "MultiheadAttention"} & names, path


@pytest.mark.parametrize("path", TESTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_test_asserts(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            calls = [ast.unparse(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)]
            asserts = any(isinstance(n, ast.Assert) for n in ast.walk(node))
            assert asserts or any(word in call for call in calls for word in ("assert", "raises", "check", "gradcheck")), node.name


@pytest.mark.parametrize("script", ["run.py", "report.py"])
def test_entry_points_import_nothing_heavy(script: str) -> None:
    code = f"import sys; sys.argv=['{script}']; import {script[:-3]}; print([m for m in ('torch', 'datasets', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
