"""mode=predict: classes and probabilities for the documents of a file, in the order of the file."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Callable

import numpy as np
import pandas as pd

from xcls.config.schema import UserError
from xcls.data.encode import Encoded, encode
from xcls.data.reading import Documents, read_documents
from xcls.data.tokenizer import TextTokenizer, from_json
from xcls.runs.folder import changed_code, read_or_refuse
from xcls.runs.paths import at, is_stream
from xcls.runs.record import no_formula
from xcls.stages.predictions import probabilities_of, probability_columns
from xcls.stages.spec import RunSpec
from xcls.train.checkpoint import load_for_use, write_bytes


def predict(spec: RunSpec) -> int:
    """Writes `output` with the columns row (place in `input`), id (if the rows have ids), prediction, p_<class>.

    Returns the exit code. Documents without text get no class and no probabilities; a warning gives their number.
    Tokenizer and classes come from the checkpoint of the run in `spec.parent`. Raises UserError for bad input.
    """
    folder, config = spec.parent, spec.config
    assert folder is not None
    if not config.input:
        raise UserError(
            "input: name the file with the documents: input=reviews.txt (one per line), .csv, .jsonl, or -."
        )
    source = at(config.input)
    default = Path("-") if is_stream(source) else source.parent / f"{source.stem}.predictions.csv"
    output = at(config.output) if config.output else default
    _check_output(source, output)
    for message in _doubts(spec, folder):
        print(f"WARNING: {message}", file=sys.stderr)
    checkpoint = load_for_use(folder, config.checkpoint)
    tokenizer = from_json(checkpoint["tokenizer"])
    documents = read_documents(source, spec.build.make_reading(config), table=config.text is not None)
    whole = np.array([bool(text.strip()) for text in documents.texts])
    encoded, notes = _encoded(spec, source, documents, whole, tokenizer)
    if documents.format:
        print(documents.format, file=sys.stderr)
    for message in notes:
        print(f"WARNING: {message}", file=sys.stderr)
    table = pd.DataFrame(
        {"row": documents.places, **({} if documents.ids is None else {"id": documents.ids})}, dtype=object
    )
    classes, found = checkpoint["classes"], np.empty((0, len(checkpoint["classes"])))
    if whole.any():
        found = probabilities_of(spec, checkpoint, encoded, vocab_size=tokenizer.vocab_size)
    said = pd.array(np.asarray(classes, dtype=object)[found.argmax(axis=1)], dtype="string")
    columns = {"prediction": said, **probability_columns(found, classes)}
    _write(output, table.join(pd.DataFrame(columns, index=np.flatnonzero(whole))))
    print(f"{len(whole)} documents: {output}", file=sys.stderr if is_stream(output) else sys.stdout)
    return 0


def _check_output(source: Path, output: Path) -> None:
    """Refuses an output that cannot be written, or that would replace the input. Raises UserError."""
    if is_stream(output):
        return
    if output.suffix.lower() not in WRITERS:
        raise UserError(f"output={output}: name a file that ends in {', '.join(WRITERS)}, or - for standard output.")
    if not output.absolute().parent.is_dir():
        raise UserError(f"output={output}: the folder {output.absolute().parent} does not exist. Make it first.")
    if output.is_dir() or (output.exists() and source.exists() and output.samefile(source)):
        raise UserError(f"output={output}: this is a folder or the input itself. Choose another name.")


def _doubts(spec: RunSpec, folder: Path) -> list[str]:
    """Reasons to doubt the predictions of the run in `folder`, as warnings."""
    record, found = read_or_refuse(folder), []
    if record.status != "completed":
        found.append(f"{folder} is {record.status} at step {record.step}: its training is not complete.")
    changed = changed_code(record, spec.code)
    if changed:
        found.append(f"The code of {changed} has changed since {folder} was trained.")
    return found


def _encoded(
    spec: RunSpec, source: Path, documents: Documents, whole: np.ndarray, tokenizer: TextTokenizer
) -> tuple[Encoded, list[str]]:
    """The token ids of the documents that `whole`, bool [R], marks as having text, and warnings. Raises UserError."""
    name, seq_len = str(source), spec.config.seq_len
    places = [place for place, full in zip(documents.places, whole) if full]
    texts = [text for text, full in zip(documents.texts, whole) if full]
    truncate = spec.config.dataset.truncate
    encoded = encode(texts, tokenizer, seq_len=seq_len, truncate=truncate, what=name, places=places)
    notes = documents.notes + (encoded.warnings(name, seq_len=seq_len, finished=True) if places else [])
    if not whole.all():
        first = documents.places[int(np.argmin(whole))]
        count = f"{(~whole).sum()} of {len(whole)}"
        notes.append(f"{source}: {count} documents are empty (the first is {first}); they get no class.")
    return encoded, notes


def _write(output: Path, table: pd.DataFrame) -> None:
    """Writes the table in the format of the suffix of `output`, completely or not at all; to a stream as CSV."""
    if str(output) in ("-", "/dev/stdout"):
        sys.stdout.flush()  # text that is still in its buffer comes first
        if hasattr(sys.stdout, "buffer"):
            sys.stdout.buffer.write(_csv(table))
        else:  # a notebook
            sys.stdout.write(_csv(table).decode())
        sys.stdout.flush()
    elif is_stream(output):
        output.write_bytes(_csv(table))
    else:
        write_bytes(output, WRITERS[output.suffix.lower()](table))


def _csv(table: pd.DataFrame) -> bytes:
    """CSV; a text that a spreadsheet would run as a formula gets an apostrophe in front."""
    safe = table.map(lambda value: no_formula(value) if isinstance(value, str) else value).rename(columns=no_formula)
    return safe.to_csv(index=False, lineterminator="\n").encode("utf-8", "replace")


def _jsonl(table: pd.DataFrame) -> bytes:
    """One JSON object per line."""
    return table.to_json(orient="records", lines=True, force_ascii=False, double_precision=15).encode(
        "utf-8", "replace"
    )


def _parquet(table: pd.DataFrame) -> bytes:
    """Parquet; ids of mixed types become texts."""
    if "id" in table and table["id"].dropna().map(type).nunique() > 1:
        table = table.assign(id=table["id"].map(str, na_action="ignore"))
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


WRITERS: dict[str, Callable[[pd.DataFrame], bytes]] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
