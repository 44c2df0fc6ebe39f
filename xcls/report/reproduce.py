"""reproduce.sh: the exact commands that make a run, or all runs of a report, again in a fresh clone.

Before any work the script checks that the data are the same, byte by byte; after it, that the numbers are
(`xcls.report.reproduce_check`).
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, Mapping, Sequence

from xcls.config.overrides import unquoted
from xcls.config.schema import Labels
from xcls.runs.record import PATCH, Record, sha256

HEAD = r"""#!/usr/bin/env bash
# {title}
#
#   git clone <this project> again && cd again && git checkout {shown} && bash <where this file is>/reproduce.sh
#
# Needs Python 3.10 or newer; the rest is made below. PYTHON=… uses an environment of your own. Data that lie
# elsewhere: bash reproduce.sh dataset.path=/their/folder. On the same CPU type, torch version and thread count the
# numbers are the same to the bit; elsewhere every score is to be within {tolerance} (TOLERANCE=… sets another bound).
set -euo pipefail
clone() {{ cd "$1" && until [ -f run.py ] && [ -d xcls ]; do [ "$PWD" != / ] || return 1; cd ..; done && pwd; }}
home=$(clone "$PWD") || home=$(clone "$(dirname "${{BASH_SOURCE[0]}}")") || {{
  echo "reproduce.sh: start me inside a clone of the project" >&2; exit 2; }}
cd "$home"
unset XCLS_RUNS  # this clone gets the runs
commit={commit}
here=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$commit" ] || [ "$commit" = "$here" ] || echo "reproduce.sh: made at commit $commit, this is $here" >&2
{sources}if [ -z "${{PYTHON:-}}" ]; then
  make setup  # .venv with the exact versions of requirements.lock
  PYTHON=.venv/bin/python
fi
expected() {{ cat <<'EXPECTED'
{expected}
EXPECTED
}}

# The data must be the same before any work begins.
expected | "$PYTHON" -m xcls.report.reproduce_check before "$@"

"""
CHANGES = r"""changes() {{ cat <<'{mark}'
{patch}{mark}
}}
export GIT_CEILING_DIRECTORIES=$(dirname "$home")  # no repository around this one is meant
if ! changes | git apply --reverse --check 2>/dev/null; then  # else they are here already
  changes | git apply --whitespace=nowarn || {{
    echo "reproduce.sh: the changes that these runs were made with do not fit here: git checkout $commit" >&2; exit 2; }}
