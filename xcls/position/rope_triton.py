"""Splits the merged projection into q, k and v and applies the rotary embedding in one pass over memory (Triton).

PyTorch's operations read and write q and k once for every step of the formula, and once more to make them head-major.
This kernel reads and writes each number once, forward and backward. Tests compare it with `rotate_pairs` in rope.py.

Letters: B batch, N tokens, P parts (those of q, k and v that exist), H heads, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xcls.attention import kernels
from xcls.attention.kernels import tl, triton

TILE = 1024  # pairs of channels that one program rotates at a time


def available(x: Tensor) -> bool:
    """Whether `split_heads` takes this tensor: fp32, fp16 or bf16, where `kernels.capability` is 7.0 or more."""
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    return kernels.capability(x.device) >= (7, 0)


def split_heads(x: Tensor, cos: Tensor | None, sin: Tensor | None, turned: int) -> tuple[Tensor, ...]:
    """x [B, N, P, H, D], P = 1..3 -> P tensors [B, H, N, D], contiguous, in the dtype of x.

    The first `turned` of the P parts are rotated as by `rotate_pairs`, with cos and sin [N, D // 2] (fp32); the others
    are copied. Computed in fp32. With an odd D the last channel is not rotated. With turned = 0, cos and sin may be
    None. Call `available` first.
    """
    return _SplitHeads.apply(x, cos, sin, turned)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate_pairs`: x [B, H, N, D], cos and sin [N, D // 2] -> [B, H, N, D], contiguous, in the dtype of x."""
    return split_heads(x.transpose(1, 2).unsqueeze(2), cos, sin, 1)[0]


class _SplitHeads(torch.autograd.Function):
    """The gradient of a rotation is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor | None, sin: Tensor | None, turned: int) -> tuple[Tensor, ...]:
        ctx.turned = turned
        ctx.save_for_backward(cos, sin)
        return torch.ops.xcls.split_heads(x, cos, sin, turned).unbind(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return torch.ops.xcls.merge_heads(list(grads), cos, sin, ctx.turned), None, None, None


def shape_of_split(x: Tensor, cos: Tensor | None, sin: Tensor | None, turned: int) -> Tensor:
    """The result of `xcls::split_heads` without values: [P, B, H, N, D]."""
    batch, length, parts, heads, width = x.shape
    return x.new_empty((parts, batch, heads, length, width))


def shape_of_merged(grads: list[Tensor], cos: Tensor | None, sin: Tensor | None, turned: int) -> Tensor:
    """The result of `xcls::merge_heads` without values: [B, N, P, H, D]."""
    batch, heads, length, width = grads[0].shape
    return grads[0].new_empty((batch, length, len(grads), heads, width))


def run_split(x: Tensor, cos: Tensor | None, sin: Tensor | None, turned: int) -> Tensor:
    """`xcls::split_heads`."""
    out = shape_of_split(x, cos, sin, turned)
    launch(x if x.stride(4) == 1 else x.contiguous(), list(out), cos, sin, turned, backwards=False)
    return out


def run_merge(grads: list[Tensor], cos: Tensor | None, sin: Tensor | None, turned: int) -> Tensor:
    """`xcls::merge_heads`."""
    out = shape_of_merged(grads, cos, sin, turned)
    launch(out, [grad.contiguous() for grad in grads], cos, sin, turned, backwards=True)
    return out


def launch(
    merged: Tensor, parts: list[Tensor], cos: Tensor | None, sin: Tensor | None, turned: int, backwards: bool
) -> None:
    """Starts the kernel: merged [B, N, P, H, D], adjacent channels, to parts [B, H, N, D], contiguous, or backwards."""
    batch, length, number, heads, width = merged.shape
    half = triton.next_power_of_2(max(1, width // 2))
    rows = max(1, min(triton.next_power_of_2(max(1, length)), TILE // half))
    blocks = triton.cdiv(length, rows)
    angles = [None if x is None or not turned else x.contiguous() for x in (cos, sin)]
    tensors = merged, *parts, *[None] * (3 - number), *angles
    fixed = {"turned": turned, "parts": number, "width": width, "half": half, "rows": rows, "backwards": backwards}
    if merged.numel() > 0:
        with torch.cuda.device_of(merged):
            turn_heads[(batch * blocks * number,)](*tensors, *merged.stride()[:4], length, heads, blocks, **fixed)


if triton is not None:

    @triton.jit(do_not_specialize=["length", "heads", "blocks"])  # one kernel for every length
    def turn_heads(
        merged,
        a,
        b,
        c,
        cos,
        sin,
        by_batch,
        by_row,
        by_part,
        by_head,
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
        """One program: one part (a, b or c) of one sequence, `rows` tokens, all heads; angles are read once for all
        heads.

        Forward from `merged` to the part, backwards from the part to `merged`, by the opposite angle.
        """
        pairs: tl.constexpr = width // 2
        part = tl.program_id(0) % parts
        sequence = (tl.program_id(0) // parts // blocks).to(tl.int64)  # offsets may pass 2**31
        own = a
        if parts > 1:
            if part == 1:
                own = b
        if parts > 2:
            if part == 2:
                own = c
        n = (tl.program_id(0) // parts % blocks * rows + tl.arange(0, rows)).to(tl.int64)
        i = tl.arange(0, half)
        here = (n < length)[:, None] & (i < pairs)[None, :]
        whole = merged + sequence * by_batch + part * by_part + n * by_row
        own += sequence * heads * length * width + n * width
        cosine, sine = tl.full([rows, half], 1.0, tl.float32), tl.zeros([rows, half], tl.float32)
        if turned > 0:
            cosine = tl.load(cos + n[:, None] * pairs + i[None, :], mask=here, other=1.0)
            sine = tl.load(sin + n[:, None] * pairs + i[None, :], mask=here, other=0.0)
        if backwards:
            sine = -sine
        for h in range(heads):
            source = whole + h * by_head
            target = own + h * length * width
            if backwards:
                source, target = target, source
            x = tl.load(source[:, None] + i[None, :], mask=here, other=0.0)
            y = tl.load(source[:, None] + pairs + i[None, :], mask=here, other=0.0)
            first, second = x.to(tl.float32), y.to(tl.float32)
            if turned > 0:
                if part < turned:  # else bits are copied
                    x = (first * cosine - second * sine).to(x.dtype)
                    y = (second * cosine + first * sine).to(y.dtype)
            tl.store(target[:, None] + i[None, :], x, mask=here)
            tl.store(target[:, None] + pairs + i[None, :], y, mask=here)
            if width % 2:
                last = tl.load(source + 2 * pairs, mask=n < length, other=0.0)
                tl.store(target + 2 * pairs, last, mask=n < length)


SETTINGS = "Tensor? cos, Tensor? sin, int turned"
kernels.register("split_heads", f"(Tensor x, {SETTINGS}) -> Tensor", shape_of_split, run_split)
kernels.register("merge_heads", f"(Tensor[] grads, {SETTINGS}) -> Tensor", shape_of_merged, run_merge)
