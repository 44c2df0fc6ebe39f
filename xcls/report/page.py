"""The page, one self-contained HTML file: the answer first, then tables, plots, failures, settings, environment."""

from __future__ import annotations

import base64
import json
from html import escape
from typing import Any, Sequence

from xcls.report import compare
from xcls.report.aggregate import Board, Group
from xcls.report.collect import Found, Run
from xcls.report.measures import MEASURES
from xcls.report.verdict import FAIL, MISSING, PASS, Judge

STYLE = """
:root { color-scheme: light; --ink: #1a1a1a; --soft: #5c5c5c; --line: #d5d5d5; --band: #f5f6f7; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink);
  margin: 0 auto; max-width: 78rem; padding: 1rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
.study { background: #fff4d6; border-left: 4px solid #c98a00; padding: .5rem .75rem; }
.answer { background: var(--band); border-left: 4px solid var(--ink);
  padding: .5rem .75rem .5rem 1.75rem; font-size: 1.05rem; }
.answer li { margin: .25rem 0; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .5rem; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }
td.long { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
th { border-bottom: 2px solid var(--ink); position: sticky; top: 0; background: #fff; }
.PASS, .FAIL, .MISSING { font-weight: 600; }
.PASS::before { content: "✓ "; } .FAIL::before { content: "✗ "; } .MISSING::before { content: "? "; }
.PASS { color: #00603c; } .FAIL { color: #a3001b; } .MISSING { color: var(--soft); }
.note, figcaption { color: var(--soft); font-size: .85rem; margin: .25rem 0; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
details { margin: .4rem 0; } summary { cursor: pointer; }
pre { font-size: .85rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  background: var(--band); padding: .5rem; }
@media print { body { max-width: none; font-size: 11px; padding: 0; }
  .scroll { overflow: visible; } th { position: static; } h2, h3 { break-after: avoid; }
  figure, tr { break-inside: avoid; } th, td { white-space: normal; padding: .15rem .3rem; } }
"""
META = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
FILES = (
    "Beside this page: results.csv (a row per run), groups.csv, wnf.csv (every number of every claim), report.md, "
    "plots/, and reproduce.sh, which makes it all again."
)
LONG = {"cause", "reason", "folder", "versions", "run"}


def page(
    *,
    boards: Sequence[Board],
    groups: Sequence[Group],
    found: Found,
    judge: Judge,
    references: Sequence[str],
    studies: Sequence[str],
    plots: dict[str, tuple[bytes, str]],
    rank_by: str,
    pretty_config: dict[str, Any],
) -> str:
    """The whole page as HTML text; everything that comes from a record is escaped, nothing is loaded from elsewhere."""
    names = ", ".join(board.name for board in boards) or "no fine-tuned runs yet"
    title = f"Attention mechanisms for text classification: {names}"
    parts = [f"<h1>{escape(title)}</h1>", *(f'<p class="study">{escape(study)}</p>' for study in studies)]
    for board in boards:
        parts += _board(board, judge, references, plots)
    shown = {name for board in boards for name in plots if name.endswith(f"-{board.slug}")}
    rest = [name for name in plots if name not in shown]
    if rest:
        parts += ["<h2>Pretraining</h2>", *(_figure(name, *plots[name]) for name in rest)]
    failed = compare.unfinished(found)
    parts.append("<h2>Runs that did not complete</h2>")
    parts += [_table(failed), _note("They are in no mean and in no ranking.")] if failed[1] else [_note("None.")]
    parts += ["<h2>All groups</h2>", _note(f"Mean ± standard deviation over seeds (best); ranked by {rank_by}.")]
    parts += [_table(_everything(groups, rank_by)), "<h2>Settings</h2>", *(_settings(group) for group in groups)]
    parts += ["<h2>Environment</h2>", _table(_environment(found.runs)), "<h2>Thresholds and files</h2>"]
    parts.append(f"<details><summary>conf/report.yaml as used</summary><pre>{_json(pretty_config)}</pre></details>")
    parts.append(_note(FILES))
    head = f"{META}<title>{escape(title)}</title><style>{STYLE}</style>"
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _board(board: Board, judge: Judge, references: Sequence[str], plots: dict[str, tuple[bytes, str]]) -> list[str]:
    """The section of one board: answer, comparison, claims, plots."""
    first = references[0]
    sentences = "".join(f"<li>{escape(line)}</li>" for line in compare.answer(board, judge, first))
    parts = [
        f"<h2>{escape(board.name)}</h2>",
        f'<ul class="answer">{sentences}</ul>',
        _table(compare.comparison(board, judge, first)),
    ]
    parts += [_note(note) for note in compare.footnotes(board, first)]
    parts += [_figure(name, *plots[name]) for name in plots if name.endswith(f"-{board.slug}")]
    parts += ["<h3>Claims</h3>", _note(compare.MEANING)]
    for reference in references:
        for split in ("validation", "test"):
            table = _table(compare.claims_table(board, judge, reference, split))
            opened = " open" if (reference, split) == (first, "validation") else ""
            name = f"Against {escape(reference)}, macro-F1 on {split}"
            parts.append(f"<details{opened}><summary>{name}</summary>{table}</details>")
    return parts


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _table(table: compare.Table) -> str:
    header, rows = table
    long = [name in LONG for name in header]
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = []
    for row in rows:
        cells = "".join(_cell(str(cell), wide) for cell, wide in zip(row, long))
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _cell(text: str, wide: bool) -> str:
    if text in (PASS, FAIL, MISSING):
        return f'<td><span class="{text}">{text}</span></td>'
    return f"<td{' class=long' if wide else ''}>{escape(text)}</td>"


