"""Composes one run (or, with -m, a sweep) from the groups in conf/ and starts what `mode` says. See README.md.

This file imports nothing heavy, so that `--help`, tab completion and a refused configuration answer at once.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # `python -P run.py` does not

from xcls.runs.allocator import retain_memory
from xcls.runs.terminal import end_early, exit_code

if __name__ == "__main__":
    sys.excepthook = end_early
    retain_memory()
os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors, and `describe` writes the message

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from xcls.config.command_line import prepare
from xcls.config.compose import compose_config
from xcls.config.errors import describe


def run(cfg: DictConfig) -> int:
    """Runs the configuration that Hydra has composed. 0: done, 1: the run failed, 2: bad input, 130 or 143: stopped."""
    composed = compose_config(cfg)
    from xcls.build import run_mode, run_spec  # imports torch

    if composed.config.mode == "bench":
        from xcls.bench.run import bench as run_mode  # replaces run_mode: no other mode needs the measuring code
    return run_mode(run_spec(composed))


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """One run. Ends the process with its exit code."""
    sys.exit(exit_code(lambda: run(cfg), partial(describe, words=sys.argv[1:], conf=ROOT / "conf")))


def enter(words: list[str]) -> int:
    """Runs the command line. Returns the exit code."""
    sys.argv[1:] = prepare(words, ROOT / "conf", OverridesParser.create().parse_override)
    main()
    return 0


if __name__ == "__main__":
    typed = sys.argv[1:]
    sys.exit(exit_code(lambda: enter(typed), partial(describe, words=typed, conf=ROOT / "conf")))
