"""What a configuration is: one typed dataclass per node, their limits, and the error a user sees.

Standard library only, so that `run.py` can refuse a bad configuration before anything heavy is imported. The nodes
`attention`, `position` and `dataset.source` are typed by the signature of their `_target_` instead (targets.py).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import MISSING, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

MAX_SEQ_LEN = 16_384
MODES = ("init", "pretrain", "finetune", "eval", "predict", "baseline", "bench")


Flat = Dict[str, Union[str, int, float, bool, None, List[Any]]]


class UserError(Exception):
    """Bad input: the message says what, where and what to do. `run.py` prints it and exits with 2, no traceback."""


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """`' Did you mean 'x'?'` for the closest of `known` but `word` itself, or an empty string when none is close."""
    return "".join(
        f" Did you mean '{close}'?"
        for close in difflib.get_close_matches(word, [w for w in known if w != word], n=1, cutoff=0.5)
    )


def one_of(*choices: str, default: Any = MISSING) -> Any:
    """A field that takes one of these strings."""
    return field(default=choices[0] if default is MISSING else default, metadata={"choices": choices})


@lru_cache(maxsize=1)
def _shipped() -> Flat:
    """conf/config.yaml as flat keys."""
    import yaml  # only who makes a configuration needs it; `make status` runs without packages

    path = Path(__file__).resolve().parents[2] / "conf" / "config.yaml"
    return flatten(yaml.safe_load(path.read_text(encoding="utf-8")))


def shipped(key: str, low: float | None = None, high: float | None = None, *, choices: tuple[str, ...] = ()) -> Any:
    """A field whose default stands in conf/config.yaml as `key`, with inclusive limits or choices."""
    metadata = {"choices": choices} if choices else {"low": low, "high": high}
    return field(default_factory=lambda: _shipped()[key], metadata=metadata)


def below(node: str) -> dict[str, Any]:
    """The defaults of a node of conf/config.yaml."""
    start = f"{node}."
    return {key.removeprefix(start): value for key, value in _shipped().items() if key.startswith(start)}


def between(default: Any, low: float | None = None, high: float | None = None) -> Any:
    """A numeric field with inclusive limits; None is allowed where the annotation is Optional."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass
class Size:
    """The encoder's width and depth (the BERT miniatures), and the form of its blocks."""

    name: str = "tiny"
    num_layers: int = between(2, 1, 128)
    width: int = between(128, 8, 16_384)
    num_heads: int = between(2, 1, 512)
    feed_forward: int = between(512, 8, 65_536)
    norm: str = one_of("pre", "post")
    activation: str = one_of("gelu", "geglu")
    dropout: float = between(0.1, 0.0, 0.95)


@dataclass
class Labels:
    """How labels in files name classes; conf/dataset/files.yaml says what each does."""

    casefold: bool = False
    missing: List[Optional[str]] = field(default_factory=lambda: ["nan"])
    many: bool = False


@dataclass
class Dataset:
    """Where the text comes from and how its splits are cut. `source` is typed by its `_target_`."""

    name: str = "pydocs"
    source: Any = None
    path: Optional[str] = None
    text: Any = "text"
    label: str = "label"
    labels: Labels = field(default_factory=Labels)
    limit: Optional[int] = between(None, 2)
    extra: List[str] = field(default_factory=list)
    validation: float = between(0.1, 0.001, 0.9)
    split_seed: int = between(0, 0)
    missing: str = one_of("skip", "refuse")
    leak: str = one_of("warn", "drop")
    truncate: str = one_of("head", "tail", "head_tail", "refuse")


@dataclass
class Tokenizer:
    """The vocabulary: trained on the corpus, loaded from `path`, or extended by `extend` words of the domain."""

    name: str = "wordpiece"
    kind: str = one_of("wordpiece", "bytes", "words")
    vocab_size: int = between(8192, 6, 1_000_000)
    lowercase: bool = True
    strip_accents: Optional[bool] = None
    min_frequency: int = between(2, 1)
    path: Optional[str] = None
    extend: int = between(0, 0, 100_000)


@dataclass
class Masking:
    """Masked language modelling by the rules of BERT (Devlin et al. 2019, 3.1) or RoBERTa (`fresh`)."""

    probability: float = shipped("masking.probability", 0.001, 0.95)
    mask_share: float = shipped("masking.mask_share", 0.0, 1.0)
    random_share: float = shipped("masking.random_share", 0.0, 1.0)
    fresh: bool = shipped("masking.fresh")
    whole_word: bool = shipped("masking.whole_word")


