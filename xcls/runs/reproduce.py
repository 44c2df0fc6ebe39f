"""reproduce.sh: the commands that repeat a run, or all runs of a report, in a fresh clone, from full configurations.

The script first checks that the data are the same, and at the end that the results are (`xcls.report.reproduce`).
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

from xcls.config.schema import Labels
from xcls.runs.record import PATCH, Record, sha256
from xcls.runs.spec import file_values

TOLERANCE = 0.02
TEMPLATES = "multirun/templates"  # the script writes the configurations of the runs there
ORDER = {"baseline": 0, "pretrain": 1, "finetune": 2}
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
Patches = Mapping[str, str]  # checksum -> text
NO_PATCHES: Patches = MappingProxyType({})


def read_patch(folder: Path, record: Record) -> dict[str, str]:
    """Checksum -> text of the `code.patch` of the run in `folder`; empty if there is none, or its checksum differs."""
    checksum, path = record.files.get(PATCH), folder / PATCH
    if checksum is None or not path.is_file() or sha256(path) != checksum:
        return {}
    return {checksum: path.read_bytes().decode()}


def script_for(record: Record, origins: Sequence[Record] = (), *, patches: Patches = NO_PATCHES) -> str:
    """The reproduce.sh of one run: setup, data, the runs it starts from (`origins`), its command, the comparison."""
    records = list({item.hash: item for item in [*origins, record]}.values())
    return _script(f"Makes the run {record.run} again.", records, patches)


def script(records: Sequence[Record], report: Sequence[str], *, patches: Patches = NO_PATCHES) -> str:
    """The reproduce.sh of a report: baselines, pretraining, fine-tuning, then `report.py` with the overrides `report`.

    A comment names the runs that did not complete. `patches`: the results of `read_patch` for all runs.
    """
    by_hash = {record.hash: record for record in records}
    known = [record for record in records if record.mode in ORDER]
    known.sort(key=lambda record: (ORDER[record.mode], _generation(record, by_hash), record.run, record.hash))
    done = list({record.hash: record for record in known if record.status == "completed"}.values())
    lost = [record for record in known if record.status != "completed"]
    words = " ".join(shlex.quote(word) for word in ["report.py", *report])
    return _script("Makes the runs of this report again, then the report.", done, patches, lost, f'"$PYTHON" {words}\n')


def command_for(record: Record) -> str:
    """The lines that write the configuration of `record` and run it: in its sweep, with its threads and dtype."""
    words = [f"mode={record.mode}"]
    sweep, exp = (record.config.get(name) for name in ("sweep", "exp"))
    path = f"{TEMPLATES}/{re.sub('[^0-9a-f]', '', record.hash)[:12] or 'run'}.yaml"
    if record.mode == "pretrain" and not sweep and exp:
        path = f"pretrain/{exp}/config.yaml"  # what mode=pretrain reads
    else:
        words.append(f"template={path}")
    words += [f"sweep={sweep}"] if sweep else [f"exp={exp}"] if exp else []
    if record.config.get("pretrain") == "auto":  # the run is found by its hash
        words.append("pretrain=auto")
    elif record.pretrain is not None:
        words += [
            f"pretrain={record.pretrain.get('folder')}",
            f"checkpoint={record.pretrain.get('checkpoint') or 'best'}",
        ]
    words.append("resume=true")  # so that the script can be started again
    command = " ".join(shlex.quote(word) for word in ["run.py", *words])
    return f'{_file(record, path)}"$PYTHON" {command} "$@"\n'


def expectation(record: Record) -> dict[str, Any]:
    """The values for the checks: place and fingerprint of the data; results of the run, and its device."""
    config = record.config
    source = {k.partition("dataset.source.")[2]: v for k, v in config.items() if k.startswith("dataset.source.")}
    given: dict[str, Any] = {name: config.get(f"dataset.{name}") for name in ("path", "text", "label")}
    labels = {name: config.get(f"dataset.labels.{name}", value) for name, value in asdict(Labels()).items()}
    return {
        "run": record.run,
        "hash": record.hash,
        "dataset": record.choices.get("dataset") or record.data.get("name"),
        "fingerprint": record.data.get("fingerprint"),
        "source": {**given, **({"labels": labels} if labels != asdict(Labels()) else {}), **source},
        "extra": config.get("dataset.extra") or [],
        "versions": record.versions,
        "device": {name: record.device.get(name) for name in ("kind", "name", "threads", "dtype")},
        "metrics": {split: scores for split, scores in record.metrics.items() if not split.startswith("eval.")},
    }


def _script(
    title: str, records: Sequence[Record], patches: Patches, lost: Sequence[Record] = (), report: str = ""
) -> str:
    commit, sources = _sources(records, patches)
    # One ASCII line per entry, so that no entry ends the heredoc.
    wanted = ",\n".join(json.dumps(expectation(record), sort_keys=True) for record in records)
    notes = [f"# not run, {_line(r.status)} ({_line(r.cause or 'no cause')}): {_line(r.run)}\n" for r in lost]
    parts = {
        "title": _line(title),
        "commit": shlex.quote(commit),
        "shown": _line(commit or "<its commit>"),
        "tolerance": str(TOLERANCE),
        "expected": f"[{wanted}]",
        "sources": sources,
        "commands": "".join([*map(command_for, records), *notes]),
        "report": report,
    }
    text = Path(__file__).with_suffix(".sh").read_text(encoding="utf-8")
    return re.sub(r"@([a-z]+)@", lambda found: parts[found[1]], text).rstrip() + "\n"


def _sources(records: Sequence[Record], patches: Patches) -> tuple[str, str]:
    """The commit of most of the runs ('' if unknown), and the lines that apply their patch to it.

    The script first names the runs that used other code.
    """
    states = [(record.commit, record.files.get(PATCH, "")) for record in reversed(records) if record.commit]
    if not states:
        return "", ""
    state = Counter(states).most_common(1)[0][0]
    name, checksum = state
    commit, notes = name.removesuffix("-dirty"), []
    if name != commit and checksum not in patches:
        notes.append(f"these runs used changes to commit {commit} that are not available")
    for record in records:
        if record.commit and (record.commit, record.files.get(PATCH, "")) != state:
            notes.append(f"{record.run} used other code ({record.commit}); see its own reproduce.sh")
    lines = "".join(f"echo {shlex.quote(f'reproduce.sh: {_line(note)}')} >&2\n" for note in notes)
    if checksum in patches:
        mark = f"CHANGES_{checksum[:12]}"
        lines += f"changes() {{ cat <<'{mark}'\n{patches[checksum]}{mark}\n}}\nlay_down\n"
    return commit, lines


def _generation(record: Record, by_hash: dict[str, Record], depth: int = 0) -> int:
    """The number of runs of `by_hash` that this one depends on, directly or not."""
    parent = by_hash.get(str((record.pretrain or {}).get("hash")))
    return 0 if parent is None or depth > 8 else 1 + _generation(parent, by_hash, depth + 1)


def _line(text: str) -> str:
    return " ".join(text.split())


def _file(record: Record, path: str) -> str:
    """The lines that write the configuration of `record` to `path`, unless that file exists."""
    values = {**file_values(record.mode, record.config, record.choices), "study": record.config.get("study")}
    threads, dtype = record.device.get("threads"), record.device.get("dtype")
    if record.mode != "baseline" and record.device.get("kind") == "cpu" and isinstance(threads, int):
        values["hardware.threads"] = threads
    if record.mode != "baseline" and isinstance(dtype, str):
        values["hardware.dtype"] = dtype
    lines = "".join(f"{key}: {_yaml(value)}\n" for key, value in values.items() if KEY.fullmatch(key))
    quoted, folder = shlex.quote(path), shlex.quote(path.rpartition("/")[0])
    return f"mkdir -p {folder}\n[ -e {quoted} ] || cat > {quoted} <<'CONFIG'\n{lines}CONFIG\n"


def _yaml(value: Any) -> str:
    """A value in YAML: as in JSON, but floats always with a decimal point, since YAML 1.1 reads 1e-05 as text."""
    text = json.dumps(value)
    return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text
