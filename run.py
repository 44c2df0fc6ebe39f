"""Composes one run (or, with -m, a sweep) from the groups in conf/ and starts what `mode` says. See README.md.

Nothing heavy is imported here: `--help`, tab completion and a refused configuration answer at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from itertools import islice
from math import prod
from pathlib import Path
from typing import Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P run.py` does not

from xcls.runs.allocator import start_anew
from xcls.runs.terminal import any_encoding, end_early, reader_left, stopped

QUESTIONS = (
    "--help",
    "-h",
    "--hydra-help",
    "--version",
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--shell-completion",
    "-sc",
)  # nothing runs
ASKED = any(word.partition("=")[0] in QUESTIONS for word in sys.argv[1:])
if __name__ == "__main__" and not ASKED:
    start_anew(__file__)
HOOK = sys.excepthook
if __name__ == "__main__":
    sys.excepthook = end_early

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises its errors, and `refuse` below words them

import hydra  # noqa: E402
from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402
from hydra.core.override_parser.types import ChoiceSweep, RangeSweep  # noqa: E402
from hydra.errors import HydraException  # noqa: E402
from omegaconf import DictConfig  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from xcls.config.cli_checks import check_slips  # noqa: E402
from xcls.config.compose import compose_config  # noqa: E402
from xcls.config.errors import package_worded, word_hydra, word_omegaconf  # noqa: E402
from xcls.config.hydra_settings import check_launcher, check_words, completion  # noqa: E402
from xcls.config.overrides import admitted, quote_typed  # noqa: E402
from xcls.config.schema import UserError  # noqa: E402
from xcls.runs.identity import runs_root  # noqa: E402
from xcls.runs.redact import hide_secrets  # noqa: E402
from xcls.runs.spec import JobSpec  # noqa: E402

sys.excepthook = HOOK  # `enter` sees to it from here

ROOT = Path(__file__).resolve().parent
RUNS = runs_root(ROOT)
MOST_JOBS = 10_000  # of one sweep
UNTYPED = ("attention", "position", "dataset.source")  # typed by the signature of their _target_


def refuse(error: Exception, words: Sequence[str] = ()) -> int:
    """Prints one message for a bad input and gives the exit code 2. words: what was typed."""
    if isinstance(error, OmegaConfBaseException):
        text = word_omegaconf(error, {})
    elif isinstance(error, HydraException):
        text = word_hydra(str(error), str(error.__cause__ or ""), words, ROOT / "conf")
    elif isinstance(error, UserError):
        text = str(error)
    elif isinstance(error, OSError):
        text = f"{error.filename or 'a file'}: {error.strerror or error}. Check the path, and that it may be read or written."
        if RUNS in Path(os.path.abspath(os.fsdecode(error.filename or "/"))).parents:
            text += " XCLS_RUNS=<another folder> in the environment puts all runs there."
    else:  # out of Hydra's inside
        text = f"this cannot be read as a configuration ({type(error).__name__}: {' '.join(str(error).split())[:300]})."
    print(f"run.py: {text}", file=sys.stderr)
    return 2


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """One run. Ends the process with 0 (done), 1 (the run failed), 2 (bad input), 130/143 (stopped from outside)."""
    hide_secrets()  # here and in `enter`: a job of a sweep does not come by there
    config = None
    try:
        composed = compose_config(cfg)
        config = composed.config
        from xcls.build import run_mode, run_spec  # torch and the rest, only now

        if config.mode == "bench":
            from xcls.bench.start import bench as run_mode  # the measuring code, which no other mode needs
        code = run_mode(run_spec(composed))
    except KeyboardInterrupt as stop:
        if not stop.args and config is not None and config.mode in ("eval", "predict", "bench"):
            stop = KeyboardInterrupt(f"mode={config.mode}: interrupted.")  # it may have written something
        code = stopped(stop)
    except BrokenPipeError:
        raise  # to `enter`
    except (UserError, HydraException, OmegaConfBaseException, OSError) as fault:
        code = refuse(fault)
    sys.stdout.flush()
    sys.exit(code)


def check_grid(words: list[str]) -> None:
    """Refuses a sweep of more than MOST_JOBS jobs before Hydra lists them all. Raises UserError, HydraException."""
    typed = [word for word in words if "=" in word and not word.startswith("-")]
    values = [override.value() for override in OverridesParser.create().parse_overrides(typed)]
    sizes = [len(value.list) for value in values if isinstance(value, ChoiceSweep)]
    sizes += [sum(1 for _ in islice(value.range(), MOST_JOBS + 1)) for value in values if isinstance(value, RangeSweep)]
    if prod(sizes) > MOST_JOBS:
        raise UserError(f"This sweep has more than {MOST_JOBS:,} jobs. Take values out of its lists and ranges.")


def outline(cfg: DictConfig) -> list[JobSpec]:
    """For the launcher of a sweep: the run of one job, last, after the runs it needs first. Raises UserError."""
    from xcls.build import job_specs  # torch and the rest, only now

    return job_specs(cfg)


def raised_by_hydra(error: Exception) -> bool:
    """Whether `error` came up while Hydra read what was typed: that is at fault, not this program."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return main.__wrapped__.__code__ not in codes and not any("xcls_launcher" in code.co_filename for code in codes)


def enter(words: list[str]) -> int:
    """Runs what was typed and gives the exit code."""
    hide_secrets()
    any_encoding()
    try:
        settings = check_slips(words, ROOT / "conf")
        check_words(settings)
        check_launcher(settings, ROOT / "conf")
        plain = quote_typed(words, OverridesParser.create().parse_override)
        check_grid(plain)
        sys.argv[1:] = sorted(
            admitted(plain, UNTYPED), key=lambda word: word not in ("-m", "--multirun")
        )  # argparse wants flags first
        with package_worded(words, ROOT / "conf"), completion(words, ROOT / "conf"):
            main()
            sys.stdout.flush()
    except KeyboardInterrupt as stop:
        return stopped(stop)
    except BrokenPipeError:
        return reader_left(asked=ASKED)
    except Exception as fault:
        if not isinstance(fault, (UserError, HydraException, OmegaConfBaseException, OSError)) and not raised_by_hydra(
            fault
        ):
            raise
        return refuse(fault, words)
    return 0


if __name__ == "__main__":
    sys.exit(enter(sys.argv[1:]))
