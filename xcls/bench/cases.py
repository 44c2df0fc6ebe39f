"""Cases: one mechanism at one length and dtype, as plain values, from which another process builds the modules.

Letters: B batch, H heads, N tokens, D head dimension, E model width.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xcls.attention.base import Masks
from xcls.attention.operations import Shape, Work
from xcls.build import make_classifier
from xcls.config.schema import Config, Hardware, Head, Size, Training
from xcls.model.multihead import MultiHeadAttention
from xcls.train.amp import DTYPES, Amp, compile_blocks
from xcls.train.optim import make_optimizer
from xcls.train.precision import Precision

OURS = "xcls"
MEASURES = ("inference", "forward", "training")
VOCAB_SIZE, NUM_CLASSES, FIRST_WORD = 8192, 8, 5  # of the classifier in a step; ids below 5 are special tokens


@dataclass(frozen=True)
class Case:
    """One thing to measure. `part`: module (with its projections), core (without), step (a whole training step).

    `origin`: OURS, or the name of another package; then `node` names an adapter in rivals.py. `axis`: what grows in
    bench=growth.
    """

    mechanism: str
    origin: str
    part: str
    node: dict[str, Any]
    position: str
    position_node: dict[str, Any]
    seq_len: int
    batch: int
    dtype: str
    device: str
    width: int
    num_heads: int
    num_layers: int
    compile: bool = False
    gradient_checkpointing: bool = False  # of a step
    axis: str = ""
    seed: int = 0

    @property
    def head_dim(self) -> int:
        """D."""
        return self.width // self.num_heads

    def autocast(self) -> AbstractContextManager[None]:
        """The autocast context of the dtype, as in training; none for fp32."""
        return nullcontext() if self.dtype == "fp32" else torch.autocast(self.device, dtype=DTYPES[self.dtype])


@dataclass(eq=False)
class Trial:
    """The modules and inputs of a case. The methods named in MEASURES are timed; they leave no gradients behind."""

    case: Case
    model: nn.Module  # has train() and eval()
    attention: nn.Module  # the mechanism in it
    call: Callable[[], Tensor]  # returns a tensor with a graph
    leaves: Sequence[Tensor] = ()  # inputs that get gradients, as inside a network
    gradient: Tensor | None = None  # of the output of `call`

    @property
    def path(self) -> str | None:
        """The code path that the mechanism took, if it has several."""
        return getattr(self.attention, "path", None)

    def compile(self) -> None:
        """Sets the model to compile at its first call."""
        self.model.compile(dynamic=False)

    def allocate(self) -> None:
        """Allocates what exists from the second step on (optimizer state); nothing without an optimizer."""

    def prepare(self, measure: str) -> None:
        """Sets training or evaluation mode for a measure. Not timed."""
        self.model.train(measure != "inference")

    def inference(self) -> None:
        """One forward pass without gradients."""
        with torch.no_grad():
            self.forward()

    def forward(self) -> Tensor:
        """One forward pass that keeps what a backward pass needs."""
        with self.case.autocast():
            return self.call()

    def training(self) -> None:
        """Forward and backward."""
        out = self.forward()
        if self.gradient is None:
            self.gradient = torch.randn_like(out)
        out.backward(self.gradient)
        for tensor in (*self.model.parameters(), *self.leaves):
            tensor.grad = None


@dataclass(eq=False)
class StepTrial(Trial):
    """A classifier's training step: `forward` gives the loss, `training` also updates the weights."""

    def __post_init__(self) -> None:
        self.optimizer = make_optimizer(self.model, Training(lr=1e-3, embedding_lr_factor=1.0))
        scaler = Amp(precision=Precision(self.case.device, self.case.dtype), hardware=Hardware()).scaler
        disabled: Any = getattr(torch.amp, "GradScaler", torch.cuda.amp.GradScaler)  # torch >= 2.3
        self.scaler = disabled(enabled=False) if scaler is None else scaler

    def allocate(self) -> None:
        """Allocates the optimizer state, which the first step would allocate only after its memory peak."""
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def compile(self) -> None:
        """Compiles the blocks, as training does."""
        compile_blocks(self.model)

    def training(self) -> None:
        """Forward, backward, clipping and the update, as in training."""
        self.scaler.scale(self.forward()).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


def make(node: dict[str, Any], **shape: Any) -> Any:
    """Builds a YAML node: calls its `_target_` with `shape` and the other values of the node (without `name`)."""
    module, _, name = node["_target_"].rpartition(".")
    own = {key: value for key, value in node.items() if key not in ("_target_", "name")}
    return getattr(importlib.import_module(module), name)(**shape, **own)


