"""Which of Hydra's own settings may be typed, and are offered to be. Standard library only.

Folders, logs and callbacks are not among them: `run.py` makes a run's folder, once everything is checked.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Iterator, Sequence

from xcls.config.schema import UserError, nearest

FREE = re.compile(r"hydra\.(mode|verbose|(launcher|sweeper)(\..+)?)|hydra/launcher")


def check_words(words: Sequence[str]) -> None:
    """Refuses `hydra.run.dir=…`, `hydra/job_logging=…` and the like. Raises UserError."""
    for word in words:
        key = re.split(r"[=@]", word.strip().lstrip("+~"), maxsplit=1)[0].strip()
        if re.match(r"hydra\b", key) and not FREE.fullmatch(key):
            raise UserError(
                f"{key}: run.py makes the folders and logs itself; exp=<name> names them. Of Hydra's own settings "
                "hydra.mode, hydra.verbose, hydra.launcher, hydra.sweeper and hydra/launcher may be set."
            )


def check_launcher(words: Sequence[str], conf: Path) -> None:
    """Refuses the launchers that are not in conf/hydra/launcher: Hydra's and submitit's own, which ours are built on, know no
    free devices, no stopped job and no sweep.json. Raises UserError.
    """
    known = launchers(conf)
    for word in words:
        key, _, value = word.strip().lstrip("+").partition("=")
        if key == "hydra/launcher" and value not in known:
            raise UserError(
                f"hydra/launcher={value}: no such option.{nearest(value, known)} There is: {', '.join(known)}."
            )


@contextlib.contextmanager
def completion(words: Sequence[str], conf: Path) -> Iterator[None]:
    """Around the call of Hydra: of what it prints for tab completion, the launchers that would be refused are left out."""
    if not any(word.startswith("query=") for word in words):
        yield
        return
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    finally:
        kept = "|".join(map(re.escape, launchers(conf)))
        print(re.sub(rf"hydra/launcher=(?!(?:{kept})(?:\s|$))\S+[ \n]?", "", said.getvalue()), end="")


def launchers(conf: Path) -> list[str]:
    """The launchers that may be chosen."""
    return sorted(path.stem for path in (conf / "hydra" / "launcher").glob("*.yaml"))
