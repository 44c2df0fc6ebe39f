"""run.py inside the test's own process: the real file, the real Hydra, the real checks. Only the training is left out.

Every write, process and connection of that call is seen by an audit hook, wherever on the machine it goes.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator
from unittest import mock

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from hydra_plugins.xcls_launcher._sweep import SweepLauncher

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = re.compile(
    r"os\.(mkdir|rename|remove|rmdir|link|symlink|truncate|chmod|chown|chdir|system|exec|fork|forkpty|posix_spawn|spawn)"
    r"|shutil\.rmtree|subprocess\.Popen|socket\.connect"
)
ASKS = ("rev-parse", "-c", "ls-files", "diff")  # commands of git that change nothing
seen: list[str] | None = None  # what the hook has seen; None: it does not look


def _hook(event: str, given: tuple[Any, ...]) -> None:
    if seen is None:
        return
    place = given[0] if given else ""
    shown = os.path.abspath(os.fsdecode(place)) if isinstance(place, (str, bytes, os.PathLike)) else place
    if event == "open":
        if isinstance(given[2], int) and given[2] & WRITING and not isinstance(place, int):
            seen.append(f"open {shown}")
    elif CHANGES.fullmatch(event):
        asks = event == "subprocess.Popen" and place == "git" and given[1][1] in ASKS
        there = event == "os.mkdir" and os.path.isdir(place)  # it will fail, or is allowed to
        if not asks and not there:
            seen.append(f"{event} {shown}")


sys.addaudithook(_hook)


@dataclass
class Outcome:
    """What one call of run.py did."""

    code: Any
    stderr: str
    stdout: str
    traceback: str
    writes: list[str]

    @property
    def files(self) -> list[str]:
        """The writes but for Python's own, as `event path`."""
        return [write for write in self.writes if "/dev/null" not in write and "__pycache__" not in write]


@dataclass
class Entry:
    """A project of its own in which run.py is called."""

    folder: Path
    stages: list[str] = field(default_factory=list)  # folders of the runs that would have begun
    prepared: Any = None  # the data of the last one
    sweeps: list[Any] = field(default_factory=list)  # that would have begun, as planned
    working: Path | None = None  # the working directory of a call; None: `folder`

    def __call__(self, *words: str) -> Outcome:
        """Calls run.py with these words, as a process would; what it raises is caught and shown."""
        global seen
        out, err = io.StringIO(), io.StringIO()
        code, caught, folder = None, "", os.getcwd()
        os.chdir(self.working or self.folder)
        seen = []
        try:
            with (
                mock.patch.object(sys, "argv", [str(self.folder / "run.py"), *words]),
                mock.patch.object(sys, "path", sys.path[:]),
                mock.patch.dict(os.environ),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                runpy.run_path(str(self.folder / "run.py"), run_name="__main__")
        except SystemExit as end:
            code = end.code
        except BaseException:
            caught = traceback.format_exc()
        finally:
            found, seen = seen, None
            os.chdir(folder)
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
        return Outcome(code, err.getvalue(), out.getvalue(), caught, found)


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """run.py of the project in `folder`: stages, sweeps and processes do not start, but are noted."""
    import xcls.bench.run
    import xcls.stages.training

    entry = Entry(folder)

    def stage(spec: Any, prepared: Any, before: Any, sources: Any) -> int:
        entry.stages.append(str(spec.folder))
        entry.prepared = prepared
        return 0

    def launch(launcher: Any, job_overrides: Any, initial_job_idx: int) -> list[Any]:
        entry.sweeps.append(launcher.plan(job_overrides))
        return []

    monkeypatch.setattr(xcls.stages.training, "run_stage", stage)
    monkeypatch.setattr(xcls.stages.training, "make_first", lambda spec: None)
    monkeypatch.setattr(xcls.bench.run, "bench", lambda spec: 0)
    monkeypatch.setattr(SweepLauncher, "launch", launch)
    variables = {
        "MALLOC_TOP_PAD_": "67108864",  # the allocator of this process stays as it is
        "XCLS_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "CUDA_VISIBLE_DEVICES": "",
        "XCLS_PROGRESS": "0",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("XCLS_DATA", raising=False)
    return entry


@contextlib.contextmanager
def entered(folder: Path) -> Iterator[Entry]:
    """`enter` for a `with` statement."""
    with pytest.MonkeyPatch.context() as patch:
        yield enter(folder, patch)
