"""reproduce.sh: the exact commands that make a run, or all runs of a report, again in a fresh clone.

`python -m xcls.report.reproduce` is the check that these scripts make before they work: are the data the same, byte by
byte, and which installed versions differ.
"""

from __future__ import annotations

import importlib
import json
import platform
import shlex
import sys
from importlib import metadata
from typing import Any, Sequence

from xcls.record import Record
from xcls.schema import UserError

HEAD = r"""#!/usr/bin/env bash
# {title}
# Needs Python 3.10 or newer and a clone of this project; everything else is made below.
# Set PYTHON to use an environment of your own.
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"
until [ -f run.py ] && [ -d xcls ]; do
  [ "$PWD" != / ] || {{ echo "reproduce.sh: put me inside a clone of the project" >&2; exit 2; }}
  cd ..
done
commit={commit}
here=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$commit" ] || [ "$commit" = "$here" ] || echo "reproduce.sh: made at commit $commit, this is $here" >&2
if [ -z "${{PYTHON:-}}" ]; then
  make setup  # .venv with the exact versions of requirements.lock
  PYTHON=.venv/bin/python
fi
"""
CHECK = """
# The data must be the same before any work begins.
"$PYTHON" -m xcls.report.reproduce <<'EXPECTED'
{expected}
EXPECTED
"""
NOT_IN_FILE = (
    "mode",
    "exp",
    "resume",
    "retry_failed",
    "template",
    "pretrain",
    "checkpoint",
    "split",
    "input",
    "output",
    "sweep",
)
ORDER = {"baseline": 0, "pretrain": 1, "finetune": 2}


def script_for(record: Record, origin: Record | None = None) -> str:
    """The reproduce.sh of one run: set-up, the check of its data, the run it starts from (`origin`), its command."""
    records = [record] if origin is None else [origin, record]
    title = f"Makes the run {record.run} again."
    return (
        _head(title, records) + _check(records) + "\n" + "".join(dict.fromkeys(command_for(item) for item in records))
    )


def script(records: Sequence[Record], report: Sequence[str]) -> str:
    """The reproduce.sh of a report: baselines, pretraining, fine-tuning, then `report.py` with the overrides `report`.

    What did not complete is named in a comment and not run.
    """
    known = sorted((r for r in records if r.mode in ORDER), key=lambda r: (ORDER[r.mode], r.run, r.hash, r.command))
    done = [record for record in known if record.status == "completed"]
    lines = [_head("Makes the runs of this report again, then the report.", done), _check(done), "\n"]
    lines += dict.fromkeys(command_for(record) for record in done)
    for record in known:
        if record.status != "completed":
            cause = _comment(record.cause or "no cause")
            lines.append(f"# not run, {_comment(record.status)} ({cause}): {_comment(record.run)}\n")
    lines.append("\n" + _line(["report.py", *report]))
    return "".join(lines)


def command_for(record: Record) -> str:
    """The lines that run `record` again: in its sweep's folder if it was part of a sweep."""
    if not record.command:
        return f"# {_comment(record.run)}: made by the runs that need it (its record holds no command)\n"
    overrides = list(record.command)
    keys = {override.lstrip("+").partition("=")[0] for override in overrides}
    if "mode" not in keys:
        overrides.insert(0, f"mode={record.mode}")
    if "sweep" in keys:
        overrides.append("hydra.mode=RUN")  # one job, whatever axes its experiment has
    return _config_file(record) + _line(["run.py", *overrides])


def _line(words: Sequence[str]) -> str:
    return '"$PYTHON" ' + " ".join(shlex.quote(word) for word in words) + "\n"


def _comment(text: str) -> str:
    return " ".join(text.split())


