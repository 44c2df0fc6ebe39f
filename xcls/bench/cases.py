"""What is measured: one mechanism at one length and dtype, as plain values that a process of its own builds again.

Letters: B batch, H heads, N tokens, D head width, E model width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xcls.attention.base import Masks
from xcls.bench.make import make
from xcls.config.schema import Hardware, Size, Training
from xcls.model.encoder import Encoder
from xcls.model.heads import Classifier, TextClassifier
from xcls.model.multihead import MultiHeadAttention
from xcls.train.amp import DTYPES, Amp, compile_blocks
from xcls.train.optim import make_optimizer
from xcls.train.precision import Precision

OURS = "xcls"
MEASURES = ("inference", "forward", "training")
VOCAB_SIZE, NUM_CLASSES, FIRST_WORD = 8192, 8, 5  # of the step's classifier; ids below 5 are special tokens


@dataclass(frozen=True)
class Case:
    """One thing to measure. `part`: module (with its projections), core (without), step (a whole training step).

    `origin`: OURS, or the package it comes from; then `node` names an adapter of others.py.
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
    seed: int = 0

    @property
    def head_dim(self) -> int:
        """D."""
        return self.width // self.num_heads

    def autocast(self) -> AbstractContextManager[None]:
        """The context of the dtype, as in training; nothing for fp32."""
        return nullcontext() if self.dtype == "fp32" else torch.autocast(self.device, dtype=DTYPES[self.dtype])


