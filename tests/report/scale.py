"""How long a report over many runs takes: python -m tests.report.scale 5000 makes them, prints seconds and memory."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

from tests.report.conftest import baseline, finetune, save
from tests.report.examples import from_yaml
from xcls.report.settings import Settings
from xcls.report.write import write_report

MECHANISMS = ("sdpa", "performer", "reformer", "sdpa_fused")


def make_runs(count: int, root: Path) -> None:
    """`count` fine-tuning runs of four mechanisms, three seeds each, a new learning rate every dozen; a baseline."""
    made = [baseline()]
    for number in range(count):
        name, seed, rate = MECHANISMS[number // 3 % 4], number % 3, 1e-4 * (1 + number // 12)
        run = f"demo/finetune-{name}-{number}"
        time_, score = 8.0 + number % 7 / 10, 0.85 + (number * 37 % 100) / 1000
        record = finetune(name, seed, macro_f1=score, time=time_, config={"finetuning.lr": rate}, run=run)
        if number % 50 == 49:
            record.status, record.cause = "failed", "NaN in the loss"
        made.append(record)
    save(made, root)


def main() -> None:
    """Prints what it took."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_runs(count, root)
        began = time.perf_counter()
        told = write_report(Settings(runs=["multirun"], out="out", claims=from_yaml()), root=root).splitlines()[-1]
        seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        page = (root / "out" / "index.html").stat().st_size / 2**20
        print(
            f"{told}\n{seconds:.1f} s, {peak:.0f} MiB at most, torch loaded: {'torch' in sys.modules}, page {page:.1f} MiB"
        )


if __name__ == "__main__":
    main()
