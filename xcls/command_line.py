"""Which of Hydra's own settings may be typed. Standard library only.

Folders, logs and callbacks are not among them: `run.py` makes a run's folder, once everything is checked.
"""

from __future__ import annotations

import re
from typing import Sequence

from xcls.schema import UserError

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
