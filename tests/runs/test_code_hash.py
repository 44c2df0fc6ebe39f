"""The hash of code: blind to comments and layout, not to what the code does, and found without an import."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from xcls.runs.code_hash import code_files, code_hash, module_file

MINE = '''"""Mine."""
from helpers import scaled  # a comment
import numpy.linalg
from . import near


class Mine:
    """A class."""

    size: int = 3

    def forward(self, q, k=None, *rest, scale=0.5):
        """[B] -> [B]."""
        return scaled(q @ k, f"{scale!r:>{self.size}}", b"x", 1e-3) if q else {"a": -1, **{}}
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path with a package `mypack` and a module `helpers`, which it imports."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mypack").mkdir()
    (tmp_path / "mypack" / "__init__.py").write_text("raise SystemError('it must not be imported')\n")
    (tmp_path / "mypack" / "near.py").write_text("import os\n")
    (tmp_path / "mypack" / "mine.py").write_text(MINE)
    helpers = (
        "import torch\nfrom xcls.attention import base\nimport xcls.model.block\n\n\ndef scaled(*x):\n    return x\n"
    )
    (tmp_path / "helpers.py").write_text(helpers)
    return tmp_path


def test_a_module_of_ones_own_and_all_it_imports_in_the_project(package: Path) -> None:
    found = code_files("mypack.mine.Mine")
    theirs, ours = [[name for name in found if name.startswith("xcls.") is is_ours] for is_ours in (False, True)]
    assert theirs == ["helpers", "mypack", "mypack.mine", "mypack.near"]
    assert "xcls.attention.base" in ours and all(name.startswith("xcls.attention") for name in ours)
    assert found["mypack.near"] == package / "mypack" / "near.py" and "mypack" not in sys.modules


SAME = [
    ('"""Mine."""', '"""Other words,\n\non lines."""'),
    ("  # a comment", ""),
    ('        """[B] -> [B]."""\n', ""),
    ("scaled(q @ k,", "(scaled)(\n            (q @ k),  # new\n"),
]
OTHER = [
    ("0.5", "0.25"),
    ("q @ k", "k @ q"),
    ("!r", "!s"),
    ("if q else", "if not q else"),
    ("*rest", "*"),
    (", **{}", ""),
]


@pytest.mark.parametrize(("old", "new"), SAME + OTHER)
def test_words_and_layout_do_not_matter_and_what_the_code_does_does(package: Path, old: str, new: str) -> None:
    before = code_hash("mypack.mine.Mine")
    assert MINE.count(old) == 1
    (package / "mypack" / "mine.py").write_text(MINE.replace(old, new))
    assert (code_hash("mypack.mine.Mine") == before) == ((old, new) in SAME)


@pytest.mark.parametrize("name", ["helpers.py", "mypack/near.py", "mypack/__init__.py"])
def test_so_does_what_it_imports(package: Path, name: str) -> None:
    before = code_hash("mypack.mine.Mine")
    (package / name).write_text((package / name).read_text() + "\nx = 1\n")
    assert code_hash("mypack.mine.Mine") != before


def test_every_python_gives_the_same_hash(package: Path) -> None:
    """The value that 3.10, 3.11, 3.12 and 3.13 gave. No two of them agree on `ast.dump`."""
    (package / "helpers.py").write_text("def scaled(*x):\n    return x\n")
    assert code_hash("mypack.mine.Mine") == "267460a843766a1d03cfcdff1d7fa9dff3b06900aa5def91490a40d3a5af3841"


def test_modules_are_found_by_name_alone() -> None:
    assert module_file("xcls.attention.mean") == ROOT / "xcls" / "attention" / "mean.py"
    assert module_file("xcls.attention") == ROOT / "xcls" / "attention" / "__init__.py"
    assert [
        module_file(name) for name in ("xcls.attention.nope", "nope.nope", "sys", "a..b", "xcls.attention.../x", "")
    ] == [None] * 6
