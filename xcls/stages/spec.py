"""A run before it begins: its configuration, and what follows from it (hash, name, folder, device, data)."""

from __future__ import annotations

import copy
import hashlib
import os
import sys
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Callable

from xcls.config.schema import Config, UserError, flatten
from xcls.data.source import Source, data_fingerprint
from xcls.data.splits import Prepared, prepare
from xcls.data.tokenizer import check_tokenizer, given_vocabulary
from xcls.runs.folder import decide, read_or_refuse
from xcls.runs.identity import code_of, run_folder, run_hash, run_name, runs_root
from xcls.runs.record import Record, plain
from xcls.train.cards import Cards, here
from xcls.train.precision import Precision, check_cards, resolve


@dataclass
class RunSpec:
    """One run before it begins. `parent`: the run that fine-tuning starts from, or that eval and predict read.

    `find`: returns the GPUs that the run may use.
    """

    config: Config
    choices: dict[str, str]
    parent: Path | None
    command: list[str]
    root: Path
    build: Any  # the module xcls.build, which makes objects from the configuration; stages must not import it
    find: Callable[[], Cards] = here

    @cached_property
    def source(self) -> Source:
        """Where the text comes from."""
        return self.build.make_source(self.config)

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the data: equal for equal rows."""
        return data_fingerprint(self.source, self.config.dataset.extra)

    @cached_property
    def precision(self) -> Precision:
        """Device and dtype, `auto` resolved."""
        return resolve(self.config.hardware, self.find)

    @cached_property
    def code(self) -> dict[str, str]:
        """The hashes of the code of attention and position. Raises UserError if a file cannot be read."""
        try:
            return code_of(self.tree)
        except (SyntaxError, OSError) as error:
            raise UserError(f"{error.filename}: attention or position imports it, but: {error}") from error

    @cached_property
    def parent_hash(self) -> str | None:
        """The hash of the pretraining run, completed or planned; None for training from scratch."""
        if self.config.mode != "finetune" or self.config.pretrain is None:
            return None
        if self.config.pretrain == "auto":
            return self.pretraining.digest
        assert self.parent is not None
        return f"{read_or_refuse(self.parent).hash}:{self.config.checkpoint}"

    @cached_property
    def digest(self) -> str:
        """The run's hash."""
        check_tokenizer(self.config.tokenizer)
        given = given_vocabulary(self.config.tokenizer) if self.parent is None else None
        return run_hash(
            self.tree,
            data=self.fingerprint,
            dtype=self.precision.dtype,
            vocabulary=given,
            parent=self.parent_hash,
            code=self.code,
        )

    @property
    def tree(self) -> dict[str, Any]:
        """The configuration as plain nested dicts."""
        return asdict(self.config)

    @property
    def name(self) -> str:
        """The run's name: `<dataset>/<mode>-<attention>-…`."""
        return run_name(self.tree, self.choices, self.digest)

    @property
    def runs(self) -> Path:
        """The folder of pretrain/, finetune/ and multirun/."""
        return runs_root(self.root)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return run_folder(self.tree, self.choices, self.digest, sweep=self.config.sweep, root=self.runs)

    @property
    def shown(self) -> str:
        """The run's folder relative to `runs`, for messages."""
        return Path(os.path.relpath(self.folder, self.runs)).as_posix()

    def variant(self, *, mode: str, seed: int) -> RunSpec:
        """Another run on the same data: a baseline, or the pretraining that this one starts from."""
        config = copy.deepcopy(self.config)
        config.mode, config.seed, config.exp, config.pretrain, config.sweep = mode, seed, None, None, None
        return RunSpec(config, {**self.choices, "mode": mode}, None, [], self.root, self.build, self.find)

    @cached_property
    def pretraining(self) -> RunSpec:
        """The pretraining run that `pretrain=auto` stands for."""
        spec = self.variant(mode="pretrain", seed=self.config.pretrain_seed)
        spec.config.exp = spec.name.replace("/", "-")
        return spec

    def decide(self, *, resume: bool, sweep: bool) -> tuple[str, Record | None]:
        """What to do with the run's folder, and the record found there: see `runs.folder.decide`."""
        how = {"resume": resume, "sweep": sweep, "retry_failed": self.config.retry_failed}
        return decide(self.folder, self.digest, code=self.code, **how)

    def check_device(self) -> None:
        """Refuses a device that cannot compute this run; prints what `auto` has chosen. Raises UserError."""
        precision = self.precision
        if precision.device == "cuda":
            emulate = self.config.mode in ("eval", "predict")  # the dtype is that of the run's training
            warning = check_cards(precision, self.find(), emulate=emulate)
            if warning:
                print(f"WARNING: {warning}", file=sys.stderr)
        if precision.why:
            print(("WARNING: " if precision.warn else "") + precision.why, file=sys.stderr)

    def check_head(self, classes: list[str]) -> None:
        """Refuses a head.num_classes that differs from the number of `classes` of the data. Raises UserError."""
        wanted = self.config.head.num_classes
        if wanted is not None and wanted != len(classes):
            raise UserError(
                f"head.num_classes={wanted}: {self.config.dataset.name} has {len(classes)} classes "
                f"({', '.join(classes[:8])}). Leave it null, or name another data set."
            )

    def data(self) -> Prepared:
        """The splits, read and checked. Raises UserError for data that cannot be used for training."""
        return prepare(self.source, self.config.dataset)

    def record(self, prepared: Prepared | None) -> Record:
        """The record of this run before its first step; `prepared=None` if its data were not read.

        A launcher that runs several jobs on one device sets XCLS_SHARED=1 in the environment of each.
        """
        data: dict[str, Any] = {"name": self.config.dataset.name, "fingerprint": self.fingerprint}
        if prepared is not None:
            data["train_rows_hash"] = hashlib.sha256("\n".join(prepared.train["id"]).encode()).hexdigest()
            data.update({key: value for key, value in prepared.report.items() if key != "warnings"})
        return Record(
            run=self.name,
            mode=self.config.mode,
            status="running",
            hash=self.digest,
            seed=self.config.seed,
            seq_len=self.config.seq_len,
            exp=self.config.sweep or self.config.exp,
            study=self.config.study,
            choices=self.choices,
            config=plain(flatten(self.tree)),  # without secrets
            code=self.code,
            data=data,
            device={"shared": os.environ.get("XCLS_SHARED") == "1"},
            command=plain(self.command),
        )
