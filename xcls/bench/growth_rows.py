"""How cost grows with the number of documents: the whole path of a user's own file, in a process of its own.

A csv file is read, split, tokenized and trained on for some steps, evaluated and predicted; once with cold caches, once
with warm ones. `main` is the process.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import numpy as np

Emit = Callable[[str, dict[str, Any]], None]
WORDS, WORDS_A_TEXT, CLASSES = 5000, 25, 4
HELD_OUT = 2000  # rows of validation and of test: what is evaluated does not grow
WRITTEN = 10_000  # rows of the file that are made at once
PAUSE = 0.005  # seconds between two looks at the memory


def write_rows(file: Path, rows: int, *, seed: int = 0) -> None:
    """A csv file of `rows` short texts in CLASSES classes: 25 invented words each, the frequent ones often (Zipf)."""
    draws = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(draws.choice(letters, draws.integers(2, 9))) for _ in range(WORDS)], dtype=object)
    shares = 1.0 / np.arange(1, WORDS + 1)
    with open(file, "w", encoding="utf-8") as out:
        out.write("text,label\n")
        for start in range(0, rows, WRITTEN):
            count = min(WRITTEN, rows - start)
            texts = words[draws.choice(WORDS, (count, WORDS_A_TEXT), p=shares / shares.sum())]
            labels = draws.integers(0, CLASSES, count)
            out.writelines(f"{' '.join(text)},class {label}\n" for text, label in zip(texts, labels))


class Peak(threading.Thread):
    """Looks at the resident memory all the time: the training itself resets the kernel's own mark."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.highest = resident()
        self.ended = threading.Event()

    def run(self) -> None:
        """Until `ended`."""
        while not self.ended.wait(PAUSE):
            self.highest = max(self.highest, resident())

    @property
    def growth(self) -> float:
        """MiB above what was there at the start."""
        return self.highest - self.before


def resident() -> float:
    """Resident memory now, MiB; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def train_rows(job: dict[str, Any], emit: Emit) -> None:
    """Trains on the file `path` for `steps` steps: seconds since `began` until the data are there and until the first
    step is done, tokens/s, and by how many MiB memory grew at most since the code was loaded."""
    import sklearn.metrics  # noqa: F401 - what a run needs is loaded before memory counts

    from xcls.bench.growth_startup import first_step_time
    from xcls.bench.training_ours import make_classifier, make_encoder
    from xcls.bench.training_plan import Contender, Recipe
    from xcls.config.schema import Dataset, Tokenizer, Wandb
    from xcls.data.files import Files
    from xcls.data.splits import prepare
    from xcls.data.tokenizer import make_tokenizer
    from xcls.runs.record import Record
    from xcls.stages.finetune import finetune
    from xcls.stages.texts import classification_data
    from xcls.train.precision import Precision
    from xcls.train.run_logger import RunLogger

    if job.get("threads"):
        import torch

        torch.set_num_threads(job["threads"])
    loaded = time.time()
    peak = Peak()
    peak.start()
    share = min(0.2, HELD_OUT / job["rows"])
    prepared = prepare(
        Files(path=job["path"], test_share=share), Dataset(name="rows", path=job["path"], validation=share)
    )
    tokenizer = make_tokenizer(Tokenizer(**job["tokenizer"]), prepared.mlm_texts)
    recipe, contender = Recipe.from_plain(job["recipe"]), Contender(**job["contender"])
    texts = replace(recipe.texts, vocab_size=tokenizer.vocab_size, num_classes=len(prepared.classes))
    recipe = replace(recipe, texts=texts)
    data = classification_data(prepared, tokenizer, seq_len=recipe.seq_len, truncate="head")
    prepared_at, prepared_peak = time.time(), peak.growth
    record = Record(run="bench", mode="bench", status="running", hash="", seed=recipe.seed, seq_len=recipe.seq_len)
    with tempfile.TemporaryDirectory() as place:
        with RunLogger(folder=Path(place), record=record, wandb=Wandb(mode="disabled")) as journal:
            finetune(
                model=make_classifier(make_encoder(recipe, contender), recipe),
                data=data,
                tokenizer=tokenizer,
                training=recipe.training,
                hardware=recipe.hardware,
                precision=Precision(recipe.device, recipe.dtype),
                seed=recipe.seed,
                journal=journal,
                resume=False,
            )
        first = first_step_time(Path(place) / "events.jsonl")
    peak.ended.set()
    peak.join()
    emit(
        "rows",
        {
            "load_s": loaded - job["began"],
            "prepare_s": prepared_at - loaded,
            "first_step_s": (first or 0.0) - job["began"],
            "prepare_MiB": prepared_peak,
            "memory_MiB": peak.growth,
            "tokens_per_s": record.costs["tokens_per_s"],
            "train_rows": len(data.train.encoded),
            "tokens": int(data.train.encoded.offsets[-1]),
        },
    )


def main() -> int:
    """Does the job on standard input. Returns 0 when it came to its end; else the cause is an event."""
    from xcls.bench.worker import cause_of

    out = os.fdopen(os.dup(1), "w", encoding="utf-8")  # what libraries print goes to standard error
    os.dup2(2, 1)

    def emit(event: str, details: dict[str, Any]) -> None:
        out.write(json.dumps({"event": event, **details}) + "\n")
        out.flush()

    try:
        os.environ["XCLS_PROGRESS"] = "0"
        train_rows(json.load(sys.stdin), emit)
    except Exception as error:
        traceback.print_exc()
        emit("stopped", {"cause": cause_of(error)})
        return 1
    emit("end", {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
