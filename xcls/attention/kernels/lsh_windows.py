"""LSH attention of one round on GPUs without tensor cores for Triton (V100, T4): PyTorch's fused attention on windows.

One Triton kernel gathers queries into chunks, unit keys and values into the windows that chunks see; PyTorch's fused
attention computes the products, again in the backward pass, so that only the inputs are kept. A second kernel adds up
the gradients of each token over all windows, without atomics. The readable version is `lsh_attention` through
`sorted_chunks.attend_plainly`.
Letters: B batch, H heads, N tokens, D head dimension, T chunks of a sequence, C slots of a chunk, K slots of a window.
A row is a token's place in the sequence, a slot its place in the sorted order. Tensors of chunks are [B, T C, H, D].
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from xcls.attention import kernels
from xcls.attention.base import Masks
from xcls.attention.kernels import tl, triton
from xcls.attention.sorted_chunks import Chunks

if triton is not None:
    from xcls.attention.kernels.lsh_programs import gather, unit

TILE = 32  # slots of one program: 4 warps hold their rows of 128 numbers in registers


def available(x: Tensor) -> bool:
    """Whether `attend_in_windows` takes tensors like x [B, H, N, D]: fp32 or fp16, D 16, 32, 64 or 128."""
    dtypes = (torch.float32, torch.float16)
    return x.dtype in dtypes and x.shape[-1] in (16, 32, 64, 128) and kernels.capability(x.device) >= (7, 0)


def attend_in_windows(qk: Tensor, v: Tensor, chunks: Chunks, masks: Masks) -> Tensor:
    """`lsh_attention` of `chunks` with one round and neither pairs nor bias: qk, v [B, H, N, D] -> [B, H, N, D].

    The output is laid out as [B, N, H, D]; rows of padding are finite. Call `available` first.
    """
    order = chunks.q_order[:, :, 0].int().contiguous()
    sizes = chunks.size, chunks.before, chunks.after
    return _Windows.apply(qk.contiguous(), v.contiguous(), order, mask_of(qk, chunks, masks), *sizes)


def mask_of(qk: Tensor, chunks: Chunks, masks: Masks) -> Tensor:
    """[B T, 1, C, K], 0 where a query may attend to a slot, else -inf; made by the first layer of a forward pass.

    A token attends to itself only where nothing else is allowed; rows of padding may attend to anything.
    """
    size = chunks.size

    def make() -> Tensor:
        own = torch.arange(chunks.number * size, device=qk.device).view(-1, size, 1)  # [T, C, 1]
        # [T, 1, K]
        seen = own[:, :1] + torch.arange(-chunks.before * size, (1 + chunks.after) * size, device=qk.device)
        count = chunks.length if chunks.count is None else chunks.count.view(-1, 1, 1, 1)
        real = (seen >= 0) & (seen < count)  # [B, T, 1, K], or without B
        others = real & (own != seen)
        mask = torch.full(others.shape, -torch.inf, dtype=qk.dtype, device=qk.device).masked_fill_(others, 0.0)
        mask.masked_fill_(~others.any(dim=-1, keepdim=True) & (real | ~real.any(dim=-1, keepdim=True)), 0.0)
        return mask.expand(len(qk), *mask.shape[-3:]).flatten(0, 1)[:, None]

    return masks.once(("lsh windows", size, chunks.before, chunks.after, qk.dtype), make)


class _Windows(torch.autograd.Function):
    """qk, v [B, H, N, D], order int32 [B, H, N], mask as `mask_of` makes it, chunk, before, after -> [B, H, N, D]."""

    @staticmethod
    def forward(ctx: Any, qk: Tensor, v: Tensor, order: Tensor, mask: Tensor, *sizes: int) -> Tensor:
        ctx.save_for_backward(qk, v, order, mask)
        ctx.sizes = sizes
        out = fused(torch.ops.xcls.lsh_windows(qk, v, order, *sizes), mask)
        slot = torch.empty_like(order, dtype=torch.int64)
        slot.scatter_(2, order.long(), torch.arange(order.shape[2], device=order.device).expand_as(order))
        slot = slot.transpose(1, 2)[..., None].expand(-1, -1, -1, v.shape[3])  # the slot of each token
        return out.gather(1, slot).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qk, v, order, mask = ctx.saved_tensors
        chunk = ctx.sizes[0]
        own = F.pad(order.transpose(1, 2).long(), (0, 0, 0, -order.shape[2] % chunk))
        grad = grad.transpose(1, 2).gather(1, own[..., None].expand(*own.shape, v.shape[3]))
        if own.shape[1] > order.shape[2]:  # slots without a token have no gradient
            grad[:, order.shape[2] :] = 0
        windows = [x.requires_grad_() for x in torch.ops.xcls.lsh_windows(qk, v, order, *ctx.sizes)]
        with torch.enable_grad():
            out = fused(windows, mask)
        grads = [x.contiguous() for x in torch.autograd.grad(out, windows, grad)]
        del windows, out, grad
        return *torch.ops.xcls.lsh_tokens(*grads, qk, order, *ctx.sizes), *[None] * 5


def fused(windows: list[Tensor], mask: Tensor) -> Tensor:
    """softmax(q.k + mask) v: q [B, T C, H, D], k and v [B, T K, H, D], mask [B T, 1, C, K] -> [B, T C, H, D]."""
    q, k, v = (x.view(len(mask), -1, *x.shape[2:]).transpose(1, 2) for x in windows)  # [B T, H, C or K, D]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    return out.transpose(1, 2).reshape(windows[0].shape)


def shapes_of_windows(qk: Tensor, v: Tensor, order: Tensor, chunk: int, before: int, after: int) -> list[Tensor]:
    """The results of `xcls::lsh_windows`, without values."""
    batch, heads, length, width = qk.shape
    slots = -(-length // chunk) * chunk
    return [qk.new_empty(batch, slots * seen, heads, width) for seen in (1, before + 1 + after, before + 1 + after)]


def run_windows(qk: Tensor, v: Tensor, order: Tensor, chunk: int, before: int, after: int) -> list[Tensor]:
    """Starts the kernel that gathers queries, unit keys and values into windows."""
    made = shapes_of_windows(qk, v, order, chunk, before, after)
    batch, heads, length, width = qk.shape
    span = (before + 1 + after) * chunk
    grid = (batch * heads * -(-length // chunk) * -(-span // TILE),)
    with torch.cuda.device_of(qk):
        windows_kernel[grid](qk, v, order, *made, heads, length, chunk, before * chunk, span, D=width, TILE=TILE)
    return made


def run_tokens(
    d_q: Tensor, d_k: Tensor, d_v: Tensor, qk: Tensor, order: Tensor, chunk: int, before: int, after: int
) -> tuple[Tensor, Tensor]:
    """Starts the kernel that adds up the gradients of windows for each token: those of qk and v, [B, H, N, D]."""
    made = torch.empty_like(qk), torch.empty_like(qk)
    batch, heads, length, width = qk.shape
    grid, sizes = (batch * heads * -(-length // TILE),), {"BEFORE": before, "AFTER": after, "D": width, "TILE": TILE}
    with torch.cuda.device_of(qk):
        tokens_kernel[grid](d_q, d_k, d_v, qk, order, *made, heads, length, chunk, **sizes)
    return made


if triton is not None:

    @triton.jit(do_not_specialize=["heads", "length"])
    def windows_kernel(
        QK, V, ORDER, Q, KEYS, VALUES, heads, length, chunk, first, span, D: tl.constexpr, TILE: tl.constexpr
    ):
        """TILE slots of one window of one sequence; `first`: where the window's own chunk begins in it, span: K.

        What stands in a slot before or behind the sequence is any token of it: finite, and masked.
        """
        tiles = (span + TILE - 1) // TILE
        number = (length + chunk - 1) // chunk
        window = tl.program_id(0) // tiles % number
        sequence = (tl.program_id(0) // tiles // number).to(tl.int64)
        place = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)  # in the window
        used = place < span
        slot = tl.minimum(tl.maximum(window * chunk - first + place, 0), length - 1)
        row = tl.load(ORDER + sequence * length + slot, mask=used, other=0)
        x = gather(QK + sequence * length * D, row, D, used, D)
        key, _ = unit(x, D)
        column = sequence % heads * D + tl.arange(0, D)[None, :]
        line = sequence // heads * number + window
        places = (line * span + place)[:, None] * (heads * D) + column
        tl.store(KEYS + places, key.to(x.dtype), mask=used[:, None])
        tl.store(VALUES + places, gather(V + sequence * length * D, row, D, used, D), mask=used[:, None])
        own = (place >= first) & (place < first + chunk)
        places = (line * chunk + place - first)[:, None] * (heads * D) + column
        tl.store(Q + places, x, mask=own[:, None])

    @triton.jit(do_not_specialize=["heads", "length"])
    def tokens_kernel(
        D_Q,
        D_K,
        D_V,
        QK,
        ORDER,
        D_X,
        D_VALUES,
        heads,
        length,
        chunk,
        BEFORE: tl.constexpr,
        AFTER: tl.constexpr,
        D: tl.constexpr,
        TILE: tl.constexpr,
    ):
        """dx = dq + (dk - k (k.dk)) / |x| for TILE tokens of one sequence, dk and dv summed over the windows, in fp32.

        Chunk c stands in the windows of the chunks c - AFTER to c + BEFORE.
        """
        tiles = (length + TILE - 1) // TILE
        number = (length + chunk - 1) // chunk
        sequence = (tl.program_id(0) // tiles).to(tl.int64)
        line = sequence // heads * number
        slot = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
        used = slot < length
        row = tl.load(ORDER + sequence * length + slot, mask=used, other=0)
        column = sequence % heads * D + tl.arange(0, D)[None, :]
        d_k = tl.zeros([TILE, D], tl.float32)
        d_v = tl.zeros([TILE, D], tl.float32)
        for apart in tl.static_range(-AFTER, BEFORE + 1):
            window = slot // chunk + apart
            inside = (used & (window >= 0) & (window < number))[:, None]
            place = (line + window) * ((BEFORE + 1 + AFTER) * chunk) + (BEFORE - apart) * chunk + slot % chunk
            places = place[:, None] * (heads * D) + column
            d_k += tl.load(D_K + places, mask=inside, other=0.0).to(tl.float32)
            d_v += tl.load(D_V + places, mask=inside, other=0.0).to(tl.float32)
        key, factor = unit(gather(QK + sequence * length * D, row, D, used, D), D)
        places = (line * chunk + slot)[:, None] * (heads * D) + column
        d_q = tl.load(D_Q + places, mask=used[:, None], other=0.0).to(tl.float32)
        d_x = d_q + (d_k - key * tl.sum(d_k * key, 1)[:, None]) * factor[:, None]
        places = (sequence * length + row)[:, None] * D + tl.arange(0, D)[None, :]
        tl.store(D_X + places, d_x.to(D_X.dtype.element_ty), mask=used[:, None])
        tl.store(D_VALUES + places, d_v.to(D_VALUES.dtype.element_ty), mask=used[:, None])


SIZES = "Tensor order, int chunk, int before, int after"
kernels.register("lsh_windows", f"(Tensor qk, Tensor v, {SIZES}) -> Tensor[]", shapes_of_windows, run_windows)
kernels.register(
    "lsh_tokens",
    f"(Tensor d_q, Tensor d_k, Tensor d_v, Tensor qk, {SIZES}) -> (Tensor, Tensor)",
    lambda d_q, d_k, d_v, qk, *rest: (torch.empty_like(qk), torch.empty_like(qk)),
    run_tokens,
)
