"""From a plan to an exit code: what each mode checks, prepares, runs and leaves behind."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

from filelock import FileLock, Timeout

from xcls.build import Plan, check_architecture, check_head, make_classifier, make_language_model
from xcls.config.files import baseline_values, pretraining_values, resolved_values, write_values
from xcls.config.overrides import quoted
from xcls.config.schema import Config, UserError
from xcls.data.tokenizer import TextTokenizer, from_json, make_tokenizer
from xcls.report.reproduce import read_patch, script_for
from xcls.runs.identity import run_folder
from xcls.runs.record import Record, carry_over, read_record, write_atomic
from xcls.runs.spec import completed_pretraining
from xcls.runs.subprocesses import run_child
from xcls.stages.folder import DONE, changed_code, decide, read_or_refuse, refuse_twin, take_back
from xcls.train.checkpoint import load_for_use
from xcls.train.journal import Journal, one_line
from xcls.train.provenance import note_sources
from xcls.train.randomness import seed_everything
from xcls.train.signals import Interrupted

OK, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130


def start(config: Config, choices: dict[str, str], folder: Path | None, *, command: list[str], root: Path) -> int:
    """Runs `config.mode` and gives the exit code. `folder`: the run that fine-tuning, eval or predict reads.

    Raises UserError for bad input, before anything is written.
    """
    plan = Plan(config, choices, folder, command, root)
    return MODES[config.mode](plan)


def _init(plan: Plan) -> int:
    """Writes `pretrain/<exp>/config.yaml`, ready to edit."""
    if not plan.config.exp:
        raise UserError("exp: mode=init needs the name of the folder to make: exp=<name>.")
    path = plan.runs / "pretrain" / plan.config.exp / "config.yaml"
    refuse_twin(path.parent)
    if path.exists():
        raise UserError(f"{path} is there already. Edit it, remove it, or choose another exp=….")
    plan.source.fingerprint()  # a path that is not there shows now
    path.parent.mkdir(parents=True, exist_ok=True)
    write_values(
        path,
        pretraining_values(plan.config, plan.choices),
        f"Edit, then: python run.py mode=pretrain exp={plan.config.exp}",
    )
    print(f"{path.relative_to(plan.runs)} is ready to edit. Then: python run.py mode=pretrain exp={plan.config.exp}")
    return OK


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the run's folder against a second process; a dead owner holds nothing. Raises UserError.

    Where one run makes another that several may need (XCLS_WAIT=1), the second process waits for the first instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(folder / ".lock"))
    try:
        lock.acquire(
            timeout=-1 if os.environ.get("XCLS_WAIT") == "1" else 1
        )  # 1 s: `make status` looks at it for an instant
    except Timeout as error:
        raise UserError(f"{folder} is being run by another process. Wait for it, or choose another exp=….") from error
    try:
        yield
    finally:
        lock.release()


def _train(plan: Plan) -> int:
    """mode=pretrain, finetune, baseline: decides, checks the data, runs the stage, tells how it ended.

    A launcher says in XCLS_HASH which run it has planned: the files may have changed while the job waited.
    """
    config = plan.config
    if os.environ.get("XCLS_HASH") not in (None, "", plan.digest):
        raise UserError(
            "This is not the run that its sweep planned: the code of attention or position, or the data, has changed "
            "since the sweep began. Type the sweep again: it plans the run anew."
        )
    how = {
        "resume": config.resume,
        "sweep": config.sweep is not None,
        "retry_failed": config.retry_failed,
        "code": plan.code,
    }
    state, record = decide(plan.folder, plan.digest, **how)
    if state == DONE:
        assert record is not None
        print(f"{_shown(plan)}: nothing to do, it is {record.status}" + (f" ({record.cause})" if record.cause else ""))
        return OK if record.status == "completed" else FAILED
    if config.mode != "baseline":
        plan.check_device()
        check_architecture(config)
    plan.freeze()
    prepared = plan.data()
    if config.mode == "finetune":
        check_head(config, prepared.classes)
        if config.sweep is not None and os.environ.get("XCLS_BASELINE") != "queued":  # a launcher may have a job for it
            _baseline_first(plan)
        if config.pretrain == "auto":
            plan.parent = _pretraining_first(plan)
    kept = {path.name for path in plan.folder.iterdir()} if plan.folder.is_dir() else set()
    with _locked(plan.folder):
        state, record = decide(plan.folder, plan.digest, **how)  # another process may have been here meanwhile
        if state == DONE:
            return OK
        try:
            return _run_stage(plan, prepared, record)
        except UserError:  # refused before it began to train: as if it had not been typed
            if not any(plan.folder.glob("ckpt_*.pt")):
                take_back(plan.folder, kept)
            raise
        except KeyboardInterrupt as stop:  # before the journal was open, or after it was closed
            if (plan.folder / "record.json").is_file():
                raise KeyboardInterrupt(
                    f"{_shown(plan)}: interrupted; the same command with resume=true goes on."
                ) from stop
            take_back(plan.folder, kept)
            raise


def _run_stage(plan: Plan, prepared: Any, before: Record | None) -> int:
    """Runs the stage in its folder, with the journal open. `before`: the record of the run's earlier lives, from whose
    last checkpoint it goes on, or from the beginning where there is none."""
    config, folder = plan.config, plan.folder
    record = plan.record(prepared)
    if before is not None:
        carry_over(record, before)
    journal = Journal(folder=folder, record=record, wandb=config.wandb)
    try:
        with journal:
            note_sources(journal, plan.sources)
            if config.mode != "baseline" and plan.precision.warn:
                journal.warn(plan.precision.why)
            parent = _parent(plan, journal)
            tokenizer = _tokenizer(plan, prepared, parent)
            _write_files(plan, record)
            for message in prepared.report["warnings"]:
                journal.warn(message)
            seed_everything(config.seed)  # before the model is made: its first weights follow from the seed
            STAGES[config.mode](plan, prepared, tokenizer, parent, journal, before is not None)
        code = OK
    except (Interrupted, KeyboardInterrupt) as stop:
        print(
            f"{_shown(plan)}: interrupted at step {record.step} ({one_line(stop)}); the same command with resume=true goes on.",
            file=sys.stderr,
        )
        code = INTERRUPTED
    except UserError:
        raise
    except Exception as error:
        print(
            f"{_shown(plan)}: failed: {one_line(error)}\n  traceback: {folder / 'logs' / 'traceback.txt'}",
            file=sys.stderr,
        )
        code = FAILED
    try:
        write_atomic(folder / "reproduce.sh", script_for(record, _origins(plan), patches=read_patch(folder, record)))
        (folder / "reproduce.sh").chmod(0o755)
    except OSError as error:  # a full disk; how the run ended is told already
        print(f"WARNING: {folder / 'reproduce.sh'}: {error.strerror}", file=sys.stderr)
    if code == OK:
        print(_summary(plan, record))
    return code


def _parent(plan: Plan, journal: Journal) -> dict[str, Any] | None:
    """The checkpoint that fine-tuning starts from, noted in the record; None from scratch."""
    if plan.config.mode != "finetune" or plan.parent is None:
        return None
    checkpoint = load_for_use(plan.parent, plan.config.checkpoint)
    folder = Path(os.path.relpath(plan.parent, plan.runs)).as_posix()
    journal.record.pretrain = {
        "folder": folder,
        "hash": checkpoint["hash"],
        "checkpoint": plan.config.checkpoint,
        "step": checkpoint["progress"]["step"],
        "stage": checkpoint["stage"],
    }
    changed = changed_code(read_or_refuse(plan.parent), plan.code)
    if changed:
        journal.warn(
            f"{folder} was trained with other code of {changed} than there is now; this run goes on with the new code."
        )
    return checkpoint


def _tokenizer(plan: Plan, prepared: Any, parent: dict[str, Any] | None) -> TextTokenizer | None:
    """The parent's tokenizer, else one made for this text; a baseline needs none."""
    if plan.config.mode == "baseline":
        return None
    return from_json(parent["tokenizer"]) if parent else make_tokenizer(plan.config.tokenizer, prepared.mlm_texts)


