"""Names, parents and folders that cannot be used: refused with what is wrong, by name, before anything is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.conftest import SMALL, Project
from tests.entry import Entry, entered
from xcls.config.schema import UserError
from xcls.runs.folder import check_case_collision, rollback

pytestmark = pytest.mark.slow


@pytest.fixture
def entry(finished: Project, tmp_path: Path) -> Iterator[Entry]:
    """run.py in a copy of a project with complete runs `pretrain/base` and `finetune/base`."""
    shutil.copytree(finished.folder, tmp_path / "project", symlinks=True)
    with entered(tmp_path / "project") as made:
        yield made


def refused(entry: Entry, *words: str) -> str:
    """The message of a call that must be refused without a write."""
    outcome = entry(*words)
    assert outcome.code == 2 and not outcome.traceback and outcome.files == [], (
        outcome.stderr,
        outcome.traceback,
        outcome.files,
    )
    assert outcome.stderr.startswith("run.py: ") and entry.stages == []
    return outcome.stderr


DATA = ["dataset=files", "dataset.path=rows.csv", "wandb=disabled"]


@pytest.mark.parametrize(
    "words",
    [
        "mode=init exp=Base",
        "mode=pretrain exp=BASE",
        "mode=finetune exp=bAse",
        "mode=finetune exp=Base pretrain=base",
        "mode=bench exp=OLD",
    ],
)
def test_names_that_differ_in_case_alone_are_refused_with_both(entry: Entry, words: str) -> None:
    (entry.folder / "multirun" / "bench" / "old").mkdir(parents=True)
    name = next(word for word in words.split() if word.startswith("exp=")).removeprefix("exp=")
    message = refused(entry, *words.split(), *DATA)
    assert (
        name in message
        and f"/{'old' if name == 'OLD' else 'base'} is there already, and the names differ in case alone" in message
    )


def test_a_sweep_beside_its_twin_is_refused(entry: Entry) -> None:
    (entry.folder / "multirun" / "sw").mkdir(parents=True)
    outcome = entry("-m", "exp=SW", "seed=0,1", *DATA)
    assert (
        outcome.code == 2
        and "SW" in outcome.stderr
        and "/multirun/sw is there already" in outcome.stderr
        and not outcome.traceback
    )
    assert outcome.files == []


def test_twins_are_seen_up_to_the_stage_s_folder(tmp_path: Path) -> None:
    (tmp_path / "multirun" / "a" / "b").mkdir(parents=True)
    (tmp_path / "MULTIRUN").mkdir()
    assert (
        check_case_collision(tmp_path / "multirun" / "a" / "b") is None
        and check_case_collision(tmp_path / "multirun" / "c" / "b") is None
    )
    for twin in ("A/b", "a/B"):
        with pytest.raises(UserError, match="differ in case alone"):
            check_case_collision(tmp_path / "multirun" / twin)


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "/abs/x",
        "a b",
        "naïve",
        "名前",
        ".hidden",
        "-x",
        "x.",
        "x" * 101,
        "a/b",
        "a\\b",
        "con:x",
        "~",
        "''",
        "a\tb",
    ],
)
@pytest.mark.parametrize("key", ["exp", "sweep"])
def test_a_name_that_is_no_plain_folder_name_is_refused(entry: Entry, key: str, name: str) -> None:
    assert f"{key}" in refused(entry, f'{key}="{name}"' if name != "''" else f"{key}=''", "mode=pretrain", *DATA)


@pytest.mark.parametrize(
    "word",
    [
        "attention=../position/rope",
        "size=../size/tiny",
        "dataset=../../../etc/x",
        "hydra.run.dir=/tmp/x",
        "hydra/job_logging=default",
        "+hydra.callbacks.x._target_=os.system",
        "hydra.sweep.dir=..",
        "hydra.output_subdir=.hydra",
        "-m seed=range(0,100000000)",
    ],
)
def test_what_would_lead_out_of_the_project_is_refused(entry: Entry, word: str) -> None:
    assert len(refused(entry, *DATA, *word.split())) > 20


def cut(text: str) -> str:
    return text[: len(text) // 2] + "\n: ["


def change(**values: Any) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **values})


DAMAGES: dict[str, tuple[str, Callable[[str], str], str]] = {
    "a cut resolved_config.yaml": ("resolved_config.yaml", cut, "resolved_config.yaml: cannot be read as YAML"),
    "one cut at a line": ("resolved_config.yaml", lambda text: text[: text.index("size.name")], "names no size"),
    "an empty one": (
        "resolved_config.yaml",
        lambda text: "",
        "names no attention, so it is no run of this program, or damaged",
    ),
    "one of another program": ("resolved_config.yaml", lambda text: "model: bert\nlr: 1e-3\n", "names no attention"),
    "a list": ("resolved_config.yaml", lambda text: "- 1", "'key: value' lines are needed"),
    "one whose target is a function of the system": (
        "resolved_config.yaml",
        lambda text: text.replace("xcls.attention.softmax.Sdpa", "os.system"),
        "a class of the package xcls.attention is needed",
    ),
    "one whose choices lead elsewhere": (
        "resolved_config.yaml",
        lambda text: text.replace("choices.attention: sdpa", "choices.attention: ../../x"),
        "attention=../../x: a plain name is needed",
    ),
    "a cut record.json": ("record.json", lambda text: text[: len(text) // 2], "record.json: "),
    "a record that is a list": ("record.json", lambda text: "[]", "record.json: not a JSON object"),
    "a record of a newer version": ("record.json", change(schema_version=99), "schema_version 99 is newer"),
    "a record with an infinite version": (
        "record.json",
        lambda text: text.replace('"schema_version": 1', '"schema_version": 1e999'),
        "record.json: ",
    ),
    "a record without a hash": ("record.json", change(hash=None), "hash must be of the type str"),
    "a record with a number for a hash": ("record.json", change(hash=5), "hash must be of the type str"),
    "a record that is nested without end": ("record.json", lambda text: "[" * 100_000, "record.json: "),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_parent_is_named(entry: Entry, damage: str) -> None:
    file, harm, message = DAMAGES[damage]
    path = entry.folder / "pretrain" / "base" / file
    path.write_text(harm(path.read_text()))
    said = refused(entry, "mode=finetune", "exp=new", "pretrain=base", "wandb=disabled")
    assert message in said and "pretrain/base" in said or damage == "one whose choices lead elsewhere"


@pytest.mark.parametrize("damage", ["a cut record.json", "a record with a number for a hash"])
def test_a_damaged_run_is_not_gone_on_with(entry: Entry, damage: str) -> None:
    path = entry.folder / "finetune" / "base" / "record.json"
    path.write_text(DAMAGES[damage][1](path.read_text()))
    said = refused(entry, *SMALL, "mode=finetune", "exp=base", "resume=true")
    assert "finetune/base" in said and "Move the folder" in said


@pytest.mark.parametrize("parent", ["nope", "rows.csv", "conf", "/", "x" * 300, "~", "run.py/x"])
def test_a_parent_that_is_no_run_is_refused(entry: Entry, parent: str) -> None:
    assert len(refused(entry, "mode=finetune", "exp=new", f'pretrain="{parent}"', "wandb=disabled")) > 20


def test_a_project_that_cannot_be_written_is_named(entry: Entry) -> None:
    shutil.rmtree(entry.folder / "finetune")
    (entry.folder / "finetune").write_text("a file where the folder should be")
    outcome = entry("mode=finetune", "exp=new", *DATA)
    assert (
        outcome.code == 2
        and not outcome.traceback
        and "/finetune/new: Not a directory. Check the path" in outcome.stderr
    )


@pytest.mark.parametrize("mode", ["finetune", "pretrain"])
@pytest.mark.parametrize("name", ["mydata.csv", "metrics.csv", "events.jsonl", "notes/today.md", "wandb/run.wandb"])
def test_a_folder_of_the_user_s_own_is_refused_and_left_as_it_is(entry: Entry, mode: str, name: str) -> None:
    folder = entry.folder / ("pretrain" if mode == "pretrain" else "finetune") / "mine"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("weeks of labelling")
    said = refused(entry, *SMALL, f"mode={mode}", "exp=mine")
    assert (
        f"/mine holds {name.partition('/')[0]}, but no record.json" in said
        and "Move what is in it away, or choose another exp" in said
    )
    assert (folder / name).read_text() == "weeks of labelling"


def test_what_comes_before_a_record_is_no_hindrance(entry: Entry) -> None:
    folder = entry.folder / "pretrain" / "mine"
    (folder / "logs").mkdir(parents=True)
    left = [
        ".lock",
        ".making",
        ".room",
        ".record.json.12.tmp",
        "config.yaml~",
        ".config.yaml.swp",
        "#config.yaml#",
        "logs/run.log",
    ]
    for name in left:
        (folder / name).touch()
    assert entry(*SMALL, "mode=pretrain", "exp=mine").code == 0 and entry.stages == [str(folder)]
    assert all((folder / name).exists() for name in left)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_named(entry: Entry) -> None:
    (entry.folder / "finetune").chmod(0o500)
    outcome = entry("mode=finetune", "exp=new", *DATA)
    assert (
        outcome.code == 2
        and not outcome.traceback
        and "/finetune/new: Permission denied. Check the path" in outcome.stderr
    )


def test_what_a_refused_run_made_is_taken_back(tmp_path: Path) -> None:
    folder = tmp_path / "multirun" / "sw" / "files" / "run"
    (folder / "logs").mkdir(parents=True)
    (folder / "record.json").touch()
    rollback(folder, set())
    assert not (tmp_path / "multirun" / "sw").exists() and (tmp_path / "multirun").is_dir()
    folder.mkdir(parents=True)
    for name in ("config.yaml", "record.json"):
        (folder / name).touch()
    rollback(folder, {"config.yaml"})
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nope", "checkpoint=nope: no such checkpoint"),
        ("../../rows.csv", "rows.csv is damaged"),
        pytest.param("", "checkpoint=: no such", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_that_is_not_there_leaves_no_folder(finished: Project, name: str, message: str) -> None:
    before = finished.files()
    result = finished.run(
        "mode=finetune", "exp=new", "pretrain=base", f"checkpoint={name}", "wandb=disabled", small=False
    )
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert (
        "Traceback" not in result.stderr
        and finished.files() == before
        and not (finished.folder / "finetune" / "new").exists()
    )
