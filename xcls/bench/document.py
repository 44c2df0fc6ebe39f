"""Puts the tables of benches into a document, each between its marks, and leaves the words around them alone.

    python -m xcls.bench.document docs/mechanisms.md

A mark is a comment `<!-- table: rivals of attention -->`: the table `rivals` from multirun/bench/attention/bench.json.
What stands between it and `<!-- end -->` is made anew. A bench that is not there leaves its tables as they are.
"""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any, Callable

from xcls.bench import growth_results
from xcls.bench.growth_plan import AXES
from xcls.bench.results import COMPLETED, Row
from xcls.bench.table import Column, markdown, number
from xcls.bench.training_results import SPEED, TIMES

BENCHES = Path("multirun/bench")
MARK = re.compile(r"(<!-- table: (\w+) of ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def shown(key: str, factor: float = 1.0) -> Callable[[Row], str]:
    """A column's value with three digits; a dash where nothing was measured."""
    return lambda row: number(None if row.get(key) in (None, "") else row[key] * factor)


def words(key: str) -> Callable[[Row], str]:
    """A column's value as it is."""
    return lambda row: "–" if row.get(key) in (None, "") else str(row[key])


WHERE: list[Column] = [("mechanism", words("mechanism")), ("tokens", words("seq_len")), ("dtype", words("dtype"))]


def by_part(rows: list[Row]) -> list[Row]:
    """One row for each mechanism, position, length and dtype: the module's, with the core's values as `core.*`."""
    keys = ("mechanism", "position", "seq_len", "dtype")
    cores = {tuple(row[key] for key in keys): row for row in rows if row["part"] == "core"}
    found = []
    for row in rows:
        if row["part"] == "module":
            core = cores.get(tuple(row[key] for key in keys), {})
            found.append({**row, **{f"core.{key}": value for key, value in core.items()}})
    return found


def rivals(rows: list[Row]) -> str:
    """Ours against the quickest other implementation of the same mechanism."""
    chosen = [row for row in by_part(rows) if row.get("training_ms_vs_rival")]
    columns = [
        *WHERE,
        ("against", words("rival")),
        ("ours, ms", shown("training_ms")),
        ("time of the module ×", shown("training_ms_vs_rival")),
        ("without projections ×", shown("core.training_ms_vs_rival")),
        ("memory ×", shown("training_MiB_vs_rival")),
    ]
    return markdown(columns, chosen)


def fused(rows: list[Row]) -> str:
    """Everything against PyTorch's fused softmax attention, and against the explicit one."""
    chosen = [row for row in by_part(rows) if row["origin"] == "xcls" and row.get("training_ms_vs_sdpa_fused")]
    columns = [
        *WHERE,
        ("training, ms", shown("training_ms")),
        ("× sdpa_fused", shown("training_ms_vs_sdpa_fused")),
        ("without projections × sdpa_fused", shown("core.training_ms_vs_sdpa_fused")),
        ("× sdpa", shown("training_ms_vs_sdpa")),
        ("memory, MiB", shown("training_MiB")),
        ("memory × sdpa_fused", shown("training_MiB_vs_sdpa_fused")),
        ("memory × sdpa", shown("training_MiB_vs_sdpa")),
    ]
    return markdown(columns, chosen)


def work(rows: list[Row]) -> str:
    """What a mechanism must spend by formula, without projections, and how far the measured time is from it."""
    chosen = [row for row in rows if row["part"] == "core" and row.get("training_bound_ms")]
    columns = [
        *WHERE,
        ("GFLOP", shown("training_flops", 1e-9)),
        ("MiB moved", shown("training_bytes", 2**-20)),
        ("bound, ms", shown("training_bound_ms")),
        ("measured, ms", shown("training_ms")),
        ("× bound", shown("training_times_bound")),
    ]
    return markdown(columns, chosen)


def steps(rows: list[Row]) -> str:
    """Whole training steps of a classifier."""
    chosen = [row for row in rows if row["part"] == "step"]
    found = [re.fullmatch(r"training_(?:ms|MiB)_vs_(.+)", key) for row in chosen for key in row]
    references = list(dict.fromkeys(match.group(1) for match in found if match))
    columns = [WHERE[0], ("position", words("position")), *WHERE[1:], ("step, ms", shown("training_ms"))]
    columns += [(f"× {name}", shown(f"training_ms_vs_{name}")) for name in references]
    columns += [("memory, MiB", shown("training_MiB"))]
    columns += [(f"memory × {name}", shown(f"training_MiB_vs_{name}")) for name in references]
    columns += [
        ("rounds", words("rounds")),
        ("failed", lambda row: "–" if row["status"] == COMPLETED else str(row["cause"])),
    ]
    return markdown(columns, chosen)


def places(rows: list[Row]) -> str:
    """Peak memory of a training step by mechanism and position, that of inference in brackets, MiB."""
    steps = [row for row in rows if row["part"] == "step"]
    names, where = (list(dict.fromkeys(row[key] for row in steps)) for key in ("mechanism", "position"))
    cells = {(row["mechanism"], row["position"]): row for row in steps}
    columns: list[Column] = [("mechanism", words("mechanism"))]
    columns += [(place, lambda line, place=place: _memory(cells.get((line["mechanism"], place)))) for place in where]
    return markdown(columns, [{"mechanism": name} for name in names])


def _memory(row: Row | None) -> str:
    if row is None:
        return "–"
    trained = number(row.get("training_MiB")) if row["status"] == COMPLETED else str(row["cause"])
    return f"{trained} ({number(row.get('inference_MiB'))})"


def errors(rows: list[Row]) -> str:
    """Relative error on random queries and keys."""
    chosen = [row for row in rows if row["part"] == "core" and row.get("error_mean") is not None]
    columns = [
        *WHERE,
        ("relative error", _spread),
        ("of the mean of values", shown("error_of_mean")),
        ("against", words("error_reference")),
    ]
    return markdown(columns, chosen)


def trained(rows: list[Row]) -> str:
    """Relative error on the queries and keys of a trained run, by layer."""
    chosen = [row for row in rows if row["part"] == "trained" and row.get("error_mean") is not None]
    columns = [
        WHERE[0],
        ("relative error", _spread),
        ("by layer", words("error_by_layer")),
        ("of the mean of values", shown("error_of_mean")),
        ("against", words("error_reference")),
        ("tokens", words("seq_len")),
        ("run's attention", words("trained_attention")),
    ]
    return markdown(columns, chosen)


def trainings(rows: list[Row]) -> str:
    """Whole trainings beside transformers' Trainer: speed, memory, the distance from the arithmetic peak."""
    return markdown(SPEED, [row for row in rows if row.get("tokens_per_s")])


def parts(rows: list[Row]) -> str:
    """Where a training step's time goes."""
    return markdown(TIMES, [row for row in rows if row.get("tokens_per_s")])


def _spread(row: Row) -> str:
    return f"{number(row['error_mean'])} ± {number(row['error_std'])}"


TABLES: dict[str, Callable[[list[Row]], str]] = {
    "rivals": rivals,
    "fused": fused,
    "work": work,
    "steps": steps,
    "places": places,
    "errors": errors,
    "trained": trained,
    "trainings": trainings,
    "parts": parts,
    **{axis: partial(growth_results.table, axis=axis) for axis in AXES},
}


def source_of(bench: dict[str, Any]) -> str:
    """One line under a table: the machine, its rates, and the versions that matter to a time."""
    device, versions, rates = bench["device"], bench["versions"], bench.get("machine", {})
    rates = {dtype: rate if isinstance(rate, dict) else {"flops_per_s": rate} for dtype, rate in rates.items()}
    speeds = [f"{number(rate['flops_per_s'] / 1e12)} TFLOP/s in {dtype}" for dtype, rate in rates.items()]
    copies = max((rate.get("bytes_per_s", 0.0) for rate in rates.values()), default=0.0)
    speeds += [f"{number(copies / 1e9)} GB/s"] if copies else []
    machine = f"{device['name']}, {device['threads']} threads" + (f": {', '.join(speeds)}" if speeds else "")
    matter = ("python", "torch", "transformers", "performer-pytorch", "reformer-pytorch")
    return f"*{machine}. {', '.join(f'{name} {versions[name]}' for name in matter if versions.get(name))}.*"


def refresh(text: str, benches: Path) -> tuple[str, list[str]]:
    """The document with its tables made anew, and the names of benches that are not there. Raises KeyError for a
    table that does not exist."""
    missing: list[str] = []

    def table(match: re.Match[str]) -> str:
        begin, kind, name, end = match.groups()
        make, path = TABLES[kind], benches / name / "bench.json"
        if not path.is_file():
            missing.append(name)
            return match.group(0)
        bench = json.loads(path.read_text(encoding="utf-8"))
        return f"{begin}{make(bench['rows'])}\n\n{source_of(bench)}\n{end}"

    return MARK.sub(table, text), missing


def main(arguments: list[str]) -> int:
    """Refreshes each document named. Returns 1 where none of its benches is there."""
    absent: list[str] = []
    marks = 0
    for name in arguments:
        path = Path(name)
        text, missing = refresh(path.read_text(encoding="utf-8"), BENCHES)
        path.write_text(text, encoding="utf-8")
        absent, marks = absent + missing, marks + len(MARK.findall(text))
    for name in dict.fromkeys(absent):
        print(f"{BENCHES / name}: no such bench, its tables stay as they are.", file=sys.stderr)
    return 1 if len(absent) == marks else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
