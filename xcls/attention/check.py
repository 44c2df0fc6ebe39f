"""Does a mechanism keep its promises? Tried on random tensors before a run begins: one that sees padding trains in silence.

The promises are those of `base.Attention.attend`. Letters: L layers, B batch, H heads, N tokens, D head width, E model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from xcls.attention.base import Attention, Masks
from xcls.config.schema import UserError
from xcls.position.base import Position

LENGTH, REAL = 70, 50  # tokens, more than a block of 64; real ones of the second example where there are pads
BLIND = slice(10, 40)  # queries that may not attend to the keys of HIDDEN
HIDDEN = slice(30, 60)
NOTHING = 20  # a query that may attend to nothing
GARBAGE = 1e4  # scale of what stands in padded tokens
CLOSE = {"rtol": 1e-3, "atol": 1e-4}  # fp32 rounds differently where the shapes differ


class Broken(Exception):
    """A promise that is not kept: what is seen, and what to do."""


class Trial:
    """The layers of a mechanism, made with numbers 0, 1, …, behind a position encoding, and random inputs for them."""

    def __init__(self, layers: Sequence[Attention], position: Position) -> None:
        self.layers, self.position = [layer.eval() for layer in layers], position.eval()
        self.generator = torch.Generator().manual_seed(20)
        first = layers[0]
        self.q, self.k, self.v = self.random(3, 2, first.num_heads, LENGTH, first.head_dim).unbind(0)

    @cached_property
    def plain(self) -> Tensor:
        """The output without masks."""
        return self.attend(self.q, self.k, self.v)

    def random(self, *shape: int) -> Tensor:
        """Standard normal, fp32."""
        return torch.randn(*shape, generator=self.generator)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        pads: Tensor | None = None,
        attn_mask: Tensor | None = None,
        bias: Tensor | None = None,
        rotate: Callable[[Tensor], Tensor] | None = None,
        finite: bool = False,
    ) -> Tensor:
        """The outputs of all layers, [L, B, H, N, D]. `bias`, `rotate`: in place of the position encoding's own. `finite`: as within
        the encoder, where nobody zeroes what is computed for pads. Raises Broken."""
        rotate = rotate or self.position.rotation(q.shape[2], q.device)
        masks = Masks.make(key_padding_mask=pads, attn_mask=attn_mask, finite=finite)
        outputs = []
        for number, layer in enumerate(self.layers):
            parts = [q, q if layer.ties_qk else k] if layer.reads_qk else [v, v]
            if rotate is not None and not layer.wants_unrotated:
                parts = [rotate(part) for part in parts]
            try:
                given = {
                    "bias": self.position.bias(number) if bias is None else bias,
                    "rotate": rotate if layer.wants_unrotated else None,
                }
                out = layer(*parts, v, masks.with_(**given))
            except Exception as error:
                raise Broken(
                    f"it fails on q, k, v {list(v.shape)}{_given(pads, attn_mask)}: {type(error).__name__}: {error}",
                    "Any length of 1 and more must work, with and without masks.",
                ) from error
            if not isinstance(out, Tensor) or out.shape != v.shape:
                found = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise Broken(
                    f"its output is {found} where q, k, v are {list(v.shape)}{_given(pads, attn_mask)}",
                    "It must have their shape, [B, H, N, D].",
                )
            if not out.isfinite().all():
                raise Broken(
                    f"its output has NaN or Inf for finite q, k, v {list(v.shape)}{_given(pads, attn_mask)}",
                    "A row with nothing to attend to must be zero, and padded tokens must count for nothing.",
                )
            outputs.append(out)
        return torch.stack(outputs)


def check_attention(layers: Sequence[Attention], position: Position, *, name: str) -> None:
    """Tries the mechanism `name`, the same with the layer numbers 0, 1, …, behind `position`. Raises UserError."""
    if not all(isinstance(layer, Attention) for layer in layers):
        raise UserError(f"{name}: a subclass of xcls.attention.base.Attention is needed.")
    trial, threads = Trial(layers, position), torch.get_num_threads()
    torch.set_num_threads(1)  # products as small as these lose time on several, most of all beside other jobs
    try:
        with torch.no_grad():
            for promise in (_repeats, _any_length, _batch_mates, _padding, _masks, _nothing, _positions):
                promise(trial)
    except Broken as broken:
        what, cure = broken.args
        raise UserError(f"{name}: {what}. {cure} The contract: Attention.attend in xcls/attention/base.py.") from broken
    finally:
        torch.set_num_threads(threads)


def check_position(position: Position, *, name: str) -> None:
    """Tries the hooks of the position encoding `name`, of LENGTH tokens at least. Raises UserError."""
    if not isinstance(position, Position):
        raise UserError(f"{name}: a subclass of xcls.position.base.Position is needed.")
    generator = torch.Generator().manual_seed(21)
    hooks: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], int]] = {
        "embed": (position.eval().embed, (2, LENGTH, position.embed_dim), 1)
    }
    if position.rotation(LENGTH, torch.device("cpu")) is not None:
        shape = (2, position.num_heads, LENGTH, position.head_dim)
        hooks["rotation"] = (lambda x: position.rotation(x.shape[2], x.device)(x), shape, 2)
    for hook, (run, shape, tokens) in hooks.items():
        x = torch.randn(shape, generator=generator)
        out, part = run(x), run(x.narrow(tokens, 0, REAL))
        if out.shape != x.shape or not out.isfinite().all():
            raise UserError(
                f"{name}: {hook} makes {list(out.shape)} of {list(shape)}, or numbers that are not finite. "
                "The contract: xcls/position/base.py."
            )
        if not torch.allclose(out.narrow(tokens, 0, REAL), part, **CLOSE) or not torch.equal(out, run(x)):
            raise UserError(
                f"{name}: {hook} of a token is not the same each time, or depends on the tokens behind it. "
                "The contract: xcls/position/base.py."
            )
    bias = position.bias(0)
    if bias is not None and (bias.dim() != 2 or bias.shape[0] != position.num_heads or bias.shape[1] % 2 == 0):
        raise UserError(
            f"{name}: bias is {list(bias.shape)}; [{position.num_heads}, 2W+1] is needed. The contract: xcls/position/base.py."
        )


def _any_length(trial: Trial) -> None:
    trial.attend(trial.q[:, :, :1], trial.k[:, :, :1], trial.v[:, :, :1])


def _repeats(trial: Trial) -> None:
    again = trial.attend(trial.q, trial.k, trial.v)
    if not torch.equal(trial.plain, again):
        raise Broken(
            f"in evaluation the same input gave another output, {_most(trial.plain, again)} apart",
            "Draw random features once, from a generator of (seed, layer), and drop nothing at evaluation.",
        )


def _padding(trial: Trial) -> None:
    pads = torch.arange(LENGTH).expand(2, LENGTH) >= torch.tensor([[LENGTH], [REAL]])
    garbage = [
        torch.where(pads[:, None, :, None], GARBAGE * trial.random(*x.shape), x) for x in (trial.q, trial.k, trial.v)
    ]
    zeros = [x.masked_fill(pads[:, None, :, None], 0.0) for x in garbage]
    cure = "Leave out of every sum the keys that masks.padding marks (zero_padding in xcls/attention/base.py)."
    with_zeros = trial.attend(*zeros, pads=pads, finite=True)[:, 1, :, :REAL]
    with_garbage = trial.attend(*garbage, pads=pads)[:, 1, :, :REAL]
    if not torch.allclose(with_zeros, with_garbage, **CLOSE):
        raise Broken(
            f"it sees padding: what is in padded tokens changes the output of real ones by up to {_most(with_zeros, with_garbage)}",
            cure,
        )
    alone = trial.attend(*(x[1:, :, :REAL] for x in zeros))[:, 0]
    differ = (~torch.isclose(alone, with_zeros, **CLOSE)).any(-1).float().mean()
    if differ > 0.25:  # of the rows; a hash at a tie may fall to another side where the shape of a product differs
        raise Broken(
            f"it sees padding: padded tokens behind a text change its output by up to {_most(alone, with_zeros)}", cure
        )


def _batch_mates(trial: Trial) -> None:
    other = [torch.cat((x[:1], 30 * x[1:])) for x in (trial.q, trial.k, trial.v)]
    one, same = trial.plain[:, 0], trial.attend(*other)[:, 0]
    if not torch.allclose(one, same, **CLOSE):
        raise Broken(
            f"it sees other examples of the batch: they change the output of one by up to {_most(one, same)}",
            "Take sums and statistics for each example by itself.",
        )


def _masks(trial: Trial) -> None:
    general = torch.zeros(2, 1, LENGTH, LENGTH, dtype=torch.bool)
    general[:, :, BLIND, HIDDEN] = True
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    for kind, mask, hidden, blind in (
        ("attn_mask", general, HIDDEN, BLIND),
        ("a causal attn_mask", causal, slice(40, LENGTH), slice(40)),
    ):
        other = trial.v.clone()
        other[:, :, hidden] += 30.0
        before = trial.attend(trial.q, trial.k, trial.v, attn_mask=mask)[..., blind, :]
        after = trial.attend(trial.q, trial.k, other, attn_mask=mask)[..., blind, :]
        if not torch.allclose(before, after, **CLOSE):
            raise Broken(
                f"it does not respect {kind}: values of keys that a query may not attend to change its output by up to "
                f"{_most(before, after)}",
                "Where attn_mask is True, query i (row) must leave key j (column) out.",
            )


def _nothing(trial: Trial) -> None:
    pads = torch.tensor([[False], [True]]).expand(2, LENGTH)
    mask = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    mask[NOTHING] = True
    inputs = [x.clone().requires_grad_() for x in (trial.q, trial.k, trial.v)]
    with torch.enable_grad():
        out = trial.attend(*inputs, pads=pads, attn_mask=mask, finite=True)
        grads = torch.autograd.grad(out.sum(), inputs, allow_unused=True) if out.requires_grad else ()
    cure = "A row with nothing to attend to must be finite, and so must its gradient be."
    if not all(grad is None or grad.isfinite().all() for grad in grads):
        raise Broken("its gradient has NaN or Inf where a query may attend to nothing", cure)


def _positions(trial: Trial) -> None:
    first = trial.layers[0]
    if trial.position.bias(0) is not None:
        bias = trial.random(first.num_heads, trial.position.bias(0).shape[1])
        with_bias, without = (
            trial.attend(trial.q, trial.k, trial.v, bias=each) for each in (bias, torch.zeros_like(bias))
        )
        if torch.equal(with_bias, without):
            raise Broken(
                "it ignores relative_bias, so that it would train without positions",
                "Add it to the logits, or take another position=….",
            )
    rotate = trial.position.rotation(LENGTH, trial.q.device)
    if rotate is not None and first.wants_unrotated and first.reads_qk:
        if torch.equal(trial.plain, trial.attend(trial.q, trial.k, trial.v, rotate=lambda x: x)):
            raise Broken(
                "it wants q and k unrotated and then ignores `rotate`, so that it would train without positions",
                "Apply it to q and k.",
            )


def _given(pads: Tensor | None, attn_mask: Tensor | None) -> str:
    given = {"key_padding_mask": pads, "attn_mask": attn_mask}
    named = [f"{name} {list(mask.shape)}" for name, mask in given.items() if mask is not None]
    return f" with {' and '.join(named)}" if named else ""


def _most(one: Tensor, other: Tensor) -> str:
    return f"{(one - other).abs().max().item():.2g}"
