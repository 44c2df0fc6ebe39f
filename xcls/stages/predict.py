"""mode=predict: classes and probabilities for a file of documents, in its order."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np

from xcls.config.schema import Hardware, UserError
from xcls.data.batching import ClassBatches
from xcls.data.encode import encode
from xcls.data.reading import Reading, read_documents
from xcls.data.tokenizer import from_json
from xcls.model.heads import TextClassifier
from xcls.runs.paths import is_stream
from xcls.runs.record import no_formula
from xcls.stages.predictions import probability_columns
from xcls.train.amp import Amp
from xcls.train.checkpoint import write_bytes
from xcls.train.metrics import softmax
from xcls.train.precision import Precision
from xcls.train.scoring import classify
from xcls.train.stream import width_multiple

Columns = dict[str, list[Any]]  # of equal length, None where there is nothing


def check_output(source: str | Path, output: str | Path) -> None:
    """Refuses an output that cannot be written, or that would replace the input. Raises UserError."""
    if is_stream(output):
        return
    path = Path(output)
    if path.suffix.lower() not in WRITERS:
        raise UserError(
            f"output={output}: the name of a file is needed that ends in {', '.join(WRITERS)}, or - for standard output."
        )
    if not path.absolute().parent.is_dir():
        raise UserError(f"output={output}: the folder {path.absolute().parent} is not there. Make it first.")
    if path.is_dir() or (path.exists() and Path(source).exists() and path.samefile(source)):
        raise UserError(f"output={output}: this is a folder or the input itself. Choose another name.")


def predict(
    *,
    model: TextClassifier,
    checkpoint: dict[str, Any],
    source: str | Path,
    output: str | Path,
    reading: Reading,
    table: bool = False,
    seq_len: int,
    truncate: str,
    eval_batch_size: int,
    hardware: Hardware,
    precision: Precision,
) -> int:
    """Writes `output`: row (its place in `source`), id (where the rows have names), prediction, p_<class>. Gives the number of
    documents. One without any text gets neither class nor probabilities, and a warning counts them.

    `checkpoint` is that of a fine-tuned run; tokenizer and classes come from it. `table`: see `read_documents`. Raises
    UserError for bad input.
    """
    check_output(source, output)
    found = read_documents(source, reading, table=table)
    whole = np.array([bool(text.strip()) for text in found.texts])
    places = [place for place, full in zip(found.places, whole) if full]
    encoded = encode(
        [text for text, full in zip(found.texts, whole) if full],
        from_json(checkpoint["tokenizer"]),
        seq_len=seq_len,
        truncate=truncate,
        what=str(source),
        places=places,
    )
    notes = found.notes + (encoded.warnings(str(source), seq_len=seq_len, finished=True) if places else [])
    if not whole.all():
        notes.append(
            f"{source}: {(~whole).sum()} of {len(whole)} documents are empty (the first is "
            f"{found.places[int(np.argmin(whole))]}); they get no class."
        )
    if found.format:
        print(found.format, file=sys.stderr)
    for message in notes:
        print(f"WARNING: {message}", file=sys.stderr)
    columns: Columns = {"row": found.places, **({} if found.ids is None else {"id": found.ids})}
    columns.update(
        _predicted(
            model,
            checkpoint,
            encoded,
            whole,
            batch_size=eval_batch_size,
            multiple=width_multiple(seq_len),
            amp=Amp(precision=precision, hardware=hardware),
        )
    )
    write_output(output, columns)
    return len(whole)


def _predicted(
    model: TextClassifier,
    checkpoint: dict[str, Any],
    encoded: Any,
    whole: np.ndarray,
    *,
    batch_size: int,
    multiple: int,
    amp: Amp,
) -> Columns:
    """The columns prediction and p_<class> for the rows, bool [R] `whole` of which have the texts in `encoded`."""
    classes = checkpoint["classes"]
    model.to(amp.device)
    model.load_state_dict(checkpoint["model"])
    columns: Columns = {
        name: [None] * len(whole) for name in ("prediction", *probability_columns(np.empty((0, len(classes))), classes))
    }
    if whole.any():
        maker = ClassBatches(encoded=encoded, labels=np.zeros(len(encoded), np.int64), multiple=multiple)
        probabilities = softmax(classify(model, maker, encoded.lengths, batch_size=batch_size, amp=amp).logits)
        made = {
            "prediction": np.asarray(classes, dtype=object)[probabilities.argmax(axis=1)],
            **probability_columns(probabilities, classes),
        }
        for name, values in made.items():
            for row, value in zip(np.flatnonzero(whole).tolist(), values.tolist()):
                columns[name][row] = value
    return columns


def write_output(output: str | Path, columns: Columns) -> None:
    """Writes the columns in the format that the suffix of `output` names, whole or not at all; to a stream as CSV."""
    if str(output) in ("-", "/dev/stdout"):
        sys.stdout.flush()  # what is in its own buffer comes first
        if hasattr(sys.stdout, "buffer"):
            sys.stdout.buffer.write(_csv(columns))
        else:  # a notebook
            sys.stdout.write(_csv(columns).decode())
        sys.stdout.flush()
    elif is_stream(output):
        Path(output).write_bytes(_csv(columns))
    else:
        write_bytes(Path(output), WRITERS[Path(output).suffix.lower()](columns))


def _csv(columns: Columns) -> bytes:
    """CSV; a text that a spreadsheet would run has an apostrophe before it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([no_formula(name) for name in columns])
    writer.writerows(
        [no_formula(value) if isinstance(value, str) else value for value in row] for row in zip(*columns.values())
    )
    return out.getvalue().encode("utf-8", "replace")


def _jsonl(columns: Columns) -> bytes:
    """An object a line."""
    lines = (
        json.dumps(dict(zip(columns, row)), ensure_ascii=False, default=str) + "\n" for row in zip(*columns.values())
    )
    return "".join(lines).encode("utf-8", "replace")


def _parquet(columns: Columns) -> bytes:
    """Parquet; ids of several types are texts."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    ids = columns.get("id", ())
    if len({type(value) for value in ids if value is not None}) > 1:
        columns = {**columns, "id": [None if value is None else str(value) for value in ids]}
    kinds = {"prediction": pa.string(), **{name: pa.float64() for name in columns if name.startswith("p_")}}
    out = io.BytesIO()
    parquet.write_table(pa.table({name: pa.array(values, kinds.get(name)) for name, values in columns.items()}), out)
    return out.getvalue()


WRITERS: dict[str, Callable[[Columns], bytes]] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
