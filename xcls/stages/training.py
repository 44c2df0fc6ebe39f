"""mode=pretrain, finetune, baseline: from a `RunSpec` to an exit code, and the files in a run's folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from xcls.config.files import resolved_values, write_values
from xcls.config.schema import UserError, flatten
from xcls.data.splits import Prepared
from xcls.data.tokenizer import from_json, make_tokenizer
from xcls.runs.code_hash import code_files
from xcls.runs.folder import DONE, changed_code, read_or_refuse, rollback
from xcls.runs.record import Record, carry_over, read_record, write_atomic
from xcls.runs.reproduce import read_patch, script_for
from xcls.runs.spec import PLANNED, file_values
from xcls.stages.baseline import baseline
from xcls.stages.finetune import finetune
from xcls.stages.needs import FAILED, INTERRUPTED, OK, make_first
from xcls.stages.pretrain import pretrain
from xcls.stages.spec import RunSpec
from xcls.stages.texts import classification_data, language_data
from xcls.train.checkpoint import load_for_use
from xcls.train.provenance import Sources, find_sources, note_sources
from xcls.train.randomness import seed_everything
from xcls.train.run_logger import RunLogger, one_line
from xcls.train.session import Session
from xcls.train.signals import Interrupted

GO_ON = "the same command with resume=true continues it"


def train(spec: RunSpec) -> int:
    """Checks the run and its data, runs what it needs first, then runs it. Returns the exit code.

    Raises UserError for bad input, before anything is written.
    """
    config = spec.config
    if os.environ.get(PLANNED) not in (None, "", spec.digest):
        raise UserError(
            "This run differs from the one that its sweep planned: the code of attention or position, or the data, "
            "has changed since the sweep began. Start the sweep again; it plans its runs again."
        )
    how = {"resume": config.resume, "sweep": config.sweep is not None}
    state, record = spec.decide(**how)
    if state == DONE:
        assert record is not None
        print(f"{spec.shown}: nothing to do, it is {record.status}" + (f" ({record.cause})" if record.cause else ""))
        return OK if record.status == "completed" else FAILED
    if config.mode != "baseline":
        spec.check_device()
        spec.build.check_architecture(config)
    targets = [getattr(config, part)["_target_"] for part in spec.code]
    files = [file for target in targets for file in code_files(target).values()]
    sources = find_sources(files)  # before the data are read, since the files may change meanwhile
    prepared = spec.data()
    if config.mode == "finetune":
        spec.check_head(prepared.classes)
    make_first(spec)
    kept = {path.name for path in spec.folder.iterdir()} if spec.folder.is_dir() else set()
    with _lock(spec):
        state, record = spec.decide(**how)  # another process may have run it meanwhile
        if state == DONE:
            return OK
        try:
            return run_stage(spec, prepared, record, sources)
        except UserError:  # refused before training: removes everything that it has written
            if not any(spec.folder.glob("ckpt_*.pt")):
                rollback(spec.folder, kept)
            raise
        except KeyboardInterrupt as stop:  # before the run's log was open, or after it was closed
            if (spec.folder / "record.json").is_file():
                raise KeyboardInterrupt(f"{spec.shown}: interrupted; {GO_ON}.") from stop
            rollback(spec.folder, kept)
            raise


def _lock(spec: RunSpec) -> AcquireReturnProxy:
    """Locks the run's folder against a second process; the lock ends with the process. Raises UserError.

    Several sweeps may need the same pretraining or baseline: then this waits for the process that runs it.
    """
    shared = bool(os.environ.get(PLANNED)) and spec.config.mode != "finetune"
    spec.folder.mkdir(parents=True, exist_ok=True)
    try:  # waits 1 s, since `make status` holds the lock for an instant
        return FileLock(str(spec.folder / ".lock")).acquire(timeout=-1 if shared else 1)
    except Timeout as error:
        text = f"{spec.folder}: another process is running this. Wait for it, or choose another exp=…."
        raise UserError(text) from error


def run_stage(spec: RunSpec, prepared: Prepared, before: Record | None, sources: Sources) -> int:
    """Runs the stage in its folder and gives the exit code. Raises UserError.

    `before`: the record of an interrupted run. It continues from its last checkpoint, or starts again without one.
    """
    folder, record = spec.folder, spec.record(prepared)
    if before is not None:
        carry_over(record, before)
    logger = RunLogger(folder=folder, record=record, wandb=spec.config.wandb)
    code = OK
    try:
        with logger:
            note_sources(logger, sources)
            if spec.config.mode != "baseline" and spec.precision.warn:
                logger.warn(spec.precision.why)
            _stage(spec, prepared, logger, resume=before is not None)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"{spec.shown}: interrupted at step {record.step} ({one_line(stop)}); {GO_ON}.", file=sys.stderr)
        code = INTERRUPTED
    except UserError:
        raise
    except Exception as error:
        print(f"{spec.shown}: failed: {one_line(error)}\n  traceback: {folder}/logs/traceback.txt", file=sys.stderr)
        code = FAILED
    try:
        write_atomic(folder / "reproduce.sh", script_for(record, _origins(spec), patches=read_patch(folder, record)))
        (folder / "reproduce.sh").chmod(0o755)
    except OSError as error:  # a full disk; the final status is printed already
        print(f"WARNING: {folder / 'reproduce.sh'}: {error.strerror}", file=sys.stderr)
    if code == OK:
        print(_summary(spec, record))
    return code


def _stage(spec: RunSpec, prepared: Prepared, logger: RunLogger, *, resume: bool) -> None:
    """Runs the mode, from the tokenizer to the results."""
    config, folder = spec.config, spec.folder
    parent = _parent(spec, logger)
    if config.mode == "pretrain" and not (folder / "config.yaml").exists():
        values = file_values("pretrain", flatten(spec.tree), spec.choices)
        write_values(folder / "config.yaml", values, "The settings that this run was started with.")
    values = resolved_values(config, spec.choices, spec.precision, logger.record)
    write_values(folder / "resolved_config.yaml", values, "This run, flat and fully resolved.")
    for message in prepared.report["warnings"]:
        logger.warn(message)
    if config.mode == "baseline":
        baseline(prepared=prepared, plan=config.baseline, logger=logger, resume=resume)
        return
    tokenizer = from_json(parent["tokenizer"]) if parent else make_tokenizer(config.tokenizer, prepared.mlm_texts)
    text: dict[str, Any] = {"seq_len": config.seq_len, "truncate": config.dataset.truncate}
    training = config.pretraining if config.mode == "pretrain" else config.finetuning
    session = Session(tokenizer, training, config.hardware, spec.precision, config.seed, logger, resume)
    seed_everything(config.seed)  # before the model is made: its first weights follow from the seed
    if config.mode == "pretrain":
        data = language_data(prepared, tokenizer, **text)
        model = spec.build.make_language_model(config, vocab_size=tokenizer.vocab_size)
        pretrain(model=model, data=data, masking=config.masking, session=session)
    else:
        splits = classification_data(prepared, tokenizer, **text)
        classifier = spec.build.make_classifier(config, vocab_size=tokenizer.vocab_size, classes=prepared.classes)
        finetune(model=classifier, data=splits, session=session, parent=parent)


def _parent(spec: RunSpec, logger: RunLogger) -> dict[str, Any] | None:
    """The checkpoint that fine-tuning starts from, also written into the record; None for training from scratch."""
    if spec.config.mode != "finetune" or spec.parent is None:
        return None
    checkpoint = load_for_use(spec.parent, spec.config.checkpoint)
    folder = Path(os.path.relpath(spec.parent, spec.runs)).as_posix()
    logger.record.pretrain = {
        "folder": folder,
        "hash": checkpoint["hash"],
        "checkpoint": spec.config.checkpoint,
        "step": checkpoint["progress"]["step"],
        "stage": checkpoint["stage"],
    }
    changed = changed_code(read_or_refuse(spec.parent), spec.code)
    if changed:
        logger.warn(f"The code of {changed} has changed since {folder} was trained; this run uses today's code.")
    return checkpoint


def _origins(spec: RunSpec) -> list[Record]:
    """The records of the runs that this one started from, the oldest first."""
    found: list[Record] = []
    folder = spec.parent
    while folder is not None and len(found) < 8:
        try:
            found.insert(0, read_record(folder))
        except ValueError:
            break
        pretrain = found[0].pretrain
        folder = spec.runs / pretrain["folder"] if pretrain else None
    return found


def _summary(spec: RunSpec, record: Record) -> str:
    """One line about a completed run."""
    parts = []
    for split, scores in record.metrics.items():
        found = [(name, scores.get(name)) for name in ("macro_f1", "accuracy", "val_loss")]
        shown = [f"{name} {value:.4f}" for name, value in found if value is not None]
        parts += [f"{split} {', '.join(shown)}"] if shown else []
    speed = record.costs.get("tokens_per_s")
    return f"{spec.shown}: completed. " + "; ".join([*parts, *([f"{speed:,.0f} tokens/s"] if speed else [])])
