"""Turns what runs left behind into tables, a verdict, plots and a page. See conf/report.yaml, README.md. No torch."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P report.py` does not

from xcls.runs.terminal import any_encoding, end_early, reader_left

HOOK = sys.excepthook
if __name__ == "__main__":
    sys.excepthook = end_early

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises its errors, and `refuse` below words them

import hydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402
from hydra.errors import HydraException  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from xcls.config.overrides import quote_typed  # noqa: E402
from xcls.config.schema import UserError, flatten, nearest  # noqa: E402
from xcls.report.settings import FamilyClaims, Settings  # noqa: E402
from xcls.runs.identity import runs_root  # noqa: E402

sys.excepthook = HOOK
KEYS = [
    *flatten(asdict(Settings())),
    "claims",
    *(f"claims.families.performer.{name}" for name in asdict(FamilyClaims())),
]


@hydra.main(version_base="1.3", config_path="conf", config_name="report")
def main(cfg: DictConfig) -> None:
    """Writes the report and prints its table. Ends the process with 2 for a bad input."""
    try:
        if isinstance(cfg.runs, str):  # runs=multirun/quick
            cfg.runs = [cfg.runs]
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), cfg))
        typed = list(HydraConfig.get().overrides.task)
        from xcls.report.write import write_report  # matplotlib, only now

        print(write_report(settings, typed=typed, root=runs_root(Path.cwd())), end="")
    except (UserError, OmegaConfBaseException) as fault:  # here, or Hydra adds a line of its own
        sys.exit(refuse(fault))


def refuse(error: Exception) -> int:
    """Prints one message for a bad input and gives the exit code 2."""
    print(f"report.py: {error if isinstance(error, UserError) else word(error)}", file=sys.stderr)
    return 2


def word(error: Exception) -> str:
    """An error of Hydra or OmegaConf in one message: the key, what is wrong, the nearest valid key."""
    text, cause = str(error).strip(), error.__cause__ or error
    first = text.splitlines()[0]
    override = re.search(r"Could not override '([^']+)'", text)
    key = override.group(1) if override else str(getattr(cause, "full_key", None) or getattr(cause, "key", None) or "")
    if override or re.search(r"not in '|not in struct", str(cause)):
        return f"{key}: unknown key.{nearest(key, KEYS)}"
    if any(sign in text for sign in ("mismatched input", "LexerNoViableAlt", "no viable", "token recognition")):
        return f"{first}\nA list is written without blanks, in quotes: 'runs=[multirun/a,multirun/b]'."
    return f"{key}: {first}" if key else first


if __name__ == "__main__":
    if any(word in ("-m", "--multirun") for word in sys.argv[1:]):
        sys.exit(refuse(UserError("a report is one run: name all folders in one list, 'runs=[a,b]', without -m.")))
    any_encoding()
    sys.argv[1:] = quote_typed(sys.argv[1:], OverridesParser.create().parse_override)
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        sys.exit(reader_left(asked=True))  # the report is written
    except (UserError, HydraException, OmegaConfBaseException) as fault:
        sys.exit(refuse(fault))
