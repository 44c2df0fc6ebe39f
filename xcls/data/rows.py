"""Documents of a split: columns of an Arrow table, in memory or in a file that is read a batch at a time.

Of a file, only one batch of texts and ids is in memory at a time. In addition a row needs 8 bytes for its label, 8 for
its place if rows were selected, and 16 for its key while splits are made.
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


class ArrowFile(Sequence[Any]):
    """The batches of an Arrow file, one of them in memory at a time."""

    def __init__(self, file: Path) -> None:
        self.file, self.reader, self.last = file, None, (-1, None)

    def __len__(self) -> int:
        return self._open().num_record_batches

    def __getitem__(self, number: Any) -> pa.RecordBatch:
        """Batch `number`."""
        if self.last[0] != number:
            self.last = (number, self._open().get_batch(number))
        return self.last[1]

    def _open(self) -> Any:
        import pyarrow as pa

        self.reader = self.reader or pa.ipc.open_file(pa.OSFile(str(self.file)))
        return self.reader


class Column(Sequence[Any]):
    """One column of some rows: a sequence whose values are read when needed."""

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
    """Rows of a split, with the Columns `text` (str or None), `label` (int or None) and `id` (str)."""

    def __init__(
        self,
        batches: Sequence[pa.RecordBatch],
        starts: np.ndarray,
        labels: np.ndarray,
        keys: np.ndarray,
        picked: np.ndarray | None = None,
    ) -> None:
        """batches: `text` and `id` of all rows; starts: the first row of each batch; labels: int64 of all rows, MISSING
        where there is none; keys: see `keys`, of all rows; picked: int64 [R], which of all rows these are, None for
        all."""
        self.batches, self.starts, self._labels, self._keys, self.picked = batches, starts, labels, keys, picked

    def __len__(self) -> int:
        return len(self._labels) if self.picked is None else len(self.picked)

    def __getitem__(self, name: str) -> Column:
        if name not in NAMES:
            raise KeyError(name)
        return Column(self, name)

    @property
    def labels(self) -> np.ndarray:
        """int64 [R]; MISSING where there is none."""
        return self._labels if self.picked is None else self._labels[self.picked]

    def keys(self) -> np.ndarray:
        """The `text_key` of each text (that of "" where there is none), equal for equal texts: uint64 [R, 2]."""
        return np.asarray(self._keys if self.picked is None else self._keys[self.picked])

    def select(self, rows: Sequence[int] | np.ndarray) -> Rows:
        """The rows at these places, in this order, or those where bool [R] is True."""
        chosen = np.asarray(rows)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        picked = chosen if self.picked is None else self.picked[chosen]
        return Rows(self.batches, self.starts, self._labels, self._keys, picked)

    def values(self, name: str, places: np.ndarray) -> list[Any]:
        """The values of a column in the rows int64 [M] `places`; fastest if these ascend."""
        places = places if self.picked is None else self.picked[places]
        if name == "label":
            return [None if label == MISSING else label for label in self._labels[places].tolist()]
        import pyarrow as pa

        found: list[Any] = []
        batches = np.searchsorted(self.starts, places, side="right") - 1
        for part in np.split(np.arange(len(places)), np.flatnonzero(np.diff(batches)) + 1) if len(places) else ():
            number = int(batches[part[0]])
            within = pa.array(places[part] - int(self.starts[number]))
            found += self.batches[number].column(name).take(within).to_pylist()
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


class RowWriter:
    """Collects rows piece by piece, in memory or in a new `folder`; `rows` returns them."""

    def __init__(self, folder: Path | None = None) -> None:
        import pyarrow as pa

        self.schema = pa.schema([("text", pa.large_string()), ("id", pa.string())])
        self.folder, self.lengths = folder, [0]
        self.batches: list[pa.RecordBatch] = []
        self.labels, self.keys = [np.empty(0, np.int64)], [np.empty((0, 2), np.uint64)]
        if folder is not None:
            folder.mkdir(parents=True)
            self.writer = pa.ipc.new_file(str(folder / "rows.arrow"), self.schema)

    def add(self, *, text: Sequence[str | None], label: Sequence[int | None], id: Sequence[str]) -> None:
        """Adds a batch of rows. Texts must be encodable as UTF-8 (see `source.writable`)."""
        import pyarrow as pa

        arrays = [pa.array(values, field.type) for values, field in zip((text, id), self.schema)]
        batch = pa.record_batch(arrays, schema=self.schema)
        if self.folder is None:
            self.batches.append(batch)
        else:
            self.writer.write_batch(batch)
        self.lengths.append(len(text))
        self.labels.append(np.array([MISSING if value is None else value for value in label], np.int64))
        self.keys.append(as_keys([text_key(value or "") for value in text]))

    def rows(self, ids: np.ndarray | None = None) -> Rows:
        """All rows. ids: int64 [C]; if given, label i is replaced by ids[i]."""
        labels, keys, starts = np.concatenate(self.labels), np.concatenate(self.keys), np.cumsum(self.lengths)
        if ids is not None:
            labels = np.append(ids, MISSING)[labels]  # MISSING = -1 takes the last entry
        if self.folder is None:
            return Rows(self.batches, starts, labels, keys)
        self.writer.close()
        for name, array in (("starts", starts), ("labels", labels), ("keys", keys)):
            np.save(self.folder / f"{name}.npy", array)
        return read_rows(self.folder)


def read_rows(folder: Path) -> Rows:
    """The rows that a `RowWriter` wrote into `folder`."""
    starts, labels = np.load(folder / "starts.npy"), np.load(folder / "labels.npy")
    return Rows(ArrowFile(folder / "rows.arrow"), starts, labels, np.load(folder / "keys.npy", mmap_mode="r"))


def make_rows(
    *, text: Sequence[str | None], label: Sequence[int | None], id: Sequence[str], folder: Path | None = None
) -> Rows:
    """A split from its columns, held in memory or written into a new `folder`."""
    writer = RowWriter(folder)
    for start in range(0, len(text), BATCH):
        piece = slice(start, start + BATCH)
        writer.add(text=text[piece], label=label[piece], id=id[piece])
    return writer.rows()