def _figure(name: str, image: bytes, words: str) -> str:
    data = base64.b64encode(image).decode()
    caption = f"<figcaption>{escape(words)}</figcaption>"
    return (
        f'<figure id="{escape(name)}"><img alt="{escape(words)}" src="data:image/png;base64,{data}">{caption}</figure>'
    )


def _everything(groups: Sequence[Group], rank_by: str) -> compare.Table:
    """All groups with all measures that any of them has."""
    measures = [name for name in MEASURES if any(group.stat(name).n for group in groups)]
    order = {"finetune": 0, "baseline": 1, "pretrain": 2}
    rows = []
    for group in sorted(
        groups, key=lambda g: (order[g.record.mode], str(g.key.get("choice.dataset")), g.rank or 10**9, g.label, g.id)
    ):
        cells = [_stat(group, name) for name in measures]
        rows.append(
            [
                group.record.mode,
                group.label,
                str(group.rank or ""),
                str(len(group.runs)),
                str(len(group.others)),
                *cells,
            ]
        )
    return ["mode", "group", f"rank by {rank_by}", "n", "not completed", *measures], rows


def _stat(group: Group, name: str) -> str:
    stat = group.stat(name)
    if stat.mean is None:
        return compare.NONE
    form = (lambda value: f"{value:.4f}") if MEASURES[name].place.startswith("metrics") else compare.amount
    spread = f" ± {form(stat.sd)}" if stat.sd else ""
    return f"{form(stat.mean)}{spread}" + (f" ({form(stat.best)})" if stat.n > 1 and stat.best is not None else "")


def _settings(group: Group) -> str:
    """The configuration of a group, folded away: what all its runs share, and the run they started from."""
    record = group.record
    shared = {k: v for k, v in sorted(record.config.items()) if k not in ("seed", "exp", "sweep")}
    told = {
        "choices": record.choices,
        "config": shared,
        "data": record.data,
        "device": record.device,
        "params": record.params,
    }
    if record.pretrain is not None:
        told["pretrain"] = record.pretrain
    seeds = " ".join(map(str, group.seeds)) or "none"
    title = f"{record.mode}: {group.label} · seeds {seeds} · group {group.id}"
    return f"<details><summary>{escape(title)}</summary><pre>{_json(told)}</pre></details>"


def _environment(runs: Sequence[Run]) -> compare.Table:
    """Each environment that runs were made in, once, with the number of its runs."""
    counts: dict[tuple[str, ...], int] = {}
    for run in runs:
        record = run.record
        device = " ".join(str(record.device[k]) for k in ("name", "dtype") if record.device.get(k))
        versions = ", ".join(f"{name} {value}" for name, value in sorted(record.versions.items()) if value)
        place = (device or "unknown", versions or "unknown", record.commit or "unknown")
        counts[place] = counts.get(place, 0) + 1
    return ["runs", "device", "versions", "commit"], [[str(counts[place]), *place] for place in sorted(counts)]


def _json(value: Any) -> str:
    return escape(json.dumps(value, indent=1, ensure_ascii=False, default=str))
