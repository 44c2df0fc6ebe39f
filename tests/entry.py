"""run.py inside the test's own process: the real file, the real Hydra, the real checks. Only the training is left out.

Every write, process and connection of that call is seen by an audit hook, wherever on the machine it goes.
"""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import shutil
import signal
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.chdir",
    "shutil.rmtree",
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "socket.connect",
)
HARMLESS = ("/dev/null", "__pycache__")
ASKS = ("rev-parse", "-c", "ls-files", "diff")  # commands of git that change nothing
seen: list[str] | None = None  # what the hook has seen; None: it does not look


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if seen is None:
        return
    if (
        event == "open"
        and isinstance(arguments[2], int)
        and arguments[2] & WRITING
        and not isinstance(arguments[0], int)
    ):
        seen.append(f"open {os.path.abspath(os.fsdecode(arguments[0]))}")
    elif event in CHANGES:
        place = arguments[0] if arguments else ""
        if event == "subprocess.Popen" and place == "git" and arguments[1][1] in ASKS:
            return
        if event == "os.mkdir" and os.path.isdir(place):
            return  # it will fail, or is allowed to
        seen.append(
            f"{event} {os.path.abspath(os.fsdecode(place)) if isinstance(place, (str, bytes, os.PathLike)) else place}"
        )


sys.addaudithook(_hook)


class Hang(BaseException):
    """A call took too long."""


def _too_long(number: int, frame: Any) -> None:
    raise Hang("no answer")


@dataclass
class Outcome:
    """What one call of run.py did."""

    code: Any
    stderr: str
    stdout: str
    traceback: str = ""
    writes: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[str]:
        """The writes but for Python's own, as `event path`."""
        return [write for write in self.writes if not any(word in write for word in HARMLESS)]


@dataclass
class Entry:
    """A project of its own in which run.py is called."""

    folder: Path
    stages: list[str] = field(default_factory=list)  # folders of the runs that would have begun
    prepared: Any = None  # the data of the last one
    jobs: int = 0  # of sweeps that would have begun
    working: Path | None = None  # the working directory of a call; None: `folder`

    def __call__(self, *words: str, seconds: int = 30) -> Outcome:
        """Calls run.py with these words, as a process would; what it raises is caught and shown."""
        return self._watched(
            lambda: runpy.run_path(str(self.folder / "run.py"), run_name="__main__"), list(words), seconds
        )

    def composed(self, *words: str) -> Callable[[], Outcome]:
        """What `run.py words` does after Hydra has composed them, as a function: to call it often, with other files."""
        main = runpy.run_path(str(self.folder / "run.py"), run_name="run")["main"]
        with initialize_config_dir(str(self.folder / "conf"), version_base="1.3"):
            whole = compose("config", overrides=list(words), return_hydra_config=True)
        task = OmegaConf.masked_copy(whole, [key for key in whole if key != "hydra"])
        HydraConfig.instance().set_config(whole)
        hydra_node = HydraConfig.instance().cfg

        def call() -> None:
            HydraConfig.instance().cfg = hydra_node
            main(task)

        return lambda: self._watched(call, list(words), 30)

    def _watched(self, call: Callable[[], Any], words: list[str], seconds: int) -> Outcome:
        global seen
        out, err, before = io.StringIO(), io.StringIO(), (sys.argv, os.getcwd(), dict(os.environ), sys.path[:])
        os.chdir(self.working or self.folder)
        sys.argv = [str(self.folder / "run.py"), *words]
        code: Any = None
        caught, seen = "", []
        alarm = signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(seconds)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                call()
        except SystemExit as end:
            code = end.code
        except BaseException:
            caught = traceback.format_exc()
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, alarm)
            found, seen = seen, None
            sys.argv, sys.path[:] = before[0], before[3]
            os.chdir(before[1])
            for name in set(os.environ) - set(before[2]):
                del os.environ[name]
            os.environ.update(before[2])
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
        return Outcome(code, err.getvalue(), out.getvalue(), caught, found)

    def clean(self) -> None:
        """Removes what runs have made."""
        for name in ("pretrain", "finetune", "multirun"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.stages.clear()
        self.jobs = 0


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """run.py of the project in `folder`: stages, jobs of sweeps and processes do not start, but count."""
    import xcls.bench.start
    import xcls.stages.training

    entry = Entry(folder)

    def stage(plan: Any, prepared: Any, before: Any, sources: Any) -> int:
        entry.stages.append(str(plan.folder))
        entry.prepared = prepared
        return 0

    make_launcher = Plugins.instantiate_launcher

    def launcher(plugins: Any, **what: Any) -> Any:
        made = make_launcher(plugins, **what)

        def launch(job_overrides: Any, initial_job_idx: int) -> list[Any]:
            entry.jobs += len(made.plan(job_overrides).jobs)
            return []

        made.launch = launch
        return made

    monkeypatch.setattr(xcls.stages.training, "run_stage", stage)
    monkeypatch.setattr(xcls.stages.training, "make_first", lambda spec: None)
    monkeypatch.setattr(xcls.bench.start, "run_bench", lambda *_, **__: None)
    monkeypatch.setattr(Plugins, "instantiate_launcher", launcher)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "67108864")  # run.py starts anew where its allocator is not set
    monkeypatch.setenv("XCLS_CACHE", str(folder / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(folder / "hub"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("XCLS_PROGRESS", "0")
    monkeypatch.delenv("XCLS_DATA", raising=False)
    return entry


@contextlib.contextmanager
def entered(folder: Path) -> Iterator[Entry]:
    """`enter` for a `with` statement."""
    with pytest.MonkeyPatch.context() as patch:
        yield enter(folder, patch)
