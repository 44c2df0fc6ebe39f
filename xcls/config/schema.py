"""The schema of a configuration: one dataclass per node, with limits; and the error for the user.

Standard library only, so that `run.py` can refuse a bad configuration before anything heavy is imported. The nodes
`attention`, `position` and `dataset.source` are checked against the signature of their `_target_` (targets.py).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Union

from xcls.config.defaults import free, from_conf, one_of, shipped, within

MAX_SEQ_LEN = 16_384
MODES = ("init", "pretrain", "finetune", "eval", "predict", "baseline", "bench")

Flat = Dict[str, Union[str, int, float, bool, None, List[Any]]]


class UserError(Exception):
    """Bad input: the message says what, where and what to do. `run.py` prints it and exits with 2, no traceback."""


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """`' Did you mean 'x'?'` for the closest of `known` other than `word`, or an empty string if none is close."""
    return "".join(
        f" Did you mean '{close}'?"
        for close in difflib.get_close_matches(word, [w for w in known if w != word], n=1, cutoff=0.5)
    )


@dataclass
@from_conf("size")
class Size:
    """The encoder's width and depth (the BERT miniatures), and the form of its blocks."""

    name: str = free()
    num_layers: int = within(1, 128)
    width: int = within(8, 16_384)
    num_heads: int = within(1, 512)
    feed_forward: int = within(8, 65_536)
    norm: str = one_of("pre", "post")
    activation: str = one_of("gelu", "geglu")
    dropout: float = within(0.0, 0.95)


@dataclass
class Labels:
    """How labels in files name classes; conf/dataset/files.yaml says what each does."""

    casefold: bool = False
    missing: List[Optional[str]] = field(default_factory=lambda: ["nan"])
    many: bool = False


@dataclass
@from_conf("dataset")
class Dataset:
    """The text and its splits. The keys of `source` are the arguments of its `_target_`."""

    name: str = free()
    source: Any = None
    path: Optional[str] = free()
    text: Any = free()
    label: str = free()
    labels: Labels = field(default_factory=Labels)
    limit: Optional[int] = within(2)
    extra: List[str] = free()
    validation: float = within(0.001, 0.9)
    split_seed: int = within(0)
    missing: str = one_of("skip", "refuse")
    leak: str = one_of("warn", "drop")
    truncate: str = one_of("head", "tail", "head_tail", "refuse")


@dataclass
@from_conf("tokenizer")
class Tokenizer:
    """The vocabulary: trained on the corpus, loaded from `path`, or extended by `extend` words of the domain."""

    name: str = free()
    kind: str = one_of("wordpiece", "bytes", "words")
    vocab_size: int = within(6, 1_000_000)
    lowercase: bool = free()
    strip_accents: Optional[bool] = free()
    min_frequency: int = within(1)
    path: Optional[str] = free()
    extend: int = within(0, 100_000)


@dataclass
@from_conf("masking")
class Masking:
    """Masked language modelling by the rules of BERT (Devlin et al. 2019, 3.1) or RoBERTa (`fresh`)."""

    probability: float = within(0.001, 0.95)
    mask_share: float = within(0.0, 1.0)
    random_share: float = within(0.0, 1.0)
    fresh: bool = free()
    whole_word: bool = free()


@dataclass
@from_conf("head")
class Head:
    """The classifier on top of the encoder. `num_classes=null` takes the number of classes of the data."""

    num_classes: Optional[int] = within(2, 100_000)
    pooling: str = one_of("mean", "cls", "max")
    dropout: float = within(0.0, 0.95)


@dataclass
@from_conf("finetuning")
class Training:
    """One stage of training; a step is one update with the effective batch. rates.py says what a null stands for."""

    batch_size: int = within(1, 65_536)
    epochs: Optional[float] = within(0.0, 100_000)
    min_epochs: float = within(0.0, 100_000)
    min_steps: int = within(0)
    max_steps: Optional[int] = within(1)
    lr: Optional[float] = within(0.0, 10.0)
    embedding_lr_factor: Optional[float] = within(0.0, 1000.0)
    optimizer: str = one_of("adamw", "lion", "adafactor")
    weight_decay: float = within(0.0, 10.0)
    beta1: float = within(0.0, 0.9999)
    beta2: float = within(0.0, 0.99999)
    schedule: str = one_of("linear", "cosine", "constant", "wsd")
    warmup: float = within(0.0, 1.0)
    clip_norm: float = within(0.0)
    group_by_length: bool = free()
    eval_every_steps: Optional[int] = within(1)
    eval_every_epochs: Optional[float] = within(0.001)
    eval_batch_size: int = within(1, 65_536)
    checkpoint_every_steps: Optional[int] = within(1)
    checkpoint_every_epochs: Optional[float] = within(0.001)
    checkpoint_every_minutes: Optional[float] = within(0.01)
    keep: int = within(1)
    select_by: str = one_of("macro_f1", "accuracy", "weighted_f1", "auroc", "val_loss")
    patience: Optional[int] = within(1)
    redraw_every_steps: Optional[int] = within(1)
    max_bad_steps: int = within(0)


