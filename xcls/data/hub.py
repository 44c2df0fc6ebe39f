"""Data sets from the Hugging Face hub, and local folders that have the hub's layout."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Sequence

from xcls.config.schema import UserError
from xcls.data.class_folder import by_name
from xcls.data.readers import Table, read_table
from xcls.data.source import column


def hub_fingerprint(hub_id: str, revision: str | None) -> str:
    """Names a data set of the hub; only a `revision` pins its content for ever."""
    return f"hub:{hub_id}@{revision or 'main'}"


def load_hub(
    hub_id: str, revision: str | None, columns: Sequence[str], splits: Sequence[str], *, name: str
) -> dict[str, Table]:
    """The named splits of a hub data set, from its local cache where it is there, else by download.

    Left to itself the hub's client retries for about half a minute when there is no network, so a quick look comes
    first and offline mode follows from it. HF_HUB_OFFLINE, if set, is obeyed. Raises UserError with the ways to get
    the data.
    """
    if "HF_HUB_OFFLINE" not in os.environ and not _hub_answers():
        _go_offline()
    from datasets import DatasetDict, load_dataset

    try:
        found = load_dataset(hub_id, revision=revision)
    except (ConnectionError, FileNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"dataset={name}: {hub_id} is neither in the local cache nor to be had from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0][:160]}). Give a local copy with "
            f"dataset.path=<folder> or in $XCLS_DATA/{name}/, or run once where there is a network."
        ) from error
    if not isinstance(found, DatasetDict):
        raise UserError(f"dataset={name}: {hub_id} has no splits; {', '.join(splits)} are needed.")
    tables = {}
    for split in splits:
        if split not in found:
            raise UserError(f"dataset={name}: {hub_id} has no split '{split}', only {', '.join(found)}.")
        for wanted in columns:
            if wanted not in found[split].column_names:
                raise UserError(
                    f"dataset={name}: {hub_id} has no column '{wanted}', only "
                    f"{', '.join(found[split].column_names)}. Set dataset.text and dataset.label."
                )
        rows = found[split]
        tables[split] = Table(
            {wanted: column(rows, wanted) for wanted in columns}, [f"row {n}" for n in range(1, len(rows) + 1)]
        )
    return tables


def _hub_answers(seconds: float = 4.0) -> bool:
    """Whether the hub can be reached (through a proxy, if one is set); any answer will do."""
    request = urllib.request.Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=seconds).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _go_offline() -> None:
    """Sets offline mode, also for libraries that have read their settings already."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    import huggingface_hub.constants

    datasets.config.HF_HUB_OFFLINE = True
    huggingface_hub.constants.HF_HUB_OFFLINE = True


def parquet_files(folder: Path, splits: Sequence[str]) -> dict[str, list[Path]]:
    """The parquet files of each split (`train.parquet`, `train-00000-of-00002.parquet`, …) in `folder` or up to two below."""
    files = by_name(folder, (file for depth in ("", "*/", "*/*/") for file in folder.glob(depth + "*.parquet")))
    return {split: [file for file in files if file.stem.split("-")[0] == split] for split in splits}


def read_shards(files: Sequence[Path], columns: Sequence[str]) -> Table:
    """Several files as one table; rows are named by file and row. Raises UserError."""
    whole = Table({name: [] for name in columns}, [])
    for file in files:
        part = read_table(file, columns)
        for name in columns:
            whole.columns[name] += part.columns[name]
        whole.places += [f"{file.name} {place}" for place in part.places]
        whole.notes += part.notes
    return whole


def coded_labels(values: Sequence[object], count: int, *, where: str, places: Sequence[str]) -> list[int | None]:
    """Labels that are class numbers 0 … count-1 already; None and -1 stand for missing. Raises UserError for others."""
    found: list[int | None] = []
    for value, place in zip(values, places):
        if value is None or value == -1:
            found.append(None)
        elif isinstance(value, int) and 0 <= value < count:
            found.append(value)
        else:
            raise UserError(
                f"{where}, {place}: the label {value!r} is no number from 0 to {count - 1}. For labels of your "
                "own use dataset=files."
            )
    return found
