"""What the project writes for Hydra's grammar comes back as it was, and what a user types plainly is taken as it stands."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from xcls.config.overrides import quote_typed, quoted, unquoted

PATHS = [
    "xcls (copy), v2",
    "Bob's xcls",
    "Jürgen xcls",
    "a=b",
    "[x]{y}",
    "~/x",
    'say "hi"',
    'it\'s "both"',
    "back\\slash",
    "end\\",
    "end\\'",
    "\\'",
    "#1; rm & co",
    "a:b",
    "50%",
    "$HOME",
    "名前",
    "🙂",
    " led",
    "trail ",
    "null",
    "true",
    "1e5",
    "007",
    "2024_01",
    "inf",
    "-",
    "",
    "a,b",
    "(",
    "'",
    '"',
    "choice(a)",
    "{a:b}",
    "[a]",
    "a|b",
    "`x`",
    "^!<>",
    "tab\there",
]


def read(word: str) -> Any:
    """What Hydra makes of the value in `key=value`: one, or a list of those of a sweep."""
    override = OverridesParser.create().parse_override(word)
    if override.is_sweep_override():
        return [getattr(value, "text", value) for value in override.value().list]
    return override.value()


@pytest.mark.parametrize("text", PATHS)
def test_every_text_comes_back_as_it_was(text: str) -> None:
    assert read(f"template={quoted(text)}") == text
    assert read(f"x={quoted([text, 1, None, True, 0.5])}") == [text, 1, None, True, 0.5]


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12))
def test_any_text_comes_back_as_it_was(text: str) -> None:
    assert read(f"template={quoted(text)}") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [('"/a b"', "/a b"), ("'/a b'", "/a b"), ("/a b", "/a b"), ("'it\\'s'", "it's"), ("O'Neil", "O'Neil"), ("'", "'")],
)
def test_a_typed_value_as_text(value: str, text: str) -> None:
    assert unquoted(value) == text


PLAIN = [
    "~/plain.csv",
    "data (1).csv",
    "O'Neil #2.csv",
    "a=b.csv",
    "[x]{y}.csv",
    "Übung.csv",
    "data (copy)",
    "a;b",
    "f(x)",
    "[x].csv",
    "{x}.csv",
    "x{1,2}.csv",
    "Q&A!.csv",
    '"a"b',
    "'a",
    "C:\\tmp\\ü",
    "名前.csv",
    "1e5",
    "2024_01",
    "True",
    "1.50",
    "NaN",
    "007",
    "+5",
    "my data.csv",
    "a:b",
    "/tmp/xcls (copy)/a.csv",
    "<x>^",
]


@pytest.mark.parametrize("text", PLAIN)
def test_a_plain_text_is_taken_as_it_stands(text: str) -> None:
    (word,) = quote_typed([f"dataset.path={text}"], OverridesParser.create().parse_override)
    assert str(read(word)) == text  # True is text as OmegaConf writes it


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("dataset.path=a,b", ["a", "b"]),
        ("dataset.path=ü (1).csv,b,c=d", ["ü (1).csv", "b", "c=d"]),
        ("dataset.label=2024_01,x", ["2024_01", "x"]),
        ('dataset.path="a,b"', "a,b"),
        ("dataset.path='ü,b',c", ["ü,b", "c"]),
        ("dataset.path=null", None),
        ("dataset.text=[Überschrift,text (de)]", ["Überschrift", "text (de)"]),
        ("dataset.source.separator=;", ";"),
        ("dataset.source.separator= ", " "),
        ("dataset.source.separator=\t", "\t"),
        ("+dataset.source.id=Schlüssel", "Schlüssel"),
        ("exp=5", 5),
        ("seed=0,1", [0, 1]),
        ("finetuning.lr=1e-3", 1e-3),
        ('bench.attentions=[sdpa,"reformer:num_hashes=4"]', ["sdpa", "reformer:num_hashes=4"]),
        ("study=", ""),
    ],
)
def test_the_grammar_itself_stays_as_it_is(word: str, value: Any) -> None:
    (found,) = quote_typed([word], OverridesParser.create().parse_override)
    assert read(found) == value


@pytest.mark.parametrize(
    "word",
    [
        "seed=range(0,3)",
        "attention=glob(*)",
        "seed=range(0",
        "-m",
        "--cfg",
        "~seed",
        "${x}",
        "dataset.path=${oc.env:HOME}/x.csv",
    ],
)
def test_calls_options_and_references_are_left_alone(word: str) -> None:
    assert quote_typed([word], OverridesParser.create().parse_override) == [word]
