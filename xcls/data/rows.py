"""Documents of a split: columns of an Arrow table, in memory or in a file that is read a batch at a time.

However many rows a file holds, its texts and ids lie in memory a batch at a time. A row costs its label (8 bytes), its
place where rows were picked (8), and while splits are made its key (16).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Sequence

import numpy as np

from xcls.data.stratify import as_keys, text_key

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1000  # rows that are read at once, at most
MISSING = -1  # the label of a row that has none
NAMES = ("text", "label", "id")


class Memory:
    """The columns `text` and `id` of a table in memory."""

    def __init__(self, table: pa.Table) -> None:
        self.batches = table.to_batches(max_chunksize=BATCH)
        self.starts = np.cumsum([0, *(len(batch) for batch in self.batches)])

    def array(self, name: str, number: int) -> pa.Array:
        """One column of batch `number`."""
        return self.batches[number].column(name)


class File:
    """The same in a file that `RowWriter` has made: one batch of each column lies in memory at a time."""

    def __init__(self, folder: Path) -> None:
        self.file = str(folder / "rows.arrow")
        self.starts = np.load(folder / "starts.npy")
        self.readers: dict[str, Any] = {}
        self.last: dict[str, tuple[int, Any]] = {}

    def array(self, name: str, number: int) -> pa.Array:
        """One column of batch `number`."""
        import pyarrow as pa

        if name not in self.readers:
            only = pa.ipc.IpcReadOptions(included_fields=[("text", "id").index(name)])
            self.readers[name] = pa.ipc.open_file(pa.OSFile(self.file), options=only)
        if self.last.get(name, (None,))[0] != number:
            self.last[name] = (number, self.readers[name].get_batch(number).column(0))
        return self.last[name][1]


class Column(Sequence[Any]):
    """One column of some rows: a sequence that is read as it is walked over."""

    def __init__(self, rows: Rows, name: str) -> None:
        self.rows, self.name = rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Any) -> Any:
        """The value of one row, or for a slice a list of them."""
        if isinstance(which, slice):
            return self.rows.values(self.name, np.arange(*which.indices(len(self))))
        return self.rows.values(self.name, np.array([range(len(self))[which]]))[0]

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), BATCH):
            yield from self.rows.values(self.name, np.arange(start, min(start + BATCH, len(self))))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


class Rows:
    """Rows of a split, with the columns `text` (str or None), `label` (int or None) and `id` (str).

    `rows["text"]` is a Column, `rows[7]` a row, `rows[:7]` a dict of lists.
    """

    column_names = list(NAMES)

    def __init__(
        self,
        store: Memory | File,
        labels: np.ndarray,
        *,
        picked: np.ndarray | None = None,
        keys: np.ndarray | None = None,
    ) -> None:
        """store: all rows; labels: int64 of all, MISSING where there is none; picked: int64 [R], the places in them of
        these rows, None for all; keys: see `keys`, of all."""
        self.store, self._labels, self.picked, self._keys = store, labels, picked, keys

    def __len__(self) -> int:
        return int(self.store.starts[-1]) if self.picked is None else len(self.picked)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, str):
            if which not in NAMES:
                raise KeyError(which)
            return Column(self, which)
        if isinstance(which, slice):
            return {name: self[name][which] for name in NAMES}
        return {name: self[name][which] for name in NAMES}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), BATCH):
            part = self[start : start + BATCH]
            yield from ({name: part[name][row] for name in NAMES} for row in range(len(part["id"])))

    @property
    def labels(self) -> np.ndarray:
        """int64 [R]; MISSING where there is none."""
        return self._labels if self.picked is None else self._labels[self.picked]

    def keys(self) -> np.ndarray:
        """What makes texts the same (`text_key`, that of "" where there is none): uint64 [R, 2]."""
        if self._keys is None:
            return as_keys([text_key(text or "") for text in self["text"]])
        return np.asarray(self._keys if self.picked is None else self._keys[self.picked])

    def select(self, rows: Sequence[int] | np.ndarray) -> Rows:
        """The rows at these places, in this order."""
        rows = np.asarray(rows, np.int64)
        picked = rows if self.picked is None else self.picked[rows]
        return Rows(self.store, self._labels, picked=picked, keys=self._keys)

    def values(self, name: str, places: np.ndarray) -> list[Any]:
        """The values of a column in the rows at int64 [M] `places`, quickest where these ascend."""
        places = places if self.picked is None else self.picked[places]
        if name == "label":
            return [None if label == MISSING else label for label in self._labels[places].tolist()]
        import pyarrow as pa

        found: list[Any] = []
        batches = np.searchsorted(self.store.starts, places, side="right") - 1
        for part in np.split(np.arange(len(places)), np.flatnonzero(np.diff(batches)) + 1) if len(places) else ():
            number = int(batches[part[0]])
            within = places[part] - int(self.store.starts[number])
            found += self.store.array(name, number).take(pa.array(within)).to_pylist()
        return found


class Texts(Sequence[str]):
    """Columns one after the other, as one sequence."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = list(columns)
        self.starts = np.cumsum([0, *map(len, self.columns)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, which: Any) -> Any:
        """The text at a place, or for a slice (of step 1) a list of them."""
        if isinstance(which, slice):
            first, last, _ = which.indices(len(self))
            parts = zip(self.columns, self.starts)
            return [text for column, start in parts for text in column[max(first - start, 0) : max(last - start, 0)]]
        place = range(len(self))[which]
        return self[place : place + 1][0]

    def __iter__(self) -> Iterator[str]:
        for column in self.columns:
            yield from column


class RowCollector:
    """Takes rows piece by piece and keeps them in memory; `rows` gives them."""

    def __init__(self) -> None:
        import pyarrow as pa

        self.schema = pa.schema([("text", pa.large_string()), ("id", pa.string())])
        self.lengths = [0]
        self.batches: list[pa.RecordBatch] = []
        self.labels: list[np.ndarray] = []
        self.keys: list[np.ndarray] = []

    def add(self, *, text: Sequence[str | None], label: Sequence[int | None], id: Sequence[str]) -> None:
        """Adds rows, a batch. Texts must be such as UTF-8 can hold."""
        import pyarrow as pa

        arrays = [pa.array(values, field.type) for values, field in zip((text, id), self.schema)]
        self.keep(pa.record_batch(arrays, schema=self.schema))
        self.lengths.append(len(text))
        self.labels.append(np.array([MISSING if value is None else value for value in label], np.int64))
        self.keys.append(as_keys([text_key(value or "") for value in text]))

    def keep(self, batch: pa.RecordBatch) -> None:
        """Puts a batch where it stays."""
        self.batches.append(batch)

    def rows(self, ids: np.ndarray | None = None) -> Rows:
        """All of them. ids: int64 [C], by which the labels are replaced."""
        import pyarrow as pa

        labels, keys = self._columns(ids)
        return Rows(Memory(pa.Table.from_batches(self.batches, self.schema)), labels, keys=keys)

    def _columns(self, ids: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        labels = np.concatenate([np.empty(0, np.int64), *self.labels])
        if ids is not None:
            labels = np.append(ids, MISSING)[labels]  # MISSING is the last
        return labels, np.concatenate([np.empty((0, 2), np.uint64), *self.keys])


class RowWriter(RowCollector):
    """The same in a new folder, with a batch in memory at a time."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        super().__init__()
        folder.mkdir(parents=True)
        self.folder = folder
        self.sink = pa.OSFile(str(folder / "rows.arrow"), "wb")
        self.writer = pa.ipc.new_file(self.sink, self.schema)

    def keep(self, batch: pa.RecordBatch) -> None:
        """Writes the batch."""
        self.writer.write_batch(batch)

    def rows(self, ids: np.ndarray | None = None) -> Rows:
        """Ends the files and reads them."""
        self.writer.close()
        self.sink.close()
        labels, keys = self._columns(ids)
        np.save(self.folder / "starts.npy", np.cumsum(self.lengths))
        np.save(self.folder / "labels.npy", labels)
        np.save(self.folder / "keys.npy", keys)
        return read_rows(self.folder)


def read_rows(folder: Path) -> Rows:
    """The rows that a `RowWriter` wrote into `folder`."""
    return Rows(File(folder), np.load(folder / "labels.npy"), keys=np.load(folder / "keys.npy", mmap_mode="r"))


def rows_of(table: Any) -> Rows:
    """Rows of what has the columns text, label and id: Rows as they are, a pyarrow Table, a data set of `datasets`."""
    if isinstance(table, Rows):
        return table
    if hasattr(table, "with_format"):  # of `datasets`
        table = table.with_format("arrow")[:]
    labels = table.column("label").fill_null(MISSING).to_numpy().astype(np.int64)
    return Rows(Memory(table.select(["text", "id"])), labels)
