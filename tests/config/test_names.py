"""Names, parents, folders and checkpoints that cannot be used: refused by name before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.conftest import SMALL, Project
from tests.entry import Entry, entered

pytestmark = pytest.mark.slow
DATA = ["dataset=files", "dataset.path=rows.csv", "wandb=disabled"]


@pytest.fixture
def entry(finished: Project, tmp_path: Path) -> Iterator[Entry]:
    """run.py in a copy of a project with complete runs `pretrain/base` and `finetune/base`."""
    shutil.copytree(finished.folder, tmp_path / "project", symlinks=True)
    with entered(tmp_path / "project") as made:
        yield made


def refused(entry: Entry, *words: str) -> str:
    """The message of a call that must be refused without a write."""
    outcome = entry(*words)
    assert outcome.code == 2 and not outcome.traceback and outcome.files == [], (outcome.stderr, outcome.traceback)
    assert "run.py: " in outcome.stderr and entry.stages == [] and entry.sweeps == []
    return outcome.stderr


@pytest.mark.parametrize("words", ["mode=init exp=Base", "mode=finetune exp=bAse pretrain=base"])
def test_names_that_differ_in_case_alone_are_refused_with_both(entry: Entry, words: str) -> None:
    name = words.partition("exp=")[2].split()[0]
    message = refused(entry, *words.split(), *DATA)
    assert name in message and "base exists" in message


@pytest.mark.parametrize("name", ["../../x", "/abs/x", "naïve", ".hidden", "-x", "x.", "x" * 101, "~", ""])
@pytest.mark.parametrize("key", ["exp", "sweep"])
def test_a_name_that_is_no_plain_folder_name_is_refused(entry: Entry, key: str, name: str) -> None:
    assert key in refused(entry, f"{key}='{name}'", "mode=pretrain", *DATA)


def cut(text: str) -> str:
    return text[: len(text) // 2] + "\n: ["


def change(**values: Any) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **values})


CONFIG = "resolved_config.yaml"
DAMAGES: list[tuple[str, Callable[[str], str], str]] = [
    (CONFIG, cut, CONFIG),
    (CONFIG, lambda text: text[: text.index("size.name")], "no 'size' section"),
    (CONFIG, lambda text: "", "no 'attention' section"),
    (CONFIG, lambda text: "- 1", CONFIG),
    (CONFIG, lambda text: text.replace("xcls.attention.softmax.Sdpa", "os.system"), "attention._target_=os.system"),
    (CONFIG, lambda text: text.replace("choices.attention: sdpa", "choices.attention: ../../x"), "attention=../../x"),
    ("record.json", cut, "record.json"),
    ("record.json", lambda text: "[]", "record.json"),
    ("record.json", change(schema_version=99), "99"),
    ("record.json", change(hash=5), "hash"),
    ("record.json", lambda text: "[" * 100_000, "record.json"),
]


@pytest.mark.parametrize(("file", "harm", "named"), DAMAGES)
def test_a_damaged_parent_is_named(entry: Entry, file: str, harm: Callable[[str], str], named: str) -> None:
    path = entry.folder / "pretrain" / "base" / file
    path.write_text(harm(path.read_text()))
    assert named in refused(entry, "mode=finetune", "exp=new", "pretrain=base", "wandb=disabled")


def test_a_damaged_run_is_not_resumed(entry: Entry) -> None:
    path = entry.folder / "finetune" / "base" / "record.json"
    path.write_text(cut(path.read_text()))
    assert "finetune/base" in refused(entry, *SMALL, "mode=finetune", "exp=base", "resume=true")


@pytest.mark.parametrize("parent", ["nope", "rows.csv", "conf", "/", "~", "run.py/x"])
def test_a_parent_that_is_no_run_is_refused(entry: Entry, parent: str) -> None:
    assert "pretrain=" in refused(entry, "mode=finetune", "exp=new", f'pretrain="{parent}"', "wandb=disabled")


@pytest.mark.parametrize("words", ["seed=1", "size.width=64", "dataset.source._target_=xcls.data.files.Files"])
def test_a_finished_run_is_read_as_it_is(entry: Entry, words: str) -> None:
    assert words.partition("=")[0] in refused(entry, "mode=eval", "exp=base", words)


@pytest.mark.parametrize("mode", ["finetune", "pretrain"])
@pytest.mark.parametrize("name", ["mydata.csv", "events.jsonl", "notes/today.md"])
def test_a_folder_of_the_user_s_own_is_refused_and_left_as_it_is(entry: Entry, mode: str, name: str) -> None:
    folder = entry.folder / mode / "mine"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("weeks of labelling")
    message = refused(entry, *SMALL, f"mode={mode}", "exp=mine")
    assert f"{mode}/mine" in message and name.partition("/")[0] in message
    assert (folder / name).read_text() == "weeks of labelling"


def test_what_comes_before_a_record_is_no_hindrance(entry: Entry) -> None:
    folder = entry.folder / "pretrain" / "mine"
    (folder / "logs").mkdir(parents=True)
    for name in (".lock", ".record.json.12.tmp", "config.yaml~", ".config.yaml.swp", "#config.yaml#", "logs/run.log"):
        (folder / name).touch()
    assert entry(*SMALL, "mode=pretrain", "exp=mine").code == 0 and entry.stages == [str(folder)]


@pytest.mark.parametrize(("name", "named"), [("nope", "checkpoint=nope"), ("../../rows.csv", "rows.csv")])
def test_a_checkpoint_that_is_not_there_leaves_no_folder(finished: Project, name: str, named: str) -> None:
    before = finished.files()
    words = ("mode=finetune", "exp=new", "pretrain=base", f"checkpoint={name}", "wandb=disabled")
    result = finished.run(*words, small=False)
    assert result.returncode == 2 and named in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert finished.files() == before and not (finished.folder / "finetune" / "new").exists()
