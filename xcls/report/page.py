"""The page, one self-contained HTML file, from page.html.j2, page.css and page.js: the claims first, then groups, plots, the rest folded."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Sequence

import jinja2
import pandas as pd
from markupsafe import Markup

from xcls.config.schema import flatten
from xcls.report import bench
from xcls.report.bench import Crossover
from xcls.report.claims import FAIL, MISSING, PASS, SPLITS, UNDECIDED
from xcls.report.drawing import DPI, Plot
from xcls.report.groups import DatasetResults, Group
from xcls.report.load import Run
from xcls.report.measures import NONE
from xcls.report.summary import headline, matrix
from xcls.report.tables import OF_CLAIM, Study, Table, claim_rows
from xcls.report.text import Best, comparison, footnotes, unfinished

CLASSES = {PASS: PASS, FAIL: FAIL, **dict.fromkeys((MISSING, UNDECIDED, "cannot tell"), MISSING)}  # words with a sign
SIGNS = {PASS: "✓", FAIL: "✗", MISSING: "?"}
MOST_ROWS = 400
WIDE, WIDER = 14, 20  # columns from which on a table is printed small, and smaller still
FEW = 20  # rows up to which a table is not broken over two pages: its caption stays with it
LONG = 48  # signs from which on a cell is broken into lines
MOST_COLUMNS = 6  # groups beside each other in the table of settings
# Signs that hide, or turn the writing around.
CONTROL = {*range(32), 127, 0x202A, 0x202B, 0x202D, 0x202E} - {9, 10, 13}
UNSEEN = dict.fromkeys(CONTROL, "\N{REPLACEMENT CHARACTER}")
NUMBER = re.compile(r"[-+−]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?(e[-+]?\d+)?(?=$|[\s×%*±(])", re.IGNORECASE)
ASIDE = re.compile(r"([^()]+) (\([^()]*\))")  # a number and what stands in brackets behind it
PER_RUN = ("seed", "exp", "sweep", "pretrain")  # differ between the runs of a group
FACTS = ("data.", "params.", "versions.")  # in the record, and no settings
HERE = Path(__file__).parent


def page(
    study: Study,
    tables: Sequence[Table],
    *,
    plots: Sequence[Plot],
    notes: Sequence[str],
    crossings: Sequence[Crossover],
    best: Sequence[Best],
    used: dict[str, Any],
) -> str:
    """The whole page as HTML text; everything that comes from a record is escaped, nothing is loaded from elsewhere.

    used: conf/report.yaml as used.
    """
    style, script = (Markup((HERE / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    apart = [_plot(plot) for plot in plots if plot.board is None]
    steps, benches = ([plot for plot in apart if plot["name"].startswith(word)] for word in ("step-", "bench-"))
    failed = unfinished(study.found)
    cause = "Every run that did not complete, every record that cannot be used. They are in no mean and no ranking."
    names = ", ".join(board.name for board in study.boards) or "no fine-tuned runs yet"
    context = {
        "title": f"Attention mechanisms for text classification: {names}",
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "boards": [_board(board, study, tables, plots) for board in study.boards],
        "measured_apart": any(table.name == "bench_ratios" for table in tables) or not study.boards,
        "pretraining": [plot for plot in apart if plot not in (*steps, *benches)],
        "crossings": [_crossing(one, study) for one in crossings],
        "unfinished": view(*failed, cause) if failed[1] else None,
        "settings": _settings(study.groups),
        "environment": _environment(study.found.runs),
        "used": json.dumps(used, indent=1, ensure_ascii=False, default=str),
    }
    context |= {
        "style": style,
        "script": script,
        "classes": CLASSES,
        "signs": SIGNS,
        "steps": steps,
        "benches": benches,
    }
    context |= {"studies": study.names, "best": best, "notes": notes, "found_notes": study.found.notes}
    return environment().get_template("page.html.j2").render(context)


def environment() -> jinja2.Environment:
    """Jinja as the page needs it: everything is escaped, signs that hide or turn text become visible."""
    loader = jinja2.FileSystemLoader(HERE)
    return jinja2.Environment(loader=loader, autoescape=True, finalize=visible, trim_blocks=True, lstrip_blocks=True)


def visible(value: Any) -> Any:
    """Text without control signs; markup and other values as they are."""
    return value.translate(UNSEEN) if type(value) is str else value


def _board(board: DatasetResults, study: Study, tables: Sequence[Table], plots: Sequence[Plot]) -> dict[str, Any]:
    """One data set: headline, matrix and plots; the table of groups; everything else folded."""
    first, rules = study.references[0], [study.judge.claims_for(group)[0] for group in board.groups if group.runs]
    rules = rules or [study.settings.claims]
    told = sorted({f"over at least {rule.min_seeds} seeds, at {rule.seq_len} tokens" for rule in rules})
    caption = f"The groups on {board.name}, ranked by {study.settings.rank_by}, then the baseline."
    folded = [(table.title, table_view(table), False) for table in tables if table.board == board.slug]
    for reference in study.references:
        for split in SPLITS:
            rows = claim_rows(study, [board], [reference], [split])
            title = f"Claims against {reference}, macro-F1 on {split}"
            columns = [name for name in OF_CLAIM[1:] if any(row.get(name) is not None for row in rows)]
            table = Table("wnf", title, f"{title}: every claim with value, threshold and margin.", rows, columns)
            folded.append((title, table_view(table), (reference, split) == (first, "validation")))
    return {
        "name": board.name,
        "headline": headline(board, study.judge, study.references),
        "matrix": matrix(board, study.judge, first),
        "rule": f"Claims against {first} on validation, {' or '.join(told)}.",
        "plots": [_plot(plot) for plot in plots if plot.board == board.slug],
        "groups": view(*comparison(board, study.judge, first), caption, file="groups.csv"),
        "footnotes": footnotes(board, first),
        "tables": folded,
    }


def _plot(plot: Plot) -> dict[str, Any]:
    header = plot.image[16:20], plot.image[20:24]  # of the PNG: width and height
    width, height = (round(int.from_bytes(size, "big") * 96 / DPI) for size in header)
    data = base64.b64encode(plot.image).decode()
    return {**vars(plot), "width": width, "height": height, "data": data}


def _crossing(one: Crossover, study: Study) -> dict[str, Any]:
    table = view(*bench.table(one, study.boards), bench.caption(one), file=f"{one.bench.place}/results.csv")
    return {"view": table, "notes": bench.remarks(one)}


def table_view(table: Table) -> dict[str, Any]:
    """The table of a table for the template."""
    return view(
        table.header,
        [[row.get(name) for name in table.header] for row in table.rows],
        table.words,
        file=f"{table.name}.csv",
    )


def view(
    header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str, *, file: str = "results.csv"
) -> dict[str, Any]:
    """A table for the template. Cells are text or values; those of a column of numbers know by what they sort.

    A page can be read with MOST_ROWS rows and no more: the caption says how many are only in `file`.
    """
    if len(rows) > MOST_ROWS:
        caption = f"{caption} The first {MOST_ROWS} of {len(rows):,} rows; all are in {file}."
        rows = rows[:MOST_ROWS]
    numeric = [_numeric([row[column] for row in rows]) for column in range(len(header))]
    titles = [name.replace("_", "_\u200b").replace(".", ".\u200b") if len(name) > 14 else name for name in header]
    width = " wide" * (len(header) >= WIDE) + " wider" * (len(header) >= WIDER) + " few" * (len(rows) <= FEW)
    cells = [
        [_cell(value, number, place == 0) for place, (value, number) in enumerate(zip(row, numeric))] for row in rows
    ]
    return {"caption": caption, "width": width, "head": list(zip(titles, numeric)), "rows": cells}


def _cell(value: Any, numeric: bool, first: bool) -> dict[str, Any]:
    text = shown(value)
    aside = ASIDE.fullmatch(text) if numeric else None
    words = aside.groups() if aside else (text, "")
    mark = "num" if numeric else "long" if len(text) > LONG and not first else ""
    return {"text": words[0], "aside": words[1], "mark": mark, "sorts": sort_value(value) if numeric else None}


def _numeric(values: Sequence[Any]) -> bool:
    """Whether a column holds numbers, and nothing else but gaps."""
    filled = [value for value in values if shown(value) not in ("", NONE)]
    return bool(filled) and all(sort_value(value) is not None for value in filled)


def shown(value: Any) -> str:
    """A value as a table shows it: four digits of a number, a dash for what is missing."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if 10_000 <= abs(value) < 1e12 else f"{value:.4g}"
    return str(value)


