"""Paths and texts on the command line: `~`, run folders by name or path, pipes, quotes. Standard library only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Sequence

from xcls.config.schema import UserError, nearest

CONFIG = "resolved_config.yaml"  # every run that has begun has it in its folder
MOST_SHOWN = 12
PLAIN = re.compile(r"(?!(null|true|false|inf|nan)$)[A-Za-z_./][A-Za-z0-9_./-]*", re.IGNORECASE)


def at(path: str | Path) -> Path:
    """The path with `~` and `~name` expanded. Raises UserError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}. Write the path without '~'.") from error


def quoted(text: str) -> str:
    """A text in the grammar of Hydra's command line, in quotes if needed."""
    if PLAIN.fullmatch(text):
        return text
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def in_project(path: str | None, root: Path) -> str | None:
    """The path; below `root` if it exists there and not in the working directory."""
    if path is None or at(path).exists() or not (root / at(path)).exists():
        return path
    return str(root / at(path))


def is_stream(path: str | Path) -> bool:
    """Whether this is `-` (standard input or output), or a pipe or device such as /dev/stdin and the shell's `<(…)`."""
    file = Path(path)
    return (
        str(path) == "-"
        or str(path).startswith(("/dev/", "/proc/self/fd/"))
        or (file.exists() and not file.is_file() and not file.is_dir())
    )


def find_run(key: str, name: str, *, root: Path, stages: Sequence[str]) -> Path:
    """The folder of the run that `key=name` means: a name under `<root>/<stage>/`, or the path of a run folder.

    A path is relative to the working directory or to `root`. Raises UserError with the runs that exist instead.
    """
    path = at(name)
    places = [*(root / stage / path for stage in stages), path, root / path]
    for place in places:
        if (place / CONFIG).is_file():
            return place
    known = [run for stage in stages for run in _runs(root / stage, 1)]
    known += [f"multirun/{run}" for run in _runs(root / "multirun", 3, stages)]
    own = [place for place in places if place.is_dir() and place.resolve().is_relative_to(root.resolve())]
    found = [run for place in own for depth in (1, 2, 3) for run in _runs(place, depth, stages)]
    inside = [f"{name.rstrip('/')}/{run}" for run in dict.fromkeys(found)]
    if inside:
        raise UserError(f"{key}={name}: this is a folder with runs, not a run. Choose one of them: {_listed(inside)}.")
    said = " or ".join(f"{stage}/" for stage in stages)
    raise UserError(
        f"{key}={name}: no such run under {said}, and no run folder at that path.{nearest(name, known)} "
        f"Runs that exist: {_listed(known)}."
    )


def _runs(folder: Path, depth: int, stages: Sequence[str] = ("",)) -> list[str]:
    """The run folders `depth` levels below `folder` whose names begin with one of `stages`: relative paths, sorted."""
    found = sorted(file.parent for file in folder.glob("/".join(["*"] * depth + [CONFIG])))
    return [run.relative_to(folder).as_posix() for run in found if run.name.startswith(tuple(stages))]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return (", ".join(names[:MOST_SHOWN]) or "none") + more