fi
"""
TAIL = """
# Are the numbers the same?
expected | "$PYTHON" -m xcls.report.reproduce_check after
"""
TOLERANCE = 0.02
TEMPLATES = "multirun/templates"  # configurations that the runs were made from, laid down again
ORDER = {"baseline": 0, "pretrain": 1, "finetune": 2}
COMMON = ("seed", "study", "dataset", "wandb")
ENCODER = (*COMMON, "seq_len", "attention", "position", "size", "tokenizer", "hardware")
NODES = {  # what a file holds for a run of this mode; the rest is its command's
    "baseline": (*COMMON, "baseline"),
    "pretrain": (*ENCODER, "masking", "pretraining"),
    "finetune": (*ENCODER, "head", "finetuning", "pretraining", "masking"),
}
GROUPS = ("attention", "position", "size", "dataset", "tokenizer", "hardware", "wandb")
Patches = Mapping[str, str]  # checksum -> text
NO_PATCHES: Patches = MappingProxyType({})
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def read_patch(folder: Path, record: Record) -> dict[str, str]:
    """Checksum -> text of the `code.patch` of the run in `folder`; empty where it has none, or another one."""
    checksum, path = record.files.get(PATCH), folder / PATCH
    if checksum is None or not path.is_file() or sha256(path) != checksum:
        return {}
    return {checksum: path.read_bytes().decode()}


def script_for(record: Record, origins: Sequence[Record] = (), *, patches: Patches = NO_PATCHES) -> str:
    """The reproduce.sh of one run: set-up, data, the runs it starts from (`origins`), its command, the comparison."""
    records = list({item.hash: item for item in [*origins, record]}.values())
    return _head(f"Makes the run {record.run} again.", records, patches) + _commands(records) + TAIL


def script(records: Sequence[Record], report: Sequence[str], *, patches: Patches = NO_PATCHES) -> str:
    """The reproduce.sh of a report: baselines, pretraining, fine-tuning, then `report.py` with the overrides `report`.

    What did not complete is named in a comment and not run. `patches`: what `read_patch` gives of each run.
    """
    by_hash = {record.hash: record for record in records}
    known = sorted(
        (record for record in records if record.mode in ORDER),
        key=lambda r: (ORDER[r.mode], _generation(r, by_hash), r.run, r.hash, r.command),
    )
    done = list({record.hash: record for record in known if record.status == "completed"}.values())
    lines = [_head("Makes the runs of this report again, then the report.", done, patches), _commands(done)]
    for record in known:
        if record.status != "completed":
            cause = _comment(record.cause or "no cause")
            lines.append(f"# not run, {_comment(record.status)} ({cause}): {_comment(record.run)}\n")
    return "".join([*lines, TAIL, _line(["report.py", *report])])


def command_for(record: Record) -> str:
    """The lines that run `record` again: in its sweep if it was part of one, on as many threads, in its dtype."""
    if not record.command:
        return f"# {_comment(record.run)}: made by the runs that need it (its record holds no command)\n"
    file, overrides = _with_file(record)
    keys = {override.lstrip("+").partition("=")[0] for override in overrides}
    if "mode" not in keys:
        overrides.insert(0, f"mode={record.mode}")
    if record.mode != "baseline":
        threads, dtype = record.device.get("threads"), record.device.get("dtype")
        if record.device.get("kind") == "cpu" and isinstance(threads, int) and "hardware.threads" not in keys:
            overrides.append(f"hardware.threads={threads}")
        if isinstance(dtype, str) and "hardware.dtype" not in keys:
            overrides.append(f"hardware.dtype={dtype}")
    if "sweep" in keys:
        overrides.append("hydra.mode=RUN")  # one job, whatever axes its experiment has
    elif "resume" not in keys:
        overrides.append("resume=true")  # this script, started again, goes on
    return file + _line(["run.py", *overrides], more=True)


def expectation(record: Record) -> dict[str, Any]:
    """What the checks need: where the data are and their fingerprint; what the run measured, and on what."""
    config = record.config
    source = {k.partition("dataset.source.")[2]: v for k, v in config.items() if k.startswith("dataset.source.")}
    given = {name: config.get(f"dataset.{name}") for name in ("path", "text", "label")}
    labels = {name: config.get(f"dataset.labels.{name}", value) for name, value in asdict(Labels()).items()}
    if labels != asdict(Labels()):
        given["labels"] = labels
    told = {name: record.device.get(name) for name in ("kind", "name", "threads", "dtype")}
    return {
        "run": record.run,
        "hash": record.hash,
        "dataset": record.choices.get("dataset") or record.data.get("name"),
        "fingerprint": record.data.get("fingerprint"),
        "source": {**given, **source},
        "extra": config.get("dataset.extra") or [],
        "versions": record.versions,
        "device": told,
        "metrics": {split: scores for split, scores in record.metrics.items() if not split.startswith("eval.")},
    }


def _head(title: str, records: Sequence[Record], patches: Patches) -> str:
    commit, sources = _sources(records, patches)
    wanted = [expectation(record) for record in records if record.command]
    # ASCII on lines of their own, so that no entry ends the heredoc.
    lines = ",\n".join(json.dumps(entry, sort_keys=True) for entry in wanted)
    told = {
        "title": _comment(title),
        "commit": shlex.quote(commit),
        "shown": _comment(commit or "<its commit>"),
        "expected": f"[{lines}]",
    }
    return HEAD.format(**told, tolerance=TOLERANCE, sources=sources)


def _sources(records: Sequence[Record], patches: Patches) -> tuple[str, str]:
    """The commit that most of the runs were made at ('' where none is known), and the lines that lay down what it lacks.

    Runs that were made with other code are named when the script starts.
    """
    states = [(record.commit, record.files.get(PATCH, "")) for record in reversed(records) if record.commit]
    if not states:
        return "", ""
    state = Counter(states).most_common(1)[0][0]
    name, checksum = state
    commit, notes = name.removesuffix("-dirty"), []
    if name != commit and checksum not in patches:
        notes.append(f"these runs were made with changes of commit {commit} that are not at hand")
    for record in records:
        if record.commit and (record.commit, record.files.get(PATCH, "")) != state:
            notes.append(f"{record.run} was made with other code ({record.commit}); see its own reproduce.sh")
    lines = "".join(f"echo {shlex.quote(f'reproduce.sh: {_comment(note)}')} >&2\n" for note in notes)
    if checksum in patches:
        lines += CHANGES.format(mark=f"CHANGES_{checksum[:12]}", patch=patches[checksum])
    return commit, lines


def _commands(records: Sequence[Record]) -> str:
    return "".join(dict.fromkeys(command_for(record) for record in records))


def _generation(record: Record, by_hash: dict[str, Record], depth: int = 0) -> int:
    """How many runs of `by_hash` had to be made before this one."""
    parent = by_hash.get(str((record.pretrain or {}).get("hash")))
    return 0 if parent is None or depth > 8 else 1 + _generation(parent, by_hash, depth + 1)


def _line(words: Sequence[str], *, more: bool = False) -> str:
    """A command; with `more` it takes what the user gave the script."""
    return '"$PYTHON" ' + " ".join(shlex.quote(word) for word in words) + (' "$@"' if more else "") + "\n"


def _comment(text: str) -> str:
    return " ".join(text.split())


def _with_file(record: Record) -> tuple[str, list[str]]:
    """The lines that lay down the file a run reads (it may have been edited, or lie elsewhere), and its overrides.

    A single pretraining run reads `pretrain/<exp>/config.yaml`; others read what `template=` names.
    """
    overrides, path = [], ""
    for override in record.command:
        key, _, value = override.partition("=")
        if key == "template":
            path = f"{TEMPLATES}/{re.sub('[^0-9a-f]', '', record.hash)[:12] or 'run'}.yaml"
            override = f"template={path}"
        elif key == "pretrain" and unquoted(value).startswith("/") and record.pretrain is not None:
            override = f"pretrain={record.pretrain.get('folder')}"  # where the clone has it
        elif (
            key == "exp" and record.mode == "pretrain" and not any(word.startswith("sweep=") for word in record.command)
        ):
            path = path or f"pretrain/{value}/config.yaml"
        overrides.append(override)
    return (_file(record, path) if path else ""), overrides


def _file(record: Record, path: str) -> str:
    """The lines that write the configuration of `record` to `path`, unless it is there."""
    values = {f"choices.{group}": record.choices[group] for group in GROUPS if record.choices.get(group) is not None}
    values.update({key: value for key, value in record.config.items() if key.partition(".")[0] in NODES[record.mode]})
    lines = "".join(f"{key}: {_yaml(value)}\n" for key, value in values.items() if KEY.fullmatch(key))
    quoted = shlex.quote(path)
    folder = shlex.quote(path.rpartition("/")[0])
    return f"mkdir -p {folder}\n[ -e {quoted} ] || cat > {quoted} <<'CONFIG'\n{lines}CONFIG\n"


def _yaml(value: Any) -> str:
    """A value in YAML: as in JSON, but a float always has its point, or YAML 1.1 would read 1e-05 as text."""
    text = json.dumps(value)
    return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text
