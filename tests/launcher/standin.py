"""A stand-in for run.py: its jobs sleep, misbehave as told, and leave records and events like real ones.

Tests copy it into a folder as `run.py`; it takes the place of `xcls.build` too, so nothing heavy is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import hydra
from filelock import FileLock
from omegaconf import DictConfig

from xcls.config.schema import UserError
from xcls.runs.folder import decide
from xcls.runs.record import Events, Record, write_record
from xcls.runs.spec import JobSpec

ROOT = Path(__file__).resolve().parent
CONFIG = """
defaults: [_self_, {override hydra/launcher: gpu_server}, {override hydra/sweeper: xcls_grid},
  {override hydra/job_logging: none}, {override hydra/hydra_logging: none}]
mode: finetune
exp: null
sweep: null
seed: 0
group: a          # cells of one group share a pretraining run
pretrain: null
how: sleep        # what the job does after some time
pretraining_how: sleep
seconds: 0.3
retry_failed: false
cuda: false       # the job computes on a GPU
hardware: {threads: null}
hydra: {run: {dir: .}, sweep: {dir: multirun, subdir: .}, output_subdir: null}
"""


def install(folder: Path) -> None:
    """Makes `folder` a project with this file as its run.py."""
    source = Path(__file__)
    launcher = Path("conf", "hydra", "launcher", "gpu_server.yaml")
    (folder / launcher).parent.mkdir(parents=True)
    (folder / launcher).write_text((source.parents[2] / launcher).read_text())
    (folder / "conf" / "config.yaml").write_text(CONFIG)
    (folder / "run.py").write_text(source.read_text())
    for package in ("xcls", "hydra_plugins"):
        (folder / package).symlink_to(source.parents[2] / package)


def blank(cfg: DictConfig, mode: str) -> Record:
    """The record of a run before it begins; its hash covers what shapes the run."""
    parts = {"finetune": [cfg.seed, cfg.group, cfg.how, cfg.pretrain], "pretrain": [cfg.group], "baseline": []}[mode]
    digest = hashlib.sha256(json.dumps([mode, *parts]).encode()).hexdigest()
    name = "-".join(map(str, [mode, *parts, digest[:6]]))
    record = Record(run=f"data/{name}", mode=mode, status="running", hash=digest, seed=cfg.seed, seq_len=8)
    record.steps = int(cfg.seconds * 20)
    return record


def place(cfg: DictConfig, record: Record) -> Path:
    """The run's folder."""
    shared = ROOT / "pretrain" / record.run.replace("/", "-")
    return shared if record.mode == "pretrain" else ROOT / "multirun" / cfg.sweep / record.run


def one(cfg: DictConfig, mode: str, overrides: list[str] | None = None) -> JobSpec:
    """One run by itself."""
    record = blank(cfg, mode)
    folder = place(cfg, record)
    action, found = decide(folder, record.hash, resume=True, sweep=True, retry_failed=cfg.retry_failed, code={})
    spec = JobSpec(mode, folder=folder, hash=record.hash, overrides=overrides, action=action, found=found)
    spec.record, spec.gpu, spec.file = record, cfg.cuda, "made: here\n" if overrides else None
    return spec


def job_specs(cfg: DictConfig) -> list[JobSpec]:
    """As in xcls.build: the run of one job, last, after those it needs."""
    if cfg.how == "refused":
        raise UserError("how=refused: choose another.")
    first = []
    if cfg.mode == "finetune" and cfg.pretrain == "auto":
        words = [f"{key}={cfg[key]}" for key in ("group", "seconds", "sweep", "retry_failed")]
        words.append(f"how={cfg.pretraining_how}")
        first = [one(cfg, mode, [f"mode={mode}", *words]) for mode in ("baseline", "pretrain")]
    own = one(cfg, cfg.mode)
    own.needs = [run.hash for run in first]
    return [*first, own]


def misbehave(how: str, folder: Path) -> None:
    """What the job does soon after its start. `…_once`: the first time only."""
    marker = folder.with_name(folder.name + ".once")
    if how.endswith("_once") and marker.exists():
        return
    marker.touch()
    if how.startswith("raise"):
        raise ValueError("told to raise")
    if how.startswith("exit3"):
        sys.exit(3)
    if how.startswith("kill"):
        (folder / "ckpt_1.pt").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "meet":  # until another job has begun too: jobs run beside each other, however slow the machine is
        (ROOT / "met").mkdir(exist_ok=True)
        (ROOT / "met" / str(os.getpid())).touch()
        while len(list((ROOT / "met").iterdir())) < 2:
            time.sleep(0.02)
    if how == "stubborn":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def stop(number: int, frame: object) -> None:
    """A signal that asks for an end; it may come several times."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """One job: a beat every twentieth of a second until its time is over."""
    record = blank(cfg, cfg.mode)
    folder = place(cfg, record)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # of two sweeps that need one pretraining, the second waits
        if decide(folder, record.hash, resume=True, sweep=True, retry_failed=True, code={})[0] != "done":
            run(cfg, record, folder)


def run(cfg: DictConfig, record: Record, folder: Path) -> None:
    """Its work. Ends the process."""
    seen = {"pid": os.getpid(), "device": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": cfg.hardware.threads}
    record.device, record.started = {**seen, "shared": os.environ["XCLS_SHARED"] == "1"}, time.time()
    events = Events(folder)
    events.add("resume" if any(folder.glob("ckpt_*.pt")) else "start", seen)
    write_record(record, folder)
    status, cause, code = "completed", None, 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        for beat in range(record.steps):
            if beat == min(3, record.steps // 2):
                misbehave(cfg.how, folder)
            time.sleep(0.05)
            record.step = beat + 1
            events.add("step", {"step": record.step, "step_loss": 1 / record.step})
    except KeyboardInterrupt as asked:
        status, cause, code = "interrupted", f"stopped by {asked}", 130
        time.sleep(0.3)  # saving takes its time
        events.add("saved", {"step": record.step})
    except ValueError as error:
        status, cause, code = "failed", f"ValueError: {error}", 1
    record.status, record.cause, record.ended = status, cause, time.time()
    write_record(record, folder)
    events.add("end", {"status": status})
    sys.exit(code)


if __name__ == "__main__":
    build = types.ModuleType("xcls.build")
    build.job_specs = job_specs
    sys.modules["xcls.build"] = build
    try:
        main()
    except UserError as fault:
        print(f"run.py: {fault}", file=sys.stderr)
        sys.exit(2)
