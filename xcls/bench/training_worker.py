"""The process of one training: reads its job, then one word for every segment, from standard input; writes events.

`training_run.py` is the other end. All contenders wait in such processes, and train a segment by turns.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from xcls.bench.cases import OURS
from xcls.bench.training_meter import Enough, Meter
from xcls.bench.training_plan import TRANSFORMERS, Contender, Recipe
from xcls.bench.worker import cause_of, prepare_process

TRAININGS = {OURS: "xcls.bench.training_ours", TRANSFORMERS: "xcls.bench.training_bert"}


def main() -> int:
    """Trains until standard input ends. Returns 0 then; a training that fails is an event with its cause."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")  # what libraries print goes to standard error
    os.dup2(2, 1)

    def emit(event: str, details: dict[str, Any]) -> None:
        out.write(json.dumps({"event": event, **details}) + "\n")
        out.flush()

    try:
        os.environ["XCLS_PROGRESS"] = "0"
        job = json.loads(sys.stdin.readline())
        prepare_process(job)
        recipe, contender = Recipe.from_plain(job["recipe"]), Contender(**job["contender"])
        training = import_module(TRAININGS[contender.origin])
        meter = Meter(words=sys.stdin, emit=emit, device=recipe.device, dtype=recipe.dtype)

        def ready(model: nn.Module) -> None:
            emit("ready", {"parameters": sum(parameter.numel() for parameter in model.parameters())})

        with tempfile.TemporaryDirectory() as folder:
            training.train(recipe, contender, meter, Path(folder), ready)
    except Enough:
        emit("end", {})
        return 0
    except Exception as error:
        traceback.print_exc()
        emit("stopped", {"cause": cause_of(error)})
        return 1
    emit("stopped", {"cause": "the training came to an end by itself"})
    return 1


if __name__ == "__main__":
    sys.exit(main())