def _write_files(plan: Plan, record: Record) -> None:
    """The configuration as the user may edit it (pretraining) and as it was resolved."""
    config_file = plan.folder / "config.yaml"
    if plan.config.mode == "pretrain" and not config_file.exists():
        write_values(config_file, pretraining_values(plan.config, plan.choices), "What this run was composed of.")
    values = resolved_values(plan.config, plan.choices, plan.precision, record)
    write_values(plan.folder / "resolved_config.yaml", values, "This run, flat and fully resolved.")


def _origins(plan: Plan) -> list[Record]:
    """The records of the runs this one started from, the first of the chain first."""
    found: list[Record] = []
    folder = plan.parent
    while folder is not None and len(found) < 8:
        try:
            found.insert(0, read_record(folder))
        except ValueError:
            break
        folder = plan.runs / found[0].pretrain["folder"] if found[0].pretrain else None
    return found


def _pretrain_stage(plan: Plan, prepared: Any, tokenizer: Any, parent: Any, journal: Journal, resume: bool) -> None:
    from xcls.stages.pretrain import pretrain
    from xcls.stages.texts import language_data

    config = plan.config
    data = language_data(prepared, tokenizer, seq_len=config.seq_len, truncate=config.dataset.truncate)
    pretrain(
        model=make_language_model(config, vocab_size=tokenizer.vocab_size),
        data=data,
        tokenizer=tokenizer,
        masking=config.masking,
        training=config.pretraining,
        hardware=config.hardware,
        precision=plan.precision,
        seed=config.seed,
        journal=journal,
        resume=resume,
    )


