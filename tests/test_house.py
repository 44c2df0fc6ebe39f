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
RUNGS = [{"schema", "paths", "quoting", "record", "identity", "code_hash", "signature", "wandb_file"},
         {"attention", "position", "data"}, {"model"}, {"train"}, {"stages"}, {"build"}]


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


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def trees(paths: list[Path]) -> dict[str, ast.Module]:
    return {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def test_imports_go_one_way() -> None:
    wrong = []
    for path in MODULES:
        own = rung(".".join(path.relative_to(ROOT).with_suffix("").parts))
        names = [name for name in imported(path) if name.startswith("xcls.")]
        if path.parts[-2] == "report":
            light = {"schema", "paths", "quoting", "record", "identity", "wandb_file", "report"}
            wrong += [(name_of(path), name) for name in names if name.split(".")[1] not in light]
        elif own is not None:
            wrong += [(name_of(path), name) for name in names if (rung(name) or 0) > own]
    assert wrong == []


def test_config_stops_at_the_door() -> None:
    doors = [name_of(path) for path in MODULES if {"hydra", "omegaconf"} & {name.split(".")[0] for name in imported(path)}]
    assert doors == ["xcls/build.py"]


PASSED_ON = ("shape", "changes")  # to a constructor that refuses what it does not know


def test_constructors_swallow_nothing_and_the_public_is_documented() -> None:
    wrong = []
    for name, tree in trees(MODULES).items():
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        wrong += [f"{name}: {f.name} swallows **kwargs" for f in functions if f.args.kwarg and f.args.kwarg.arg not in PASSED_ON]
        wrong += [f"{name}: {f.name} is too long" for f in functions if f.end_lineno - f.lineno >= 70]
        wrong += [f"{name}: {f.name} has no docstring" for f in tree.body
                  if isinstance(f, ast.FunctionDef) and not f.name.startswith("_") and not ast.get_docstring(f)]
        wrong += [f"{name}: a module says what it is for"] * (not ast.get_docstring(tree))
        wrong += [f"{name}: longer than 350 lines"] * (len((ROOT / name).read_text(encoding="utf-8").splitlines()) > 350)
    assert wrong == []


def test_mechanisms_hold_no_projections() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "xcls" / "attention").glob("*.py")]
    assert len(texts) > 3 and not any("nn.Linear" in text or "nn.MultiheadAttention" in text for text in texts)


def test_no_shortcut_for_the_encoder() -> None:
    for name, tree in trees(MODULES).items():
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not {"TransformerEncoder", "TransformerEncoderLayer", "MultiheadAttention"} & names, name


def test_every_test_asserts() -> None:
    without = []
    for name, tree in trees(TESTS).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                calls = [ast.unparse(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)]
                asserts = any(isinstance(n, ast.Assert) for n in ast.walk(node))
                if not asserts and not any(word in call for call in calls for word in ("assert", "raises", "check", "gradcheck")):
                    without.append(f"{name}: {node.name}")
    assert without == []


@pytest.mark.parametrize("script", ["run.py", "report.py"])
def test_entry_points_import_nothing_heavy(script: str) -> None:
    code = f"import sys; sys.argv=['{script}']; import {script[:-3]}; print([m for m in ('torch', 'datasets', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
