"""Queries, keys and values out of the merged projection, and the rotary embedding, in one pass over memory (Triton).

The plain way reads and writes q and k once for every step of the formula, and once more to make them head-major. Here
each number is read once and written once, forward and backward. Equal to `rotate_pairs` of xcls/position/rope.py.

Letters: B batch, N tokens, P parts (of q, k and v, as many as there are), H heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xcls.attention import kernels

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

TILE = 1024  # pairs of channels that one program turns at a time


def available(x: Tensor) -> bool:
    """Whether `split_heads` takes this tensor: fp32, fp16 or bf16, on a GPU that Triton compiles for (7.0 or newer), on
    the CPU under Triton's interpreter, or on the meta device where the cost model says so."""
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    return kernels.capability(x.device) >= (7, 0)


def split_heads(x: Tensor, cos: Tensor | None, sin: Tensor | None, turned: int) -> tuple[Tensor, ...]:
    """x [B, N, P, H, D], P = 1..3 -> P tensors [B, H, N, D], contiguous, in the dtype of x; x may have any strides.

    The first `turned` of the P parts are turned as `rotate_pairs` does: channel i with i + D // 2, by the angles whose
    cos and sin [N, D // 2] (fp32) are given; the others are copied. Computed in fp32. With an odd D the last channel is
    not turned. With turned = 0 there is no need of cos and sin. Ask `available` first.
    """
    return _SplitHeads.apply(x, cos, sin, turned)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate_pairs`: x [B, H, N, D], cos and sin [N, D // 2] -> [B, H, N, D], contiguous, in the dtype of x."""
    return split_heads(x.transpose(1, 2).unsqueeze(2), cos, sin, 1)[0]


class _SplitHeads(torch.autograd.Function):
    """The gradient of a rotation is the rotation by the opposite angle."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, cos: Tensor | None, sin: Tensor | None, turned: int
    ) -> tuple[Tensor, ...]:
        parts, heads, width = x.shape[2:]
        if not 1 <= parts <= 3 or not 0 <= turned <= parts:
            raise ValueError(
                f"x {list(x.shape)}: dimension 2 must be 1 to 3, and turned={turned} lie between 0 and that"
            )
        angles = [x.shape[1], width // 2]
        if turned and (cos is None or sin is None or list(cos.shape) != angles or list(sin.shape) != angles):
            raise ValueError(f"cos and sin must be {angles} for x {list(x.shape)}")
        ctx.turned = turned
        ctx.save_for_backward(cos, sin)
        return torch.ops.xcls.split_heads(x, cos, sin, turned).unbind(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return torch.ops.xcls.merge_heads(list(grads), cos, sin, ctx.turned), None, None, None


def _meta_split(x: Tensor, cos: Tensor | None, sin: Tensor | None, turned: int) -> Tensor:
    batch, length, parts, heads, width = x.shape
    return x.new_empty((parts, batch, heads, length, width))


def _meta_merge(grads: list[Tensor], cos: Tensor | None, sin: Tensor | None, turned: int) -> Tensor:
    batch, heads, length, width = grads[0].shape
    return grads[0].new_empty((batch, length, len(grads), heads, width))


def _split(x: Tensor, cos: Tensor | None, sin: Tensor | None, turned: int) -> Tensor:
    out = _meta_split(x, cos, sin, turned)
    return _launch(list(x.unbind(2)), [part.transpose(1, 2) for part in out], out, cos, sin, turned, False)


def _merge(grads: list[Tensor], cos: Tensor | None, sin: Tensor | None, turned: int) -> Tensor:
    out = _meta_merge(grads, cos, sin, turned)
    return _launch([g.transpose(1, 2) for g in grads], list(out.unbind(2)), out, cos, sin, turned, True)


def _launch(
    sources: list[Tensor],
    targets: list[Tensor],
    out: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    turned: int,
    backwards: bool,
) -> Tensor:
    """Fills `out`, of which `targets` are the parts; sources and targets [B, N, H, D] each."""
    batch, length, heads, width = sources[0].shape
    if out.numel() == 0:
        return out
    half = triton.next_power_of_2(max(1, width // 2))
    rows = max(1, min(triton.next_power_of_2(length), TILE // half))
    blocks = triton.cdiv(length, rows)
    if not turned:
        cos = sin = sources[0]  # not read
    else:
        cos, sin = cos.contiguous(), sin.contiguous()
    absent = [None] * (3 - len(sources))
    strides = [s for part in [*sources, *[sources[0]] * len(absent)] for s in part.stride()]
    with torch.cuda.device_of(out):
        turn_heads[(batch * blocks * len(sources),)](
            *sources,
            *absent,
            *targets,
            *absent,
            cos,
            sin,
            *strides,
            *targets[0].stride(),
            length,
            heads,
            blocks,
            turned=turned,
            parts=len(sources),
            width=width,
            half=half,
            rows=rows,
            backwards=backwards,
        )
    return out


if triton is not None:

    @triton.jit(do_not_specialize=["length", "heads", "blocks"])  # one kernel for every length
    def turn_heads(
        a,
        b,
        c,
        to_a,
        to_b,
        to_c,
        cos,
        sin,
        a_batch,
        a_row,
        a_head,
        a_channel,
        b_batch,
        b_row,
        b_head,
        b_channel,
        c_batch,
        c_row,
        c_head,
        c_channel,
        to_batch,
        to_row,
        to_head,
        to_channel,
        length,
        heads,
        blocks,
        turned: tl.constexpr,
        parts: tl.constexpr,
        width: tl.constexpr,
        half: tl.constexpr,
        rows: tl.constexpr,
        backwards: tl.constexpr,
    ):
        """One program: one part (of up to three, a, b, c) of one sequence, `rows` tokens, all heads."""
        program = tl.program_id(0)
        part = program % parts
        block = program // parts % blocks
        batch = (program // parts // blocks).to(tl.int64)  # offsets may pass 2**31
        n = block * rows + tl.arange(0, rows)
        if part == 0:
            turn_part(
                a + batch * a_batch,
                to_a + batch * to_batch,
                cos,
                sin,
                a_row,
                a_head,
                a_channel,
                to_row,
                to_head,
                to_channel,
                n,
                length,
                heads,
                turned > 0,
                width,
                half,
                backwards,
            )
        if parts > 1:
            if part == 1:
                turn_part(
                    b + batch * b_batch,
                    to_b + batch * to_batch,
                    cos,
                    sin,
                    b_row,
                    b_head,
                    b_channel,
                    to_row,
                    to_head,
                    to_channel,
                    n,
                    length,
                    heads,
                    turned > 1,
                    width,
                    half,
                    backwards,
                )
        if parts > 2:
            if part == 2:
                turn_part(
                    c + batch * c_batch,
                    to_c + batch * to_batch,
                    cos,
                    sin,
                    c_row,
                    c_head,
                    c_channel,
                    to_row,
                    to_head,
                    to_channel,
                    n,
                    length,
                    heads,
                    turned > 2,
                    width,
                    half,
                    backwards,
                )

    @triton.jit
    def turn_part(
        source,
        target,
        cos,
        sin,
        row,
        head,
        channel,
        to_row,
        to_head,
        to_channel,
        n,
        length,
        heads,
        turns: tl.constexpr,
        width: tl.constexpr,
        half: tl.constexpr,
        backwards: tl.constexpr,
    ):
        """The tokens n [rows] of one sequence, one head after another; the angles are read once for all heads."""
        pairs: tl.constexpr = width // 2
        n = n.to(tl.int64)
        i = tl.arange(0, half)
        here = (n < length)[:, None] & (i < pairs)[None, :]
        if turns:
            c = tl.load(cos + n[:, None] * pairs + i[None, :], mask=here, other=1.0)
            s = tl.load(sin + n[:, None] * pairs + i[None, :], mask=here, other=0.0)
            if backwards:
                s = -s
        read = source + n[:, None] * row + i[None, :] * channel
        write = target + n[:, None] * to_row + i[None, :] * to_channel
        for h in range(heads):
            x = tl.load(read + h * head, mask=here, other=0.0)
            y = tl.load(read + h * head + pairs * channel, mask=here, other=0.0)
            if turns:
                first, second = x.to(tl.float32), y.to(tl.float32)
                x = (first * c - second * s).to(x.dtype)
                y = (second * c + first * s).to(y.dtype)
            tl.store(write + h * to_head, x, mask=here)
            tl.store(write + h * to_head + pairs * to_channel, y, mask=here)
            if width % 2:
                last = tl.load(source + n * row + h * head + 2 * pairs * channel, mask=n < length, other=0.0)
                tl.store(target + n * to_row + h * to_head + 2 * pairs * to_channel, last, mask=n < length)


_LIBRARY = torch.library.Library("xcls", "FRAGMENT")
_LIBRARY.define("split_heads(Tensor x, Tensor? cos, Tensor? sin, int turned) -> Tensor")
_LIBRARY.define("merge_heads(Tensor[] grads, Tensor? cos, Tensor? sin, int turned) -> Tensor")
_LIBRARY.impl("split_heads", _meta_split, "Meta")
_LIBRARY.impl("merge_heads", _meta_merge, "Meta")
if triton is not None:
    for _device in ("CUDA", "CPU") if kernels.INTERPRETED else ("CUDA",):
        _LIBRARY.impl("split_heads", _split, _device)
        _LIBRARY.impl("merge_heads", _merge, _device)