@dataclass
class Head:
    """The classifier on top of the encoder. `num_classes=null` takes the number of classes of the data."""

    num_classes: Optional[int] = shipped("head.num_classes", 2, 100_000)
    pooling: str = shipped("head.pooling", choices=("mean", "cls", "max"))
    dropout: float = shipped("head.dropout", 0.0, 0.95)


@dataclass
class Training:
    """One stage of training; a step is one update with the effective batch. rates.py says what a null stands for."""

    batch_size: int = shipped("finetuning.batch_size", 1, 65_536)
    epochs: Optional[float] = shipped("finetuning.epochs", 0.0, 100_000)
    min_epochs: float = shipped("finetuning.min_epochs", 0.0, 100_000)
    min_steps: int = shipped("finetuning.min_steps", 0)
    max_steps: Optional[int] = shipped("finetuning.max_steps", 1)
    lr: Optional[float] = shipped("finetuning.lr", 0.0, 10.0)
    embedding_lr_factor: Optional[float] = shipped("finetuning.embedding_lr_factor", 0.0, 1000.0)
    optimizer: str = shipped("finetuning.optimizer", choices=("adamw", "lion", "adafactor"))
    weight_decay: float = shipped("finetuning.weight_decay", 0.0, 10.0)
    beta1: float = shipped("finetuning.beta1", 0.0, 0.9999)
    beta2: float = shipped("finetuning.beta2", 0.0, 0.99999)
    schedule: str = shipped("finetuning.schedule", choices=("linear", "cosine", "constant"))
    warmup: float = shipped("finetuning.warmup", 0.0, 1.0)
    clip_norm: float = shipped("finetuning.clip_norm", 0.0)
    group_by_length: bool = shipped("finetuning.group_by_length")
    eval_every_steps: Optional[int] = shipped("finetuning.eval_every_steps", 1)
    eval_every_epochs: Optional[float] = shipped("finetuning.eval_every_epochs", 0.001)
    eval_batch_size: int = shipped("finetuning.eval_batch_size", 1, 65_536)
    checkpoint_every_steps: Optional[int] = shipped("finetuning.checkpoint_every_steps", 1)
    checkpoint_every_epochs: Optional[float] = shipped("finetuning.checkpoint_every_epochs", 0.001)
    checkpoint_every_minutes: Optional[float] = shipped("finetuning.checkpoint_every_minutes", 0.01)
    keep: int = shipped("finetuning.keep", 1)
    select_by: str = shipped(
        "finetuning.select_by", choices=("macro_f1", "accuracy", "weighted_f1", "auroc", "val_loss")
    )
    patience: Optional[int] = shipped("finetuning.patience", 1)
    redraw_every_steps: Optional[int] = shipped("finetuning.redraw_every_steps", 1)
    max_bad_steps: int = shipped("finetuning.max_bad_steps", 0)


@dataclass
class Baseline:
    """TF-IDF + logistic regression.

    `analyzer=auto`: characters where there are no words. `tuned`: also n-grams and C chosen on validation.
    """

    analyzer: str = shipped("baseline.analyzer", choices=("auto", "word", "char"))
    tuned: bool = shipped("baseline.tuned")
    max_iter: int = shipped("baseline.max_iter", 10)


@dataclass
class Bench:
    """mode=bench: which mechanisms are measured, at which lengths and dtypes, and how often.

    `attentions` are files of conf/attention, with changes (`"reformer:num_hashes=4"`); `references` are those that the
    others are compared with. `seconds`: of one length and dtype. Of what=training alone: `stages`,
    `steps_per_segment`; of what=growth: `axes`, `widths`, `depths`.
    """

    name: str = "attention"
    what: str = one_of("attention", "step", "training", "growth")
    attentions: List[str] = field(default_factory=lambda: ["sdpa", "sdpa_fused", "performer", "reformer"])
    references: List[str] = field(default_factory=lambda: ["sdpa", "sdpa_fused"])
    positions: List[str] = field(default_factory=lambda: ["none"])
    others: bool = True
    seq_lens: List[int] = field(default_factory=lambda: [512, 2048])
    dtypes: List[str] = field(default_factory=lambda: ["fp32", "bf16"])
    tokens_per_step: int = between(8192, 1)
    width: int = between(256, 8)
    num_heads: int = between(4, 1)
    num_layers: int = between(4, 1)
    rounds: int = between(7, 1, 1000)
    least_rounds: int = between(3, 1, 1000)
    seconds: float = between(60.0, 0.1)
    brief: bool = False
    time: bool = True
    memory: bool = True
    error: bool = True
    trained: Optional[str] = None
    compile: bool = False
    gradient_checkpointing: bool = False
    allocator: str = one_of("inherit", "retain", "plain")
    stages: List[str] = field(default_factory=lambda: ["finetune", "pretrain"])
    steps_per_segment: int = between(10, 1, 10_000)
    axes: List[str] = field(default_factory=lambda: ["length", "width", "depth"])
    widths: List[int] = field(default_factory=lambda: [128, 256, 512, 768])
    depths: List[int] = field(default_factory=lambda: [2, 4, 8, 12])