def make_attention(case: Case, seed: int | None = None) -> Any:
    """The mechanism, ours or that of another package."""
    if case.origin != OURS:
        return make(case.node, width=case.width, num_heads=case.num_heads)
    seed = case.seed if seed is None else seed
    return make(case.node, num_heads=case.num_heads, head_dim=case.head_dim, layer=0, seed=seed)


def make_position(case: Case) -> Any:
    """The position encoding."""
    sizes = {"embed_dim": case.width, "num_heads": case.num_heads, "head_dim": case.head_dim}
    return make(case.position_node, **sizes, num_layers=case.num_layers, seq_len=case.seq_len)


def build(case: Case) -> Trial:
    """Builds a case; the inputs are the same for every mechanism."""
    torch.manual_seed(case.seed)
    return {"module": _module, "core": _core, "step": _step}[case.part](case)


def _module(case: Case) -> Trial:
    """The mechanism with its projections: x [B, N, E] -> [B, N, E]."""
    x = torch.randn(case.batch, case.seq_len, case.width, device=case.device).requires_grad_()
    attention = make_attention(case).to(case.device)
    if case.origin != OURS:
        return Trial(case, attention, attention, lambda: attention(x), [x])
    model = MultiHeadAttention(embed_dim=case.width, num_heads=case.num_heads, attention=attention).to(case.device)
    position = make_position(case).to(case.device)
    rotate = position.rotation(case.seq_len, x.device)

    def forward() -> Tensor:
        return model(x, Masks(bias=position.bias(0), rotate=rotate))

    return Trial(case, model, attention, forward, [x, *position.parameters()])


def _core(case: Case) -> Trial:
    """The mechanism alone: q, k, v [B, H, N, D] in the layout and dtype of the projections."""
    shape = (case.batch, case.seq_len, case.width)
    inputs = [torch.randn(shape, device=case.device, dtype=DTYPES[case.dtype]).requires_grad_() for _ in range(3)]
    attention = make_attention(case).to(case.device)
    position = make_position(case).to(case.device)
    tied = getattr(attention, "ties_qk", False)

    def forward() -> Tensor:
        q, k, v = (part.unflatten(2, (case.num_heads, -1)).transpose(1, 2) for part in inputs)
        masks = (Masks(bias=position.bias(0)),) if case.origin == OURS else ()
        return attention(q, q if tied else k, v, *masks)

    return Trial(case, attention, attention, forward, [*inputs, *position.parameters()])


def _step(case: Case) -> Trial:
    """A classifier of `num_layers` layers on random ids, without padding."""
    size = Size(num_layers=case.num_layers, width=case.width, num_heads=case.num_heads, feed_forward=4 * case.width)
    config = Config(
        seed=case.seed,
        seq_len=case.seq_len,
        attention=case.node,
        position=case.position_node,
        size=size,
        head=Head(pooling="mean", dropout=size.dropout),
        hardware=Hardware(gradient_checkpointing=case.gradient_checkpointing),
    )
    classes = [str(number) for number in range(NUM_CLASSES)]
    model = make_classifier(config, vocab_size=VOCAB_SIZE, classes=classes).to(case.device)
    ids = torch.randint(FIRST_WORD, VOCAB_SIZE, (case.batch, case.seq_len), device=case.device)
    labels = torch.randint(NUM_CLASSES, (case.batch,), device=case.device)

    def forward() -> Tensor:
        return F.cross_entropy(model(ids, None).float(), labels)

    block: Any = model.encoder.blocks[0]
    return StepTrial(case, model, block.attention.attention, forward)


def work_of(case: Case, attention: Any) -> dict[str, Work]:
    """Work of inference and of training by the formula of the mechanism; for a module with its projections.

    Empty if there is no formula: a whole step, another package, a relative bias. The projections of q, k, v and of the
    output have 2 N E^2 operations each, three times that in training.
    """
    plain = case.origin == OURS and case.part != "step" and make_position(case).bias(0) is None
    itemsize = torch.empty(0, dtype=DTYPES[case.dtype]).element_size()
    shape = Shape(case.batch, case.num_heads, case.seq_len, case.head_dim, itemsize)
    found = attention.operations(shape) if plain else None
    if found is None:
        return {}
    inference, training = found
    if case.part == "module":
        count, tokens = 4 - attention.ties_qk - 2 * (not attention.reads_qk), case.batch * case.seq_len
        moved = float(itemsize) * (2 * tokens * case.width + case.width**2)
        once = Work(2.0 * tokens * case.width**2, moved) * count
        inference, training = inference + once, training + once * 3
    return {"inference": inference, "training": training}