@dataclass
@from_conf("baseline")
class Baseline:
    """TF-IDF + logistic regression.

    `analyzer=auto`: characters where there are no words. `tuned`: also n-grams and C chosen on validation.
    """

    analyzer: str = one_of("auto", "word", "char")
    tuned: bool = free()
    max_iter: int = within(10)


@dataclass
@from_conf("bench")
class Bench:
    """mode=bench: which mechanisms are measured, at which lengths and dtypes, and how often.

    `attentions`: files of conf/attention, with changes (`"reformer:num_hashes=4"`); `references`: the ones that the
    others are compared with. `seconds`: for each length and dtype. Only for what=training: `stages`,
    `steps_per_segment`; only for what=growth: `axes`, `widths`, `depths`.
    """

    name: str = free()
    what: str = one_of("attention", "step", "training", "growth")
    attentions: List[str] = free()
    references: List[str] = free()
    positions: List[str] = free()
    others: bool = free()
    seq_lens: List[int] = free()
    dtypes: List[str] = free()
    tokens_per_step: int = within(1)
    width: int = within(8)
    num_heads: int = within(1)
    num_layers: int = within(1, default=4)
    rounds: int = within(1, 1000)
    least_rounds: int = within(1, 1000)
    seconds: float = within(0.1)
    brief: bool = False
    time: bool = free()
    memory: bool = free()
    error: bool = free()
    trained: Optional[str] = free()
    compile: bool = free()
    gradient_checkpointing: bool = False
    allocator: str = one_of("inherit", "retain", "plain")
    stages: List[str] = field(default_factory=lambda: ["finetune", "pretrain"])
    steps_per_segment: int = within(1, 10_000, default=10)
    axes: List[str] = field(default_factory=lambda: ["length", "width", "depth"])
    widths: List[int] = field(default_factory=lambda: [128, 256, 512, 768])
    depths: List[int] = field(default_factory=lambda: [2, 4, 8, 12])


@dataclass
@from_conf("hardware")
class Hardware:
    """How the machine is used. It changes the speed, not the model; only dtype is part of a run's hash."""

    name: str = free()
    device: str = one_of("auto", "cpu", "cuda")
    dtype: str = one_of("auto", "fp32", "bf16", "fp16")
    micro_batch: Optional[int] = within(1)
    micro_tokens: Optional[int] = within(1)
    gradient_checkpointing: bool = free()
    compile: bool = free()
    workers: int = within(0, 256)
    threads: Optional[int] = within(1, 1024)
    on_oom: str = one_of("stop", "halve")


@dataclass
@from_conf("wandb")
class Wandb:
    """Weights & Biases. Offline by default: `wandb sync <folder>` uploads the run later."""

    mode: str = one_of("offline", "online", "disabled")
    project: str = free()
    entity: Optional[str] = free()
    artifacts: str = one_of("none", "best", "all")


@dataclass
@from_conf()
class Config:
    """The whole configuration of one run. Keys and groups are those of the folder `conf/`."""

    mode: str = one_of(*MODES)
    exp: Optional[str] = free()
    seed: int = within(0, 2**31 - 1)
    seq_len: int = within(1, MAX_SEQ_LEN)
    pretrain: Optional[str] = free()
    pretrain_seed: int = within(0, 2**31 - 1)
    checkpoint: str = free()
    resume: bool = free()
    retry_failed: bool = free()
    template: Optional[str] = free()
    split: str = one_of("test", "validation")
    input: Optional[str] = free()
    output: Optional[str] = free()
    text: Any = free()
    reading: Dict[str, Any] = field(default_factory=dict)
    sweep: Optional[str] = free()
    study: Optional[str] = free()
    attention: Any = None
    position: Any = None
    size: Size = field(default_factory=Size)
    dataset: Dataset = field(default_factory=Dataset)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    masking: Masking = field(default_factory=Masking)
    head: Head = field(default_factory=Head)
    pretraining: Training = field(default_factory=lambda: Training(**shipped()["pretraining"]))
    finetuning: Training = field(default_factory=Training)
    baseline: Baseline = field(default_factory=Baseline)
    bench: Bench = field(default_factory=Bench)
    hardware: Hardware = field(default_factory=Hardware)
    wandb: Wandb = field(default_factory=Wandb)
    claims: Dict[str, Any] = field(default_factory=dict)


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


def check_name(key: str, value: str) -> None:
    """Refuses a name that is no plain folder name (no path, no leading dot, no blanks). Raises UserError."""
    if not NAME.fullmatch(value) or value.endswith("."):
        allowed = "letters, digits, '.', '_', '+', '-', at most 100, the first a letter or digit, no path"
        raise UserError(f"{key}={value}: a plain name is needed ({allowed}). It becomes the name of a folder.")


def flatten(tree: dict[str, Any], prefix: str = "") -> Flat:
    """`{'a': {'b': 1}}` to `{'a.b': 1}`; lists stay values, an empty dict disappears."""
    flat: Flat = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`; keys that are already nested stay so."""
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
