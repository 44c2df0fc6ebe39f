"""The runs that another run needs first: in a sweep the baseline of its data; with `pretrain=auto` its pretraining.

A launcher turns them into jobs; a single run starts them as processes, one after another.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from xcls.config.files import yaml_text
from xcls.config.schema import UserError, flatten
from xcls.data.cache import digest
from xcls.runs.folder import DONE, read_or_refuse, rollback
from xcls.runs.paths import quoted
from xcls.runs.record import read_record, write_atomic
from xcls.runs.spec import PLANNED, JobSpec, file_values
from xcls.runs.subprocesses import run_child
from xcls.stages.spec import RunSpec

HASHED = ("pretrain", "finetune", "baseline")  # the modes that create a run; the others read one, or measure
OK, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130  # exit codes
classes_of: dict[str, list[str]] = {}  # fingerprint of data that this process has checked -> classes


def job_spec(spec: RunSpec, *, resume: bool) -> JobSpec:
    """The run of `spec` as a job of a sweep, without the jobs that it needs first. Raises UserError."""
    action, found = spec.decide(resume=resume, sweep=True)
    precision = None if spec.config.mode == "baseline" else spec.precision
    return JobSpec(
        kind=spec.config.mode,
        folder=spec.folder,
        hash=spec.digest,
        action=action,
        found=found,
        record=spec.record(None),
        gpu=precision is not None and precision.device == "cuda",
        precision=precision,
    )


def with_needs(spec: RunSpec) -> list[JobSpec]:
    """The jobs that the run of `spec` needs first, then that run itself.

    Raises UserError for everything that the run would refuse. Equal data are read once for all runs of this process.
    """
    config = spec.config
    if config.mode not in HASHED:
        return [JobSpec(kind=config.mode, gpu=spec.precision.device == "cuda", precision=spec.precision)]
    own = job_spec(spec, resume=config.resume)
    if own.action != DONE:
        if config.mode != "baseline":
            spec.build.check_architecture(config)
        key = digest([spec.fingerprint, asdict(config.dataset)])
        if key not in classes_of:
            classes_of[key] = spec.data().classes
        if config.mode == "finetune":
            spec.check_head(classes_of[key])
    first = needed_first(spec)
    own.needs = [job.hash for job in first if job.hash is not None]
    return [*first, own]


def needed_first(spec: RunSpec) -> list[JobSpec]:
    """The jobs that must be done before the run of `spec` begins, in order. Raises UserError.

    These are: in a sweep the baseline of its data; with `pretrain=auto` its pretraining, completed or not.
    """
    config, jobs = spec.config, []
    if config.mode == "finetune" and config.sweep is not None:
        other = spec.variant(mode="baseline", seed=0)
        other.config.sweep = config.sweep
        words = [f"template={quoted(str(other.folder / 'config.yaml'))}", f"sweep={config.sweep}"]
        words.append(f"retry_failed={str(config.retry_failed).lower()}")
        jobs.append(_job_with_file(other, words))
    if config.mode == "finetune" and config.pretrain == "auto":
        wanted = spec.pretraining
        made = completed_pretraining(wanted)
        if made is not None:
            found = read_record(made)
            words = found.command or ["mode=pretrain", f"exp={made.name}"]
            jobs.append(JobSpec("pretrain", folder=made, hash=wanted.digest, overrides=words, action=DONE, found=found))
        else:
            jobs.append(_job_with_file(wanted, [f"exp={wanted.folder.name}", "resume=true"]))
    return jobs


def _job_with_file(spec: RunSpec, words: list[str]) -> JobSpec:
    """The run of `spec` as a job that reads its values from `config.yaml` in its folder."""
    job = job_spec(spec, resume=True)
    job.overrides = [f"mode={spec.config.mode}", *words]
    values = file_values(spec.config.mode, flatten(spec.tree), spec.choices)
    job.file = yaml_text(values, "The settings of this run, which another run needs.")
    return job


def completed_pretraining(wanted: RunSpec) -> Path | None:
    """The folder of a completed pretraining run with the hash of `wanted`, in a sweep or not; None if there is none."""
    for path in [*wanted.runs.glob("pretrain/*/record.json"), *wanted.runs.glob("multirun/*/*/pretrain-*/record.json")]:
        try:
            record = read_record(path.parent)
        except ValueError:
            continue
        if record.hash == wanted.digest and record.status == "completed":
            return path.parent
    return None


def make_first(spec: RunSpec) -> None:
    """Runs the jobs that `spec` needs first, unless a launcher has done so. Sets `spec.parent` for `pretrain=auto`.

    A failed baseline gives a warning: only the report needs it. Raises UserError if a pretraining did not complete,
    KeyboardInterrupt if a signal stopped this process meanwhile (the other run has saved then).
    """
    for job in needed_first(spec):
        if not job.completed and not os.environ.get(PLANNED):
            code = _run_job(job, spec.root)
            if code != OK and job.kind == "baseline":
                print(f"WARNING: {job.folder}: the baseline of this sweep did not complete.", file=sys.stderr)
        if job.kind == "pretrain":
            spec.parent = completed_pretraining(spec.pretraining)
            if spec.parent is None:
                raise UserError(f"{job.folder}: the pretraining run that pretrain=auto needs did not complete.")


def _run_job(job: JobSpec, root: Path) -> int:
    """Runs `job` in a separate process, so that its memory is freed afterwards. Returns its exit code.

    A lock ensures that only one of several processes runs it.
    """
    assert job.folder is not None and job.overrides is not None and job.file is not None
    kept = {path.name for path in job.folder.iterdir()} if job.folder.is_dir() else set()
    job.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(job.folder / ".making")):
        if (job.folder / "record.json").is_file() and read_or_refuse(job.folder).status == "completed":
            return OK
        write_atomic(job.folder / "config.yaml", job.file)
        command = [sys.executable, str(root / "run.py"), *job.overrides]
        code, asked = run_child(command, {**os.environ, PLANNED: job.hash or ""})
        if asked or code == INTERRUPTED:
            raise KeyboardInterrupt(
                f"{job.folder}, which this run needs, was interrupted; the same command continues it."
            )
        if code == REFUSED:
            rollback(job.folder, kept)
    return code
