"""The YAML files of a run: what is written is read again, and what no run wrote is refused."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzzing import BOMB
from xcls.config.files import UNWRITABLE, read_yaml, write_values
from xcls.config.schema import UserError

SLIPPERY = [
    "1e-3",
    "1E5",
    "...",
    "null",
    "~",
    "yes",
    "1:30",
    "2024-01-01",
    "=",
    "<<",
    "*a",
    "&a",
    "!x",
    "- a",
    "a: b",
    "#x",
    "",
    " ",
    "0x1f",
    "1_0",
    ".nan",
    "x y " * 9999,
]
texts = st.sampled_from(SLIPPERY) | st.text(max_size=20).filter(lambda text: not UNWRITABLE.search(text))
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | texts
    | st.lists(texts | st.integers(), max_size=3)
)


@given(st.dictionaries(st.sampled_from(["exp", "size.width", "size.depth", "study"]), leaves))
def test_what_is_written_is_read_again(values: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_values(Path(folder) / "config.yaml", values, "Some values.")
        assert read_yaml(Path(folder) / "config.yaml") == values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr: 1e-3", 0.001),
        ("lr: 1.5E+2", 150.0),
        ("lr: 2024-01-01", "2024-01-01"),
        ("lr: yes", True),
        ("lr:", None),
        ("lr: [1, a]", [1, "a"]),
        ("lr: -1e5", -1e5),
    ],
)
def test_values_are_what_they_look_like(tmp_path: Path, text: str, expected: object) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml") == {"lr": expected}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: 1\nseed: 2\n", "'seed' stands here twice"),
        (b"size: {width: 1, width: 2}", "'width' stands here twice"),
        (b"size.width: 1\nsize: {width: 2}\n", "once with dots"),
        (BOMB.encode(), "aliases and deep nesting"),
        (b"a: &a {b: *a}", "aliases"),
        (b"a: " + b"{b: " * 5000, "deep nesting"),
        (b"[" * 100_000, "deep nesting"),
        (b"5: 1", "a key must be a text"),
        (b"? [a]\n: 1", "a key must be a text"),
        (b"- 1", "'key: value' lines are needed, not list"),
        (b"a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        (b"a: !!timestamp x", "could not determine a constructor"),
        (b"a: !!int ''", "cannot be read as YAML"),
        (b"a: " + b"9" * 5000, "cannot be read as YAML"),
        (b"a:\n\t- b", "cannot be read as YAML"),
        (b"\xff\xfe", "cannot be read as YAML"),
        (b"a: b\0", "cannot be read as YAML"),
        (b"a: x" * 300_000, "1,200,000 bytes are no run file"),
    ],
)
def test_what_is_no_run_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_yaml(path)
    assert message in str(error.value) and str(error.value).startswith(str(path))


@pytest.mark.parametrize("name", ["/dev/zero", "/", "nowhere.yaml", "x" * 300, "a\0b"])
def test_what_is_no_file_is_refused(name: str) -> None:
    with pytest.raises(UserError):
        read_yaml(Path(name))


def test_infinity_is_kept(tmp_path: Path) -> None:
    write_values(tmp_path / "a.yaml", {"lr": math.inf, "x": [-math.inf]}, "t")
    assert read_yaml(tmp_path / "a.yaml") == {"lr": math.inf, "x": [-math.inf]}
