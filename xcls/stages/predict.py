"""mode=predict: classes and probabilities for a file of documents, in its order."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xcls.data.batching import ClassBatches
from xcls.data.encode import encode
from xcls.data.readers import kind_of, read_table, text_column
from xcls.data.text_file import text_lines
from xcls.data.tokenizer import from_json
from xcls.model.heads import TextClassifier
from xcls.record import write_atomic
from xcls.schema import Hardware, UserError
from xcls.stages.predictions import probability_columns
from xcls.train.amp import Amp
from xcls.train.metrics import softmax
from xcls.train.precision import Precision
from xcls.train.scoring import classify
from xcls.train.stream import width_multiple


def documents(source: Path, text: list[str]) -> tuple[list[str], list[str]]:
    """The documents of a .txt (one a line), .csv, .tsv or .jsonl file (columns `text`), and their places (`line 7`).

    Nothing is left out: an empty document is one. Raises UserError for a file that is not there, empty or unreadable.
    """
    if not source.is_file():
        what = "this is a folder, not a file" if source.is_dir() else "no such file"
        raise UserError(f"input={source}: {what} (looked at {source.absolute()}).")
    if kind_of(source) != ".txt":
        table = read_table(source, text)
        return [document or "" for document in text_column(table, text)], table.places
    lines = list(text_lines(source))
    if not lines:
        raise UserError(f"input={source}: the file is empty. Give one document a line.")
    return lines, [f"line {number}" for number in range(1, len(lines) + 1)]


def check_output(source: Path, output: Path) -> None:
    """Refuses an output that cannot be written, or that would replace the input. Raises UserError."""
    if output.suffix.lower() != ".csv":
        raise UserError(f"output={output}: the name of a .csv file is needed.")
    if not output.absolute().parent.is_dir():
        raise UserError(f"output={output}: the folder {output.absolute().parent} is not there. Make it first.")
    if output.exists() and (output.is_dir() or output.samefile(source)):
        raise UserError(f"output={output}: this is a folder or the input itself. Choose another name.")


def predict(
    *,
    model: TextClassifier,
    checkpoint: dict[str, Any],
    source: Path,
    output: Path,
    text: list[str],
    seq_len: int,
    truncate: str,
    eval_batch_size: int,
    hardware: Hardware,
    precision: Precision,
) -> int:
    """Writes `output`: row (its place in `source`), prediction, p_<class>. Returns the number of documents.

    `checkpoint` is that of a fine-tuned run; tokenizer and classes come from it. Raises UserError for bad input.
    """
    source, output = Path(source), Path(output)
    found, places = documents(source, text)
    check_output(source, output)
    amp = Amp(precision=precision, hardware=hardware)
    model.to(amp.device)
    model.load_state_dict(checkpoint["model"])
    how = {"seq_len": seq_len, "truncate": truncate, "what": str(source), "places": places}
    encoded = encode(found, from_json(checkpoint["tokenizer"]), **how)
    for message in encoded.warnings(str(source), seq_len=seq_len, finished=True):
        print(f"WARNING: {message}", file=sys.stderr)
    labels = np.zeros(len(found), np.int64)
    maker = ClassBatches(encoded=encoded, labels=labels, multiple=width_multiple(seq_len))
    probabilities = softmax(classify(model, maker, encoded.lengths, batch_size=eval_batch_size, amp=amp).logits)
    names = np.asarray(checkpoint["classes"], dtype=object)
    columns = {"row": places, "prediction": names[probabilities.argmax(axis=1)]}
    text_out = io.StringIO()
    pd.DataFrame({**columns, **probability_columns(probabilities, checkpoint["classes"])}).to_csv(text_out, index=False)
    write_atomic(output, text_out.getvalue())
    return len(found)
