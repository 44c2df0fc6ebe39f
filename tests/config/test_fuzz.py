"""Whatever is typed or stands in a run's file: a valid configuration, or one message and nothing written.

No traceback, no hang, no process, no file outside of the run. Half of the inputs are command lines, half YAML files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT, SMALL, Project
from tests.entry import Entry, Outcome, entered
from xcls.config.errors import known_keys
from xcls.config.schema import MODES, UserError
from xcls.data.pydocs import Pydocs

pytestmark = pytest.mark.slow

INPUTS = int(os.environ.get("XCLS_FUZZ", 1_000))
MADE = ("pretrain", "finetune", "multirun", "cache", "hub")
COUNTS = {"refused": 0, "accepted": 0}
BASE = ["dataset=files", "dataset.path=rows.csv", "wandb=disabled"]
GROUPS = {path.name: sorted(p.stem for p in path.glob("*.yaml")) for path in (ROOT / "conf").iterdir() if path.is_dir()}
KEYS = known_keys(ROOT / "conf")
NUMBERS = ["-1", "0", "3", "1000000000000", "1e400", "nan", "0.1", "1e-3", "9" * 5000]
PLACES = ["../../x", "/", "~", "~nobody-of-this-name/x", "/dev/zero", "rows.csv", "pretrain/base"]
NAMES = ["x" * 300, "a b", "BASE", "null", "''", "名前", "\udcff"]
SIGNS = ["[]", "{}", "[1,2]", "{a:{b:1}}", "[[[[", "'", "a\tb", "\\", "*", "a=b", "a,b", "#"]
CALLS = ["${seed}", "${nope}", "${", "${oc.env:NOT_SET}", "${size}", "choice(1,2)", "range(3)", "glob(*)", "int(x)"]
TARGETS = ["os.system", "xcls.attention.softmax.Nope", "xcls.position.rope.Rotary", "{_target_:os.system,command:id}"]
values = st.sampled_from(NUMBERS + PLACES + NAMES + SIGNS + CALLS + TARGETS) | st.text(
    st.characters(exclude_characters="\0")
)
words = st.one_of(
    st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), st.sampled_from(KEYS), values),
    st.sampled_from(sorted(GROUPS)).flatmap(
        lambda group: st.sampled_from(GROUPS[group] or ["x"]).map(f"{group}={{}}".format)
    ),
    st.builds("{}={}".format, st.sampled_from(sorted(GROUPS)), values),
    st.builds("mode={}".format, st.sampled_from(MODES)),
    st.sampled_from(["-m", "--cfg", "--zz", "-", "exp=base", "resume=true", "pretrain=base", "pretrain=auto", "exp=5"]),
    values,
)
command_lines = st.lists(words, min_size=1, max_size=3).map(lambda typed: [*BASE, *typed])
BROKEN = ["[1, 2", "? a", "- a", "\t", "a: b: c", "x" * 100_000]
HARMFUL = ["*a", "&a {b: *a}", "!!python/object:os.system x", "<<: *a"]
lines_of_junk = st.sampled_from(BROKEN + HARMFUL)


@st.composite
def mutations(draw: st.DrawFn, text: str) -> bytes:
    """The YAML file `text` after one to three accidents."""
    lines = text.split("\n")
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        key = draw(st.sampled_from([lines[place].partition(":")[0], *KEYS, "choices.attention", "x", "size"]))
        junk = draw(lines_of_junk | st.builds("{}: {}".format, st.just(key), values | lines_of_junk))
        lines[place : place + draw(st.integers(0, 1))] = draw(
            st.sampled_from([[], [junk], [lines[place], lines[place]]])
        )
        lines = lines or [""]
    raw = "\n".join(lines).encode("utf-8", "surrogatepass")
    cut = draw(st.integers(0, len(raw)))
    return draw(st.sampled_from([raw, raw, raw, raw[:cut], raw[:cut] + b"\xff\xfe\0" + raw[cut:]]))


def not_in_a_test(self: Any) -> Any:
    raise UserError("The embedded data set is not made in this test.")


@pytest.fixture(scope="module")
def entry(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    """run.py in a copy of a project with complete runs."""
    place = tmp_path_factory.mktemp("fuzz") / "project"
    shutil.copytree(finished.folder, place, symlinks=True)
    with entered(place) as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pydocs, "load", not_in_a_test)
        yield made


def fault_of(outcome: Outcome, entry: Entry) -> str | None:
    """What is wrong with how a call ended; None where it is well."""
    events = [write.partition(" ")[::2] for write in outcome.files]
    inside = tuple(str(entry.folder / name) for name in MADE)
    strange = [
        event for event in events if event[0].startswith(("subprocess", "socket", "os.system", "os.exec", "os.fork"))
    ]
    outside = [event for event in events if not event[1].startswith(inside)]
    kept = [event for event in events if not event[1].startswith(inside[3:]) and not event[1].endswith("/multirun")]
    if outcome.traceback or "Traceback" in outcome.stderr or outcome.code not in (0, None, 2):
        return f"exit code {outcome.code}: " + (outcome.traceback or outcome.stderr)[-900:]
    if strange or outside or (outcome.code == 2 and kept):
        return f"writes or starts what it may not: {(strange or outside or kept)[:3]}"
    if outcome.code == 2 and len(outcome.stderr.strip()) < 20:
        return f"refused without a message: {outcome.stderr!r}"
    return None


def runs_of(folder: Path) -> set[Path]:
    return {path for name in MADE[:3] for path in (folder / name).rglob("*")}


def check_all(kind: str, entry: Entry, inputs: Any, call: Callable[[Any], Outcome]) -> None:
    """Tries many inputs, removes what each has made, and shows all faults at once."""
    before, faults = runs_of(entry.folder), {}

    @settings(max_examples=INPUTS // 2)
    @given(inputs)
    def tried(content: Any) -> None:
        outcome = call(content)
        COUNTS["refused" if outcome.code == 2 else "accepted"] += 1
        fault = fault_of(outcome, entry)
        faults.update({fault: content} if fault else {})
        for path in sorted(runs_of(entry.folder) - before, reverse=True):
            path.unlink() if path.is_file() else path.rmdir()

    tried()
    print(f"\n{kind} and before: {COUNTS['refused']} refused, {COUNTS['accepted']} accepted, {len(faults)} faults")
    assert not faults, "\n\n".join(f"{fault}\n   e.g. {content!r}" for fault, content in faults.items())


@pytest.mark.timeout(7200)
def test_many_command_lines(entry: Entry) -> None:
    check_all("command lines", entry, command_lines, lambda typed: entry(*typed))


@pytest.mark.timeout(7200)
def test_many_yaml_files(entry: Entry) -> None:
    file = entry.folder / "t.yaml"
    text = (entry.folder / "pretrain" / "written" / "config.yaml").read_text()

    def call(content: bytes) -> Outcome:
        file.write_bytes(content)
        return entry(*SMALL, "mode=init", "exp=fresh", "template=t.yaml")

    check_all("YAML files", entry, mutations(text), call)
