"""mode=bench, from a run's specification to its folder."""

from __future__ import annotations

import os

from xcls.bench.plan import check_dtypes, settled
from xcls.bench.run import run_bench
from xcls.config.files import read_yaml
from xcls.runs.folder import check_case_collision
from xcls.stages.spec import RunSpec


def bench(spec: RunSpec) -> int:
    """mode=bench: time, memory, operations and error of mechanisms; `multirun/bench/<name>/`. Gives the exit code."""
    config = spec.config
    folder = spec.runs / "multirun" / "bench" / (config.exp or config.bench.name)
    check_case_collision(folder)
    spec.check_device()
    precision = spec.precision
    config.bench = settled(config.bench, precision.dtype)
    check_dtypes(config.bench.dtypes, spec.find().cards if precision.device == "cuda" else ())
    nodes = {
        group: {path.stem: read_yaml(path) for path in sorted((spec.root / "conf" / group).glob("*.yaml"))}
        for group in ("attention", "position")
    }
    run_bench(
        config,
        nodes,
        device=precision.device,
        folder=folder,
        progress=os.environ.get("XCLS_PROGRESS") != "0",
        fingerprint=spec.fingerprint if config.bench.what == "training" else "",
    )
    return 0