def _finetune_stage(plan: Plan, prepared: Any, tokenizer: Any, parent: Any, journal: Journal, resume: bool) -> None:
    from xcls.stages.finetune import finetune
    from xcls.stages.texts import classification_data

    config = plan.config
    data = classification_data(prepared, tokenizer, seq_len=config.seq_len, truncate=config.dataset.truncate)
    finetune(
        model=make_classifier(config, vocab_size=tokenizer.vocab_size, classes=prepared.classes),
        data=data,
        tokenizer=tokenizer,
        training=config.finetuning,
        hardware=config.hardware,
        precision=plan.precision,
        seed=config.seed,
        journal=journal,
        resume=resume,
        parent=parent,
    )


def _baseline_stage(plan: Plan, prepared: Any, tokenizer: Any, parent: Any, journal: Journal, resume: bool) -> None:
    from xcls.stages.baseline import baseline

    baseline(prepared=prepared, plan=plan.config.baseline, journal=journal, resume=resume)


def _process(overrides: list[str], root: Path) -> int:
    """Runs run.py in a process of its own (its memory is not ours) and gives its exit code.

    Raises KeyboardInterrupt where this process was asked to end meanwhile; the child has saved then.
    """
    command = [sys.executable, str(root / "run.py"), *overrides]
    code, asked = run_child(command, {**os.environ, "XCLS_WAIT": "1", "XCLS_HASH": ""})
    if asked:
        raise KeyboardInterrupt("Interrupted in what this run needs first; the same command goes on with it.")
    return code


def _baseline_first(plan: Plan) -> None:
    """Trains the baseline of these data in this sweep unless it is there; a failure is a warning, not our end."""
    other = plan.variant(mode="baseline", seed=0)
    folder = run_folder(other.as_dict, other.choices, other.digest, sweep=plan.config.sweep, root=plan.runs)
    if (folder / "record.json").is_file() and read_or_refuse(folder).status == "completed":
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / ".making")):
        write_values(
            folder / "config.yaml", baseline_values(other.config, other.choices), "What this baseline was made of."
        )
        code = _process(
            ["mode=baseline", f"template={quoted(folder / 'config.yaml')}", f"sweep={plan.config.sweep}"], plan.root
        )
    if code != OK:
        print(f"WARNING: the baseline of {plan.config.dataset.name} did not complete: {folder}", file=sys.stderr)


def _pretraining_first(plan: Plan) -> Path:
    """The folder of the pretraining run that `pretrain=auto` stands for; makes it, once, where it is missing.

    Raises RuntimeError where it did not complete.
    """
    wanted = plan.pretraining
    made = completed_pretraining(wanted)
    if made is not None:
        return made
    folder = wanted.folder
    kept = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / ".making")):
        if not (folder / "record.json").is_file() or read_or_refuse(folder).status != "completed":
            write_values(
                folder / "config.yaml", pretraining_values(wanted.config, wanted.choices), "Made by pretrain=auto."
            )
            code = _process(["mode=pretrain", f"exp={folder.name}", "resume=true"], plan.root)
            if code == INTERRUPTED:
                raise KeyboardInterrupt(
                    f"{folder}: the pretraining run that comes first was interrupted; the same command goes on with it."
                )
            if code == REFUSED:
                take_back(folder, kept)
            if code != OK:
                raise UserError(
                    f"{folder}: the pretraining run that pretrain=auto needs did not complete (exit code {code})."
                )
    return folder


def _evaluate(plan: Plan) -> int:
    """mode=eval."""
    from xcls.stages.finished import evaluate_run

    plan.check_device()
    return evaluate_run(plan)


def _predict(plan: Plan) -> int:
    """mode=predict."""
    from xcls.stages.finished import predict_documents

    plan.check_device()
    return predict_documents(plan)


def _bench(plan: Plan) -> int:
    """mode=bench."""
    from xcls.bench.start import bench  # the measuring code, which no other mode needs

    return bench(plan)


def _shown(plan: Plan) -> str:
    """The run's folder as a user types it."""
    return Path(os.path.relpath(plan.folder, plan.runs)).as_posix()


def _summary(plan: Plan, record: Record) -> str:
    """One line about a completed run."""
    parts = []
    for split in ("validation", "test"):
        scores = record.metrics.get(split) or {}
        found = [
            f"{name} {scores[name]:.4f}"
            for name in ("macro_f1", "accuracy", "val_loss")
            if scores.get(name) is not None
        ]
        parts += [f"{split} {', '.join(found)}"] if found else []
    speed = record.costs.get("tokens_per_s")
    parts += [f"{speed:,.0f} tokens/s"] if speed else []
    return f"{_shown(plan)}: completed. " + "; ".join(parts)


STAGES: dict[str, Callable[..., None]] = {
    "pretrain": _pretrain_stage,
    "finetune": _finetune_stage,
    "baseline": _baseline_stage,
}
MODES: dict[str, Callable[[Plan], int]] = {
    "init": _init,
    "pretrain": _train,
    "finetune": _train,
    "baseline": _train,
    "eval": _evaluate,
    "predict": _predict,
    "bench": _bench,
}
