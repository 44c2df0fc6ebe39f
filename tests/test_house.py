"""The rules of the house, held by tests: rooms, import directions, strict constructors, tests that assert."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "xcls").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
LADDER = (
    ("config", "runs"),
    ("attention", "position", "data"),
    ("model",),
    ("train",),
    ("stages",),
    ("build",),
    ("bench",),
)
RUNG = {room: number for number, rooms in enumerate(LADDER) for room in rooms}  # imports: its own rung and those below
FOR_REPORT = ("xcls.report", "xcls.runs", "xcls.config.schema")
FOR_RUNS = ("xcls.runs", "xcls.config.schema")  # and the standard library
CONFIG_DOORS = ["xcls/build.py", "xcls/config/compose.py"]


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


def room_of(module: str) -> str:
    """The room of `xcls.<room>…`."""
    return module.split(".")[1] if "." in module else ""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def trees(paths: list[Path]) -> dict[str, ast.Module]:
    return {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def allowed(module: str, name: str) -> bool:
    """Whether the module of this dotted name may import `name`."""
    room = room_of(module)
    if room == "report":
        return not name.startswith("xcls.") or name.startswith(FOR_REPORT)
    if room == "runs":
        return name.startswith(FOR_RUNS) or name.split(".")[0] in {*sys.stdlib_module_names, "__future__"}
    return not name.startswith("xcls.") or RUNG.get(room_of(name), len(LADDER)) <= RUNG[room]


def test_every_module_has_a_room_and_nothing_lies_loose() -> None:
    loose = [path.name for path in (ROOT / "xcls").glob("*.py")]
    rooms = {path.relative_to(ROOT / "xcls").parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}
    assert sorted(loose) == ["__init__.py", "build.py"]
    assert rooms == {*RUNG, "report"}


def test_imports_go_one_way() -> None:
    dotted = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES if path.parent.name != "xcls"
    }
    dotted[ROOT / "xcls" / "build.py"] = "xcls.build"
    wrong = {(name_of(p), name) for p, module in dotted.items() for name in imported(p) if not allowed(module, name)}
    assert wrong == set()


def test_a_rule_that_is_broken_is_seen() -> None:
    assert not allowed("xcls.attention.favor", "xcls.report.load")
    assert not allowed("xcls.attention.favor", "xcls.nowhere")
    assert not allowed("xcls.runs.record", "yaml")
    assert not allowed("xcls.report.load", "xcls.train.loop")
    assert not allowed("xcls.stages.finetune", "xcls.build")
    assert allowed("xcls.train.loop", "xcls.model.encoder")


def test_what_the_requirements_name_is_there() -> None:
    page = (ROOT / "docs" / "requirements.md").read_text(encoding="utf-8")
    files = [name_of(path) for folder in ("xcls", "tests", "conf") for path in (ROOT / folder).rglob("*.*")]
    text = "".join(path.read_text(encoding="utf-8") for path in TESTS)
    named = [name for name in re.findall(r"`([\w/.]+\.(?:py|yaml|j2))", page) if name != "resolved_config.yaml"]
    assert len(named) > 50
    assert [name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in [*files, "run.py"])] == []
    assert [test for test in re.findall(r"::(\w+)", page) if f"def {test}(" not in text] == []


def test_config_stops_at_the_door() -> None:
    of = {name_of(path): {name.split(".")[0] for name in imported(path)} for path in MODULES}
    doors = [name for name, names in of.items() if {"hydra", "omegaconf"} & names]
    assert sorted(doors) == CONFIG_DOORS


OPEN_SIZES = {"xcls/attention/kernels/lsh_programs.py: backward_kernel is too long"}  # one program, 21 arguments
PASSED_ON = ("shape", "changes")  # to a constructor that refuses what it does not know


def test_constructors_swallow_nothing_and_the_public_is_documented() -> None:
    wrong = []
    for name, tree in trees(MODULES).items():
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        wrong += [
            f"{name}: {f.name} swallows **kwargs"
            for f in functions
            if f.args.kwarg and f.args.kwarg.arg not in PASSED_ON
        ]
        wrong += [f"{name}: {f.name} is too long" for f in functions if f.end_lineno - f.lineno >= 70]
        wrong += [
            f"{name}: {f.name} has no docstring"
            for f in tree.body
            if isinstance(f, ast.FunctionDef) and not f.name.startswith("_") and not ast.get_docstring(f)
        ]
        wrong += [f"{name}: a module says what it is for"] * (not ast.get_docstring(tree))
        wrong += [f"{name}: longer than 350 lines"] * (
            len((ROOT / name).read_text(encoding="utf-8").splitlines()) > 350
        )
    assert set(wrong) - OPEN_SIZES == set()


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
                if not asserts and not any(
                    word in call for call in calls for word in ("assert", "raises", "check", "gradcheck")
                ):
                    without.append(f"{name}: {node.name}")
    assert without == []