@dataclass
class Hardware:
    """How the machine is used. May change speed, not meaning (dtype alone is part of a run's identity)."""

    name: str = "auto"
    device: str = one_of("auto", "cpu", "cuda")
    dtype: str = one_of("auto", "fp32", "bf16", "fp16")
    micro_batch: Optional[int] = between(None, 1)
    micro_tokens: Optional[int] = between(None, 1)
    gradient_checkpointing: bool = False
    compile: bool = False
    workers: int = between(0, 0, 256)
    threads: Optional[int] = between(None, 1, 1024)
    on_oom: str = one_of("stop", "halve")


@dataclass
class Wandb:
    """Weights & Biases. Offline by default: `wandb sync <folder>` sends it later."""

    mode: str = one_of("offline", "online", "disabled")
    project: str = "xcls"
    entity: Optional[str] = None
    artifacts: str = one_of("none", "best", "all")


@dataclass
class Config:
    """The whole configuration of one run. Keys and groups are those of the folder `conf/`."""

    mode: str = one_of(*MODES, default="finetune")
    exp: Optional[str] = shipped("exp")
    seed: int = shipped("seed", 0, 2**31 - 1)
    seq_len: int = shipped("seq_len", 1, MAX_SEQ_LEN)
    pretrain: Optional[str] = shipped("pretrain")
    pretrain_seed: int = shipped("pretrain_seed", 0, 2**31 - 1)
    checkpoint: str = shipped("checkpoint")
    resume: bool = shipped("resume")
    retry_failed: bool = shipped("retry_failed")
    template: Optional[str] = shipped("template")
    split: str = shipped("split", choices=("test", "validation"))
    input: Optional[str] = shipped("input")
    output: Optional[str] = shipped("output")
    text: Any = shipped("text")
    reading: Dict[str, Any] = field(default_factory=dict)
    sweep: Optional[str] = shipped("sweep")
    study: Optional[str] = shipped("study")
    attention: Any = None
    position: Any = None
    size: Size = field(default_factory=Size)
    dataset: Dataset = field(default_factory=Dataset)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    masking: Masking = field(default_factory=Masking)
    head: Head = field(default_factory=Head)
    pretraining: Training = field(default_factory=lambda: Training(**below("pretraining")))
    finetuning: Training = field(default_factory=Training)
    baseline: Baseline = field(default_factory=Baseline)
    bench: Bench = field(default_factory=Bench)
    hardware: Hardware = field(default_factory=Hardware)
    wandb: Wandb = field(default_factory=Wandb)
    claims: Dict[str, Any] = field(default_factory=dict)


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


def check_name(key: str, value: str) -> None:
    """Refuses a name that is not one plain folder name (no path, no leading dot, no blanks)."""
    if not NAME.fullmatch(value) or value.endswith("."):
        allowed = "letters, digits, '.', '_', '+', '-', at most 100, the first a letter or digit, no path"
        raise UserError(f"{key}={value}: a plain name is needed ({allowed}). It becomes the name of a folder.")


def flatten(tree: dict[str, Any], prefix: str = "") -> Flat:
    """`{'a': {'b': 1}}` to `{'a.b': 1}`; lists stay values, an empty dict leaves nothing."""
    flat: Flat = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`; keys that are nested already are taken as they are."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        node = tree
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"{key}: '{parent}' is a value elsewhere in the same file and cannot hold '{leaf}'.")
        if isinstance(value, dict):
            above = node.get(leaf)
            value = {**(above if isinstance(above, dict) else {}), **unflatten(value)}
        node[leaf] = value
    return tree
