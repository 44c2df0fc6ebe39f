"""Paths as a user types them: `~`, run folders by name or path, and pipes. Standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from xcls.config.schema import UserError, nearest

CONFIG = "resolved_config.yaml"  # what every run that has begun has in its folder
MOST_SHOWN = 12


def at(path: str | Path) -> Path:
    """The path with `~` and `~name` written out. Raises UserError where there is no such person."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}. Write the path without '~'.") from error


def in_project(path: str | None, root: Path) -> str | None:
    """The path, below `root` where it is there and not in the working directory."""
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
    known = [folder.name for stage in stages for folder in _runs(root / stage, 1)]
    known += [
        f"multirun/{folder.relative_to(root / 'multirun').as_posix()}"
        for folder in _runs(root / "multirun", 3)
        if folder.name.startswith(tuple(stages))
    ]
    own = [place for place in places if place.is_dir() and place.resolve().is_relative_to(root.resolve())]
    inside = [
        f"{name.rstrip('/')}/{folder.relative_to(place).as_posix()}"
        for place in own
        for depth in (1, 2, 3)
        for folder in _runs(place, depth)
        if folder.name.startswith(tuple(stages))
    ]
    inside = list(dict.fromkeys(inside))
    if inside:
        raise UserError(f"{key}={name}: this is no run but a folder with runs. Name one of them: {_listed(inside)}.")
    said = " or ".join(f"{stage}/" for stage in stages)
    raise UserError(
        f"{key}={name}: no such run under {said}, and no run folder at that path.{nearest(name, known)} "
        f"Runs that exist: {_listed(known)}."
    )


def _runs(folder: Path, depth: int) -> list[Path]:
    """The run folders so many levels below `folder`, sorted."""
    return sorted(file.parent for file in folder.glob("/".join(["*"] * depth + [CONFIG])))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return (", ".join(names[:MOST_SHOWN]) or "none") + more