def sort_value(value: Any) -> float | None:
    """The number that a cell begins with, None where it begins with none (`0.677 ± 0.019` is 0.677)."""
    if isinstance(value, (int, float)):
        return float(value) if abs(value) < 1e300 else None
    found = NUMBER.match(str(value))
    return float(found.group().replace(",", "").replace("−", "-")) if found else None


def _settings(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Per mode the settings that differ between the groups, as a table, and those that all share."""
    parts = []
    for mode in ("finetune", "pretrain", "baseline"):
        alike = [group for group in groups if group.record.mode == mode]
        if not alike:
            continue
        frame = pd.DataFrame({group.label: pd.Series(flat_of(group), dtype=object) for group in alike})
        frame = frame.loc[sorted(frame.index, key=lambda name: (not name.startswith("choices."), name))]
        same = frame.nunique(axis=1, dropna=False) == 1
        differ = frame[~same & ~frame.index.str.startswith(FACTS)]
        differ, name = (differ, "setting") if len(alike) <= MOST_COLUMNS else (differ.T, "group")
        cells = [
            [label, *(None if pd.isna(value) else value for value in row)]
            for label, row in zip(differ.index, differ.to_numpy())
        ]
        shown = view([name, *differ.columns], cells, "Every setting that is not the same in all groups.")
        parts.append(
            {"mode": mode, "differ": shown if len(alike) > 1 else None, "shared": list(frame[same].iloc[:, 0].items())}
        )
    return parts


def flat_of(group: Group) -> dict[str, str]:
    """Everything that is known of a group's configuration, flat, as text: choices, config, code, data, device, versions."""
    record = group.record
    nodes = {name: getattr(record, name) for name in ("choices", "code", "data", "device", "params", "versions")}
    flat = {name: value for name, value in record.config.items() if name not in PER_RUN}
    flat |= flatten({**nodes, **({} if record.pretrain is None else {"pretrained": record.pretrain})})
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for name, value in flat.items()
    }


def _environment(runs: Sequence[Run]) -> dict[str, Any]:
    """Each environment that runs were made in, once, with the number of its runs."""
    places = []
    for record in (run.record for run in runs):
        device = " ".join(str(record.device[name]) for name in ("name", "dtype") if record.device.get(name))
        versions = ", ".join(f"{name} {value}" for name, value in sorted(record.versions.items()) if value)
        places.append(
            (
                device or "unknown",
                str(record.device.get("threads") or ""),
                versions or "unknown",
                record.commit or "unknown",
            )
        )
    counts = pd.Series(places).value_counts().sort_index()
    rows = [[device, int(count), *rest] for (device, *rest), count in counts.items()]
    return view(
        ["device", "runs", "threads", "versions", "commit"],
        rows,
        "Where the runs were made. Costs compare within one device only.",
    )