def _config_file(record: Record) -> str:
    """Lays down `pretrain/<exp>/config.yaml`, where a single pretraining run reads it; it may have been edited."""
    exp = next((override.partition("=")[2] for override in record.command if override.startswith("exp=")), "")
    if record.mode != "pretrain" or not exp or any(override.startswith("sweep=") for override in record.command):
        return ""
    path = shlex.quote(f"pretrain/{exp}/config.yaml")
    values = {f"choices.{group}": choice for group, choice in record.choices.items()}
    values.update({key: value for key, value in record.config.items() if key not in NOT_IN_FILE})
    lines = "".join(f"{key}: {_yaml(value)}\n" for key, value in values.items())
    return f"mkdir -p {shlex.quote(f'pretrain/{exp}')}\n[ -e {path} ] || cat > {path} <<'CONFIG'\n{lines}CONFIG\n"


def _yaml(value: Any) -> str:
    """A value in YAML: as in JSON, but a float always has its point, or YAML 1.1 would read 1e-05 as text."""
    text = json.dumps(value)
    return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text


def _head(title: str, records: Sequence[Record]) -> str:
    commits = sorted({record.commit for record in records if record.commit})
    return HEAD.format(title=_comment(title), commit=shlex.quote(commits[0]) if len(commits) == 1 else "")


def _check(records: Sequence[Record]) -> str:
    """The check of the data and versions of all `records`, each data set once."""
    wanted: dict[str, dict[str, Any]] = {}
    for record in sorted(records, key=lambda record: (record.mode, record.hash)):
        entry = expectation(record)
        versions = entry.pop("versions")
        wanted.setdefault(json.dumps(entry, sort_keys=True), {**entry, "versions": {}})["versions"].update(versions)
    expected = json.dumps([wanted[key] for key in sorted(wanted)], sort_keys=True, indent=1, ensure_ascii=True)
    return CHECK.format(expected=expected)


def expectation(record: Record) -> dict[str, Any]:
    """What the check needs: the fingerprint, the source of the data with its arguments, and the versions of the run."""
    config = record.config
    source = {k.partition("dataset.source.")[2]: v for k, v in config.items() if k.startswith("dataset.source.")}
    given = {name: config.get(f"dataset.{name}") for name in ("path", "text", "label")}
    return {
        "dataset": record.choices.get("dataset") or record.data.get("name"),
        "fingerprint": record.data.get("fingerprint"),
        "source": {**given, **source},
        "extra": config.get("dataset.extra") or [],
        "versions": record.versions,
    }


def check(expected: Sequence[dict[str, Any]]) -> list[str]:
    """Compares data and versions with what the records say; gives warnings. Raises UserError where the data differ."""
    data = importlib.import_module("xcls.data.source")  # not at the top: the report itself reads no data
    notes = []
    for entry in expected:
        arguments = dict(entry["source"])
        module, _, name = str(arguments.pop("_target_", "")).rpartition(".")
        if not module or not entry["fingerprint"]:
            notes.append(
                f"{entry['dataset']}: the record does not say how to find its data again; they are not checked."
            )
            continue
        source = getattr(importlib.import_module(module), name)(**arguments)
        found = data.data_fingerprint(source, entry["extra"])
        if found != entry["fingerprint"]:
            raise UserError(
                f"the data set {entry['dataset']} is not the one of the record: fingerprint {found}, expected "
                f"{entry['fingerprint']}. Its files (or, for data made from packages, their versions) differ."
            )
        notes += [
            f"{k} is {installed(k)} here, {v} in the record."
            for k, v in entry["versions"].items()
            if v and installed(k) not in (v, "")
        ]
    return list(dict.fromkeys(notes))


def installed(name: str) -> str:
    """The version of Python or of an installed package; '' for what is neither (cuda, cudnn)."""
    if name == "python":
        return platform.python_version()
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def main() -> int:
    """Reads the expectations from standard input; 0: the data are the same, 2: they are not."""
    try:
        for note in check(json.load(sys.stdin)):
            print(f"reproduce.sh: {note}", file=sys.stderr)
    except UserError as error:
        print(f"reproduce.sh: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
