"""A project of its own for tests that run the real commands: the code linked, the outputs apart, a tiny data set."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Before torch: on tensors this small a second thread only waits, and costs ten times the processor.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

from tests import warm

# A slow machine is no failure, and one that passes has tried what another tries.
hypothesis.settings.register_profile(
    "house", deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("house")

for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    # Ignored where the tests were started in the background, or by nohup: commands under test would inherit it.
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
os.environ.pop("XCLS_RUNS", None)  # the developer's own runs stay out of it

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "dataset=files",
    "dataset.path=rows.csv",
    "seq_len=24",
    "size.num_layers=1",
    "size.width=16",
    "size.num_heads=2",
    "size.feed_forward=32",
    "tokenizer.vocab_size=120",
    "pretraining.max_steps=3",
    "finetuning.max_steps=4",
    "finetuning.batch_size=8",
    "pretraining.batch_size=8",
    "hardware.dtype=fp32",
    "hardware.threads=1",
    "wandb=disabled",
    "baseline.tuned=false",
]
SELF_STOP = """
import os
replace, stopped = os.replace, []
def replace_and_stop(source, target, **named):
    replace(source, target, **named)
    if "ckpt_step" in str(target) and not stopped:
        stopped.append(True)
        os.kill(os.getpid(), int(os.environ["STOP_BY"]))
os.replace = replace_and_stop
"""


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Bytes are named by their length: the workers of pytest-xdist must collect the same names, and compressed bytes
    may hold the time.
    """
    return f"{len(val)}bytes" if isinstance(val, bytes) else None


@dataclass
class Project:
    """A folder in which run.py and report.py work as in a clone."""

    folder: Path

    def run(
        self, *words: str, script: str = "run.py", small: bool = True, timeout: float = 120, fresh: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, in a process that has its imports done already (tests/warm.py) unless it is to be
        `fresh`.
        """
        command, environment = self.command(*words, script=script, small=small), self.environment
        sweep = "-m" in words or any(word.startswith("experiment=") for word in words) and "hydra.mode=RUN" not in words
        if script == "run.py" and not fresh and not sweep:
            return warm.run(command, self.folder, environment, timeout)
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=timeout
        )

    def begin(self, *words: str, stop_by: int) -> subprocess.Popen[str]:
        """Starts run.py in a process that sends itself the signal `stop_by` as soon as its first checkpoint is written:
        no watching, no haste.
        """
        hooks = self.folder / "cache" / "hooks"
        hooks.mkdir(parents=True, exist_ok=True)
        (hooks / "sitecustomize.py").write_text(SELF_STOP)
        environment = {**self.environment, "PYTHONPATH": str(hooks), "STOP_BY": str(int(stop_by))}
        return subprocess.Popen(
            self.command(*words),
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def command(self, *words: str, script: str = "run.py", small: bool = True) -> list[str]:
        """The command line of `run`: what SMALL says gives way to `words`, for no key may be typed twice."""
        typed = {word.partition("=")[0] for word in words}
        rest = [word for word in SMALL if word.partition("=")[0] not in typed]
        return [sys.executable, str(self.folder / script), *(rest if small and script == "run.py" else []), *words]

    @property
    def environment(self) -> dict[str, str]:
        """No GPU, one thread, no bars, a cache and device leases of its own."""
        return {
            **os.environ,
            "XCLS_LEASES": str(self.folder / "leases"),
            "XCLS_CACHE": str(self.folder / "cache"),
            "XCLS_PROGRESS": "0",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }

    def files(self) -> set[str]:
        """What the commands have made, caches aside."""
        others = ("conf/", "xcls/", "hydra_plugins/", "cache/", "leases/")
        files = [path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()]
        names = {path.relative_to(self.folder).as_posix() for path in files}
        return {name for name in names if not name.startswith(others) and "__pycache__" not in name}


def make_project(folder: Path) -> Project:
    """A fresh project with `rows.csv`: 120 rows of two classes that differ in their words."""
    for name in ("conf", "xcls", "hydra_plugins"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("run.py", "report.py"):
        shutil.copy(ROOT / name, folder / name)
    draw = random.Random(0)
    words = {"good": ["fine", "great", "lovely", "bright"], "bad": ["poor", "dull", "awful", "grim"]}
    with open(folder / "rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for row in range(120):
            label = ("good", "bad")[row % 2]
            writer.writerow(
                [f"row {row} " + " ".join(draw.choices(words[label] + ["film", "plot"], k=draw.randint(3, 20))), label]
            )
    return Project(folder)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """`make_project` in the test's own folder."""
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with complete runs `pretrain/base` and `finetune/base`, and `pretrain/written`, ready to edit. Leave it
    as it is.
    """
    project = make_project(tmp_path_factory.mktemp("finished"))
    for words in (["mode=pretrain", "exp=base"], ["mode=finetune", "exp=base"], ["mode=init", "exp=written"]):
        result = project.run(*words)
        assert result.returncode == 0, result.stderr
    return project