class Trial:
    """A case, built. `forward` computes its output once; the methods are what is timed, and leave nothing behind."""

    def __init__(self, *, case: Case, model: nn.Module, attention: nn.Module, forward: Callable[[], Tensor]) -> None:
        """model: what has a training mode; attention: the mechanism in it; forward() -> a tensor with a gradient."""
        self.case, self.model, self.attention, self._forward = case, model, attention, forward
        self._gradient: Tensor | None = None

    def compile(self) -> None:
        """Compiles the model in place: nothing happens before the first call."""
        self.model.compile(dynamic=False)

    def settle(self) -> None:
        """Brings about what lasts from the first step of a training on; nothing without an optimizer."""

    def prepare(self, measure: str) -> None:
        """Sets the mode that a measure wants. Not part of the time."""
        self.model.train(measure != "inference")

    def inference(self) -> None:
        """One forward pass without a graph."""
        with torch.no_grad(), self.case.autocast():
            self._forward()

    def forward(self) -> None:
        """One forward pass that keeps what a backward pass needs."""
        with self.case.autocast():
            self._forward()

    def training(self) -> None:
        """Forward and backward."""
        with self.case.autocast():
            out = self._forward()
        if self._gradient is None:
            self._gradient = torch.randn_like(out)
        out.backward(self._gradient)
        self._clear()

    def _clear(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None


class StepTrial(Trial):
    """A classifier's training step: `forward` gives the loss, `training` also updates the weights."""

    def __init__(self, *, case: Case, model: nn.Module, attention: nn.Module, forward: Callable[[], Tensor]) -> None:
        super().__init__(case=case, model=model, attention=attention, forward=forward)
        self.optimizer = make_optimizer(model, Training())
        self.scaler = Amp(precision=Precision(case.device, case.dtype), hardware=Hardware()).scaler

    def settle(self) -> None:
        """The optimizer's state, which a first step would make after its own peak."""
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def compile(self) -> None:
        """Compiles the blocks, as training does."""
        compile_blocks(self.model)

    def training(self) -> None:
        """Forward, backward, clipping and the update, as in training."""
        with self.case.autocast():
            loss = self._forward()
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


def make_attention(case: Case, layer: int = 0) -> nn.Module:
    """The mechanism of one layer, or of another package."""
    if case.origin != OURS:
        return make(case.node, {"width": case.width, "num_heads": case.num_heads})
    return make(case.node, {"num_heads": case.num_heads, "head_dim": case.head_dim, "layer": layer, "seed": case.seed})


def make_position(case: Case) -> nn.Module:
    """The position encoding."""
    sizes = {"embed_dim": case.width, "num_heads": case.num_heads, "head_dim": case.head_dim}
    return make(case.position_node, {**sizes, "num_layers": case.num_layers, "seq_len": case.seq_len})


def build(case: Case) -> Trial:
    """The case as something to call, the same inputs for every mechanism."""
    torch.manual_seed(case.seed)
    return PARTS[case.part](case)


def _module(case: Case) -> Trial:
    """The mechanism with its projections: x [B, N, E] -> [B, N, E]."""
    x = torch.randn(case.batch, case.seq_len, case.width, device=case.device).requires_grad_()
    attention = make_attention(case).to(case.device)
    if case.origin != OURS:
        return _Leaves(case=case, model=attention, attention=attention, forward=lambda: attention(x), leaves=[x])
    model = MultiHeadAttention(embed_dim=case.width, num_heads=case.num_heads, attention=attention).to(case.device)
    position = make_position(case).to(case.device)
    rotate = position.rotation(case.seq_len, x.device)

    def forward() -> Tensor:
        return model(x, Masks(bias=position.bias(0), rotate=rotate))

    return _Leaves(case=case, model=model, attention=attention, forward=forward, leaves=[x, *position.parameters()])


def _core(case: Case) -> Trial:
    """The mechanism alone: q, k, v [B, H, N, D], in the layout and dtype in which projections leave them."""
    shape = (case.batch, case.seq_len, case.width)
    leaves = [torch.randn(shape, device=case.device, dtype=DTYPES[case.dtype]).requires_grad_() for _ in range(3)]
    attention = make_attention(case).to(case.device)
    position = make_position(case).to(case.device)
    tied = attention.ties_qk

    def forward() -> Tensor:
        q, k, v = (leaf.unflatten(2, (case.num_heads, -1)).transpose(1, 2) for leaf in leaves)
        if case.origin != OURS:
            return attention(q, q if tied else k, v)
        return attention(q, q if tied else k, v, Masks(bias=position.bias(0)))

    leaves = [leaves[0], leaves[0], leaves[2]] if tied else leaves
    return _Leaves(
        case=case, model=attention, attention=attention, forward=forward, leaves=[*leaves, *position.parameters()]
    )


class _Leaves(Trial):
    """A trial whose inputs get gradients too, as they do within a network."""

    def __init__(
        self, *, case: Case, model: nn.Module, attention: nn.Module, forward: Callable[[], Tensor], leaves: list[Tensor]
    ) -> None:
        super().__init__(case=case, model=model, attention=attention, forward=forward)
        self.leaves = leaves

    def _clear(self) -> None:
        super()._clear()
        for leaf in self.leaves:
            leaf.grad = None


def _step(case: Case) -> Trial:
    """A classifier of `num_layers` layers on random ids, without padding."""
    size = Size()
    encoder = Encoder(
        vocab_size=VOCAB_SIZE,
        seq_len=case.seq_len,
        num_layers=case.num_layers,
        embed_dim=case.width,
        num_heads=case.num_heads,
        feed_forward=4 * case.width,
        norm=size.norm,
        activation=size.activation,
        dropout=size.dropout,
        position=make_position(case),
        make_attention=lambda layer: make_attention(case, layer),
        gradient_checkpointing=case.gradient_checkpointing,
    )
    head = Classifier(embed_dim=case.width, num_classes=NUM_CLASSES, pooling="mean", dropout=size.dropout)
    model = TextClassifier(encoder=encoder, head=head).to(case.device)
    ids = torch.randint(FIRST_WORD, VOCAB_SIZE, (case.batch, case.seq_len), device=case.device)
    labels = torch.randint(NUM_CLASSES, (case.batch,), device=case.device)

    def forward() -> Tensor:
        return F.cross_entropy(model(ids, None).float(), labels)

    return StepTrial(case=case, model=model, attention=encoder.blocks[0].attention.attention, forward=forward)


PARTS: dict[str, Callable[[Case], Trial]] = {"module": _module, "core": _core, "step": _step}
