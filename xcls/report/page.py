"""The page: one self-contained HTML file, made from page.html.j2, page.css and page.js."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Sequence

import jinja2
import pandas as pd
from markupsafe import Markup

from xcls.config.schema import flatten
from xcls.report import bench
from xcls.report.bench import Crossover
from xcls.report.claims import FAIL, MISSING, PASS, UNDECIDED, Study
from xcls.report.groups import DatasetResults, Group
from xcls.report.load import Run
from xcls.report.measures import cut_note
from xcls.report.plots import DPI, Plot
from xcls.report.references import SPLITS
from xcls.report.summary import SIGNS, headline, matrix
from xcls.report.table import Table
from xcls.report.tables import comparison, unfinished

CLASSES = {PASS: PASS, FAIL: FAIL, **dict.fromkeys((MISSING, UNDECIDED, "cannot tell"), MISSING)}  # words with a sign
# Control characters, which hide text or reverse its direction, become visible.
CONTROL_CHARACTERS = dict.fromkeys(
    {*range(32), 127, 0x202A, 0x202B, 0x202D, 0x202E} - {9, 10, 13}, "\N{REPLACEMENT CHARACTER}"
)
PER_RUN = ("seed", "exp", "sweep", "pretrain")  # these differ between the runs of one group
FACTS = ("data.", "params.", "versions.")  # parts of the record that are not settings
HERE = Path(__file__).parent


def page(
    study: Study,
    tables: Sequence[Table],
    *,
    plots: Sequence[Plot],
    notes: Sequence[str],
    crossings: Sequence[Crossover],
    best: Sequence[tuple[str, str]],
    used: dict[str, Any],
) -> str:
    """The whole page as HTML; all text from records is escaped, and nothing is loaded from other files.

    used: the settings of the report (conf/report.yaml with overrides).
    """
    style, script = (Markup((HERE / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    apart = [_plot(plot) for plot in plots if plot.dataset is None]
    names = ", ".join(results.name for results in study.datasets) or "no fine-tuned runs yet"
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, finalize=visible, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html.j2")
    return template.render(
        title=f"Attention mechanisms for text classification: {names}",
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        style=style,
        script=script,
        classes=CLASSES,
        signs=SIGNS,
        studies=study.names,
        datasets=[_dataset(results, study, tables, plots) for results in study.datasets],
        pretraining=[plot for plot in apart if plot["name"] == "pretraining"],
        benches=[plot for plot in apart if plot["name"] != "pretraining"],
        crossings=[{"view": bench.table(one), "notes": bench.remarks(one)} for one in crossings],
        measured_apart=bool(study.benches) or not study.datasets,
        unfinished=unfinished(study.found),
        settings=_settings(study.groups),
        environment=_environment(study.found.runs),
        used=json.dumps(used, indent=1, ensure_ascii=False, default=str),
        best=best,
        notes=notes,
        found=study.found,
    )


def visible(value: Any) -> Any:
    """Text with control characters made visible; markup and other values unchanged."""
    return value.translate(CONTROL_CHARACTERS) if type(value) is str else value


def _dataset(results: DatasetResults, study: Study, tables: Sequence[Table], plots: Sequence[Plot]) -> dict[str, Any]:
    """What the template needs of one data set: headline, matrix, plots, table of groups, and the folded tables."""
    first, rules = study.references[0], [study.thresholds(group)[0] for group in results.groups if group.runs]
    rules = rules or [study.settings.claims]
    conditions = sorted({f"over at least {rule.min_seeds} seeds, at {rule.seq_len} tokens" for rule in rules})
    folded = []
    for table in tables[2:]:  # results.csv is not on the page, and the groups are above
        whole = {"dataset": results.name}
        cut = [{**whole, "reference": name, "split": split} for name in study.references for split in SPLITS]
        for where in cut if table.name == "wnf" else [whole]:
            about = f" against {where['reference']}, macro-F1 on {where['split']}" if "split" in where else ""
            part = replace(table.where(where), title=f"{table.title}{about}.")
            prints = (where.get("reference"), where.get("split")) == (first, "validation")
            folded += [(table.title + about, part, prints)] if part.rows else []
    return {
        "name": results.name,
        "headline": headline(results, study),
        "matrix": matrix(results, study),
        "rule": f"Claims against {first} on validation, {' or '.join(conditions)}.",
        "plots": [_plot(plot) for plot in plots if plot.dataset == results.slug],
        "groups": comparison(results, study),
        "cut": cut_note(run.record for group in results.groups for run in group.runs),
        "tables": folded,
    }


def _plot(plot: Plot) -> dict[str, Any]:
    header = plot.image[16:20], plot.image[20:24]  # of the PNG: width and height
    width, height = (round(int.from_bytes(size, "big") * 96 / DPI) for size in header)
    data = base64.b64encode(plot.image).decode()
    return {**vars(plot), "width": width, "height": height, "data": data}


def _settings(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """For each mode: a table of the settings that differ between groups, and the list of those that all share."""
    parts = []
    for mode in ("finetune", "pretrain", "baseline"):
        alike = [group for group in groups if group.record.mode == mode]
        if not alike:
            continue
        frame = pd.DataFrame({group.label: pd.Series(flat_of(group), dtype=object) for group in alike})
        frame = frame.loc[sorted(frame.index, key=lambda name: (not name.startswith("choices."), name))]
        same = frame.nunique(axis=1, dropna=False) == 1
        differ = frame[~same & ~frame.index.str.startswith(FACTS)].T
        cells = differ.astype(object).where(differ.notna(), None).rename_axis("group").reset_index().to_dict("records")
        table = Table("results", "Every setting that is not the same in all groups.", cells)
        shared = list(frame[same].iloc[:, 0].items())
        parts.append({"mode": mode, "differ": table if len(alike) > 1 else None, "shared": shared})
    return parts


def flat_of(group: Group) -> dict[str, str]:
    """The whole configuration of a group, flat, as text: choices, config, code, data, device, versions."""
    record = group.record
    nodes = {
        name: getattr(record, name) for name in ("choices", "code", "data", "device", "params", "versions", "pretrain")
    }
    flat = {name: value for name, value in record.config.items() if name not in PER_RUN} | flatten(nodes)
    return {
        name: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str) for name, v in flat.items()
    }


def _environment(runs: Sequence[Run]) -> Table:
    """Each environment (device, dtype, threads, versions, commit) with the number of its runs."""
    records = [run.record for run in runs]
    names = ("name", "dtype", "threads")
    places = [{**{n: r.device.get(n) for n in names}, **r.versions, "commit": r.commit} for r in records]
    counts = pd.DataFrame(places).astype(str).value_counts().sort_index().reset_index(name="runs")
    title = "Where the runs were made. Costs can be compared on one device only."
    return Table("results", title, counts.to_dict("records"))
