"""Tests on random tensors, before a run begins, whether a mechanism keeps the contract of `base.Attention.attend`.

A wrong mechanism would train without an error. Letters: L layers, B batch, H heads, N tokens, D head dimension, E model
width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from xcls.attention.base import Attention, Masks
from xcls.config.schema import UserError
from xcls.position.base import Position

LENGTH, REAL = 70, 50  # tokens, more than a block of 64; real tokens of the second example in tests with padding
BLIND, HIDDEN = slice(10, 40), slice(30, 60)  # queries that may not attend to these keys
NOTHING = 20  # a query that may attend to nothing
GARBAGE = 1e4  # scale of padded tokens
CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4}  # fp32 rounds differently where the shapes differ
PADDING_CURE = "Leave out of every sum the keys that masks.padding marks (zero_padding in xcls/attention/base.py)."


class Broken(Exception):
    """A part of the contract is broken: what was seen, and what to do."""


class Trial:
    """The layers 0, 1, … of a mechanism, with a position encoding, and random inputs for them."""

    def __init__(self, layers: Sequence[Attention], position: Position) -> None:
        self.layers, self.position = [layer.eval() for layer in layers], position.eval()
        self.generator = torch.Generator().manual_seed(20)
        self.qkv = list(self.random(3, 2, layers[0].num_heads, LENGTH, layers[0].head_dim).unbind(0))
        self.plain = self.attend(self.qkv)

    def random(self, *shape: int) -> Tensor:
        """Standard normal, fp32."""
        return torch.randn(*shape, generator=self.generator)

    def attend(self, qkv: Sequence[Tensor], masks: Masks | None = None, **changes: Any) -> Tensor:
        """The outputs of all layers for q, k, v [B, H, N, D]: [L, B, H, N, D]. Raises Broken.

        changes: fields of `masks`; `bias` and `rotate` replace those of the position encoding.
        """
        q, k, v = qkv
        masks = Masks() if masks is None else masks
        rotate = changes.pop("rotate", None) or self.position.rotation(v.shape[2], v.device)
        marks = {"key_padding_mask": masks.padding, "attn_mask": masks.pairs}
        where = " and ".join([f"q, k, v {list(v.shape)}", *(n for n, mask in marks.items() if mask is not None)])
        outputs = []
        for number, layer in enumerate(self.layers):
            parts = [q, q if layer.ties_qk else k] if layer.reads_qk else [v, v]
            if rotate is not None and not layer.wants_unrotated:
                parts = [rotate(part) for part in parts]
            own = {"bias": self.position.bias(number), "rotate": rotate if layer.wants_unrotated else None}
            try:
                out = layer(*parts, v, masks.with_(**{**own, **changes}))
            except Exception as error:
                cure = "Any length of 1 and more must work, with and without masks."
                raise Broken(f"it fails on {where}: {type(error).__name__}: {error}", cure) from error
            if not isinstance(out, Tensor) or out.shape != v.shape:
                found = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise Broken(f"its output is {found} for {where}", "It must have their shape, [B, H, N, D].")
            if not out.isfinite().all():
                cure = "A row with nothing to attend to must be zero, and padded tokens must count for nothing."
                raise Broken(f"its output has NaN or Inf for finite {where}", cure)
            outputs.append(out)
        return torch.stack(outputs)


def check_attention(layers: Sequence[Attention], position: Position, *, name: str) -> None:
    """Tests the mechanism `name` with `position`; `layers` are its instances 0, 1, …. Raises UserError."""
    if not all(isinstance(layer, Attention) for layer in layers):
        raise UserError(f"{name}: a subclass of xcls.attention.base.Attention is needed.")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # products this small are slower on several threads, above all beside other jobs
    try:
        with torch.no_grad():
            trial = Trial(layers, position)
            for promise in (_repeats, _batch_mates, _padding, _masks, _nothing, _positions):
                promise(trial)
    except Broken as broken:
        what, cure = broken.args
        raise UserError(f"{name}: {what}. {cure} The contract: Attention.attend in xcls/attention/base.py.") from broken
    finally:
        torch.set_num_threads(threads)


def check_position(position: Position, *, name: str) -> None:
    """Tests the hooks of the position encoding `name`, which takes LENGTH tokens or more. Raises UserError."""
    contract = "The contract: xcls/position/base.py."
    if not isinstance(position, Position):
        raise UserError(f"{name}: a subclass of xcls.position.base.Position is needed.")
    position.eval()
    generator, cpu = torch.Generator().manual_seed(21), torch.device("cpu")
    width, heads = (2, LENGTH, position.embed_dim), (2, position.num_heads, LENGTH, position.head_dim)
    rotation: Any = position.rotation
    hooks: list[tuple[str, Callable[[Tensor], Tensor], tuple[int, ...]]] = [("embed", position.embed, width)]
    if rotation(LENGTH, cpu) is not None:
        hooks.append(("rotation", lambda x: rotation(x.shape[2], cpu)(x), heads))
    for hook, run, shape in hooks:
        x = torch.randn(shape, generator=generator)
        out, part = run(x), run(x[..., :REAL, :])
        if out.shape != x.shape or not out.isfinite().all():
            found = f"{list(out.shape)} of {list(shape)}"
            raise UserError(f"{name}: {hook} makes {found}, or numbers that are not finite. {contract}")
        if not torch.allclose(out[..., :REAL, :], part, **CLOSE) or not torch.equal(out, run(x)):
            fault = "of a token is not the same each time, or depends on the tokens behind it"
            raise UserError(f"{name}: {hook} {fault}. {contract}")
    bias = position.bias(0)
    if bias is not None and (bias.dim() != 2 or bias.shape[0] != position.num_heads or bias.shape[1] % 2 == 0):
        raise UserError(f"{name}: bias is {list(bias.shape)}; [{position.num_heads}, 2W+1] is needed. {contract}")


def _hold_equal(one: Tensor, other: Tensor, fault: str, cure: str) -> None:
    if not torch.allclose(one, other, **CLOSE):
        raise Broken(f"{fault} change its output by up to {(one - other).abs().max().item():.2g}", cure)


def _repeats(trial: Trial) -> None:
    """The same input gives a bit-equal output in evaluation, and a single token works."""
    trial.attend([x[:, :, :1] for x in trial.qkv])
    if not torch.equal(trial.plain, trial.attend(trial.qkv)):
        cure = "Draw random features once, from a generator of (seed, layer), and drop nothing at evaluation."
        raise Broken("in evaluation the same input gave another output", cure)


def _padding(trial: Trial) -> None:
    pads = torch.arange(LENGTH).expand(2, LENGTH) >= torch.tensor([[LENGTH], [REAL]])
    wide = pads[:, None, :, None]
    garbage = [torch.where(wide, GARBAGE * trial.random(*x.shape), x) for x in trial.qkv]
    zeros = [x.masked_fill(wide, 0.0) for x in garbage]
    with_zeros = trial.attend(zeros, Masks.make(key_padding_mask=pads, finite=True))[:, 1, :, :REAL]
    with_garbage = trial.attend(garbage, Masks.make(key_padding_mask=pads))[:, 1, :, :REAL]
    _hold_equal(with_zeros, with_garbage, "it sees padding: numbers in padded tokens", PADDING_CURE)
    alone = trial.attend([x[1:, :, :REAL] for x in zeros])[:, 0]
    differ = (~torch.isclose(alone, with_zeros, **CLOSE)).any(-1).float().mean()
    if differ > 0.25:  # of the rows; near a tie, a product of another shape may round to another hash
        raise Broken("it sees padding: padded tokens behind a text change its output", PADDING_CURE)


def _batch_mates(trial: Trial) -> None:
    other = trial.attend([torch.cat((x[:1], 30 * x[1:])) for x in trial.qkv])[:, 0]
    cure = "Take sums and statistics for each example by itself."
    _hold_equal(trial.plain[:, 0], other, "it sees other examples of the batch: they", cure)


def _masks(trial: Trial) -> None:
    general = torch.zeros(2, 1, LENGTH, LENGTH, dtype=torch.bool)
    general[:, :, BLIND, HIDDEN] = True
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    q, k, v = trial.qkv
    for kind, mask, hidden, blind in (
        ("attn_mask", general, HIDDEN, BLIND),
        ("a causal attn_mask", causal, slice(40, LENGTH), slice(40)),
    ):
        changed = v.clone()
        changed[:, :, hidden] += 30.0
        masks = Masks.make(attn_mask=mask)
        before, after = (trial.attend((q, k, values), masks)[..., blind, :] for values in (v, changed))
        cure = "Where attn_mask is True, query i (row) must leave key j (column) out."
        _hold_equal(before, after, f"it does not respect {kind}: values of keys that a query may not see", cure)


def _nothing(trial: Trial) -> None:
    pads = torch.tensor([[False], [True]]).expand(2, LENGTH)
    mask = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    mask[NOTHING] = True
    inputs = [x.clone().requires_grad_() for x in trial.qkv]
    with torch.enable_grad():
        out = trial.attend(inputs, Masks.make(key_padding_mask=pads, attn_mask=mask, finite=True))
        grads = torch.autograd.grad(out.sum(), inputs, allow_unused=True) if out.requires_grad else ()
    if not all(grad is None or grad.isfinite().all() for grad in grads):
        cure = "A row with nothing to attend to must be finite, and so must its gradient be."
        raise Broken("its gradient has NaN or Inf where a query may attend to nothing", cure)


def _positions(trial: Trial) -> None:
    first, table = trial.layers[0], trial.position.bias(0)
    if table is not None:
        bias = trial.random(*table.shape)
        if torch.equal(trial.attend(trial.qkv, bias=bias), trial.attend(trial.qkv, bias=torch.zeros_like(bias))):
            cure = "Add it to the logits, or take another position=…."
            raise Broken("it ignores relative_bias, so that it would train without positions", cure)
    if trial.position.rotation(LENGTH, trial.plain.device) is not None and first.wants_unrotated and first.reads_qk:
        if torch.equal(trial.plain, trial.attend(trial.qkv, rotate=lambda x: x)):
            fault = "it wants q and k unrotated and then ignores `rotate`, so that it would train without positions"
            raise Broken(fault, "Apply it to q and k.")
