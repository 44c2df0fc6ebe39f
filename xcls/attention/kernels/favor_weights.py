"""FAVOR+ without masks between tokens on GPUs without tensor cores for Triton (V100, T4).

The mathematics is that of `favor_triton.py`. Triton kernels make the weights of both softmaxes from queries and keys, in fp32 without tensor cores, and make them again
in the backward pass; nothing else of the size tokens x features is kept. Products with these weights are PyTorch's.
Letters: B batch, H heads, N tokens, D head width, M features, G = B x H sequences, P tiles of a sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from xcls.attention import kernels
from xcls.attention.kernels.favor_rows import gradient_of_means
from xcls.attention.kernels.lsh_triton import unit_stride

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

MORE = 8  # columns that weights of keys have beside the features: 1 / n for the n real tokens, and zeros for alignment


def available(q: Tensor, num_features: int) -> bool:
    """Whether `favor` takes q [B, H, N, D]: fp16 or fp32, D and M powers of two from 16 to 128."""
    sizes = (16, 32, 64, 128)
    if q.dtype not in (torch.float16, torch.float32) or q.shape[-1] not in sizes or num_features not in sizes:
        return False
    return kernels.capability(q.device) >= (7, 0)


def favor(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, padding: Tensor | None, epsilon: float) -> Tensor:
    """As `favor_triton.favor`, but rows of pads are any finite numbers: q, k, v [B, H, N, D] -> [B, H, N, D]."""
    return _Favor.apply(unit_stride(q), unit_stride(k), v, directions, padding, epsilon)


class _Favor(torch.autograd.Function):
    """Keeps q, k and v, and what is of the size of the directions."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, directions: Tensor, padding: Tensor | None, epsilon: float
    ) -> Tensor:
        (batch, heads, length, width), features = q.shape, len(directions)
        w = directions.detach().float().contiguous()
        padding = None if padding is None else padding.contiguous()
        real = torch.full((batch,), length, device=q.device) if padding is None else (~padding).sum(dim=1)
        count = real.clamp(min=1).float()
        sums, largest = torch.ops.xcls.favor_sums(k, w, padding)
        lowered = -sums.logsumexp(dim=1)  # [G, M]
        v = v.reshape(-1, length, width)
        means = torch.bmm(torch.ops.xcls.favor_weights(k, w, lowered, padding, count).transpose(1, 2), v)
        total = -lowered - largest.amax(dim=(1, 2))[:, None]  # log t under the largest feature of all
        level = torch.logaddexp(total, (epsilon * count).log().repeat_interleave(heads)[:, None])
        share = (total - level).exp().unsqueeze(-1)  # what of a feature's sum is not epsilon
        mean = torch.lerp(means[:, features : features + 1], means[:, :features], share.to(v.dtype))
        ctx.save_for_backward(q, k, v, w, padding, count, lowered, level, share, means, mean)
        return torch.bmm(torch.ops.xcls.favor_weights(q, w, level, None, None), mean).view(q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, w, padding, count, lowered, level, share, means, mean = ctx.saved_tensors
        low, grad = w.to(v.dtype), grad.to(v.dtype).reshape(v.shape)
        change = torch.bmm(grad, mean.transpose(1, 2))  # [G, N, M]
        weights, sums = torch.ops.xcls.favor_weights_grad(q, w, level, None, None, None, change)
        q_grad = torch.mm(change.flatten(0, 1), low).view(q.shape)
        mean_grad = torch.bmm(weights.transpose(1, 2), grad)
        del weights, change
        means_grad, constant = gradient_of_means(mean_grad, means, share, sums.sum(dim=1).unsqueeze(-1))
        change = torch.bmm(v, means_grad[:, : len(w)].transpose(1, 2))
        weights, sums = torch.ops.xcls.favor_weights_grad(k, w, lowered, padding, count, constant, change)
        k_grad = torch.mm(change.flatten(0, 1), low).view(k.shape)
        k_grad.addcmul_(sums.view(*k.shape[:3], 1).to(v.dtype), k, value=-(k.shape[3] ** -0.5))
        return q_grad, k_grad, torch.bmm(weights, means_grad).view(k.shape), None, None, None


def tile(features: int) -> int:
    """Tokens of a program: as many as 4 warps hold the exponents of in registers."""
    return min(64, 8192 // features)


def empty_sums(x: Tensor, w: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """Room for the partial sums over the tiles of x [B, H, N, D]: [G, tiles, M], twice."""
    shape = x.shape[0] * x.shape[1], -(-x.shape[2] // tile(len(w))), len(w)
    return w.new_empty(shape), w.new_empty(shape)


def empty_weights(x: Tensor, w: Tensor, level: Tensor, padding: Tensor | None, count: Tensor | None) -> Tensor:
    """Room for the weights of x [B, H, N, D], [G, N, M], with more columns where a `count` is given."""
    return x.new_empty(x.shape[0] * x.shape[1], x.shape[2], len(w) + MORE * (count is not None))


def empty_grads(
    x: Tensor, w: Tensor, level: Tensor, padding: Tensor | None, count: Tensor | None, *_: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Room for the gradient of the weights, and of what is summed over tiles or rows."""
    of_rows = w.new_empty(x.shape[0] * x.shape[1], x.shape[2])
    return empty_weights(x, w, level, padding, count), empty_sums(x, w, None)[0] if count is None else of_rows


def run_sums(x: Tensor, w: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logarithms of each tile's sums of exponentials, and its largest exponents: [G, P, M] each."""
    made = empty_sums(x, w, padding)
    launch(x, w, None, padding, None, None, None, None, *made, mode=0)
    return made


def run_weights(x: Tensor, w: Tensor, level: Tensor, padding: Tensor | None, count: Tensor | None) -> Tensor:
    """exp(x.w + level), divided by its sum over the features for queries (count None), less half norms for keys."""
    made = empty_weights(x, w, level, padding, count)
    launch(x, w, level, padding, count, None, None, made, None, None, mode=1 + (count is not None))
    return made


def run_grads(
    x: Tensor,
    w: Tensor,
    level: Tensor,
    padding: Tensor | None,
    count: Tensor | None,
    constant: Tensor | None,
    grad: Tensor,
) -> tuple[Tensor, Tensor]:
    """The weights again, and `grad`, their gradient (of keys without `constant`), becomes that of the exponents.

    With it come its sums: over the tokens of tiles for queries, [G, P, M], over features for keys, [G, N].
    """
    weights, sums = empty_grads(x, w, level, padding, count)
    launch(x, w, level, padding, count, constant, grad, weights, sums, None, mode=1 + (count is not None))
    return weights, sums


def launch(x: Tensor, w: Tensor, *tensors: Tensor | None, mode: int) -> None:
    """Starts the kernel of the weights on the device of x [B, H, N, D], in one of its modes."""
    batch, heads, length, width = x.shape
    with torch.cuda.device_of(x):
        weights_kernel[(batch * heads * -(-length // tile(len(w))),)](
            x, w, *tensors, *x.stride()[:3], heads, length, MODE=mode, D=width, M=len(w), TILE=tile(len(w)), WIDER=MORE
        )


if triton is not None:

    @triton.jit(do_not_specialize=["heads", "length"])
    def weights_kernel(
        X,
        W,
        LEVEL,
        PADDING,
        COUNT,
        CONSTANT,
        GRAD,
        OUT,
        SUMS,
        LARGEST,
        x_b,
        x_h,
        x_n,
        heads,
        length,
        MODE: tl.constexpr,
        D: tl.constexpr,
        M: tl.constexpr,
        TILE: tl.constexpr,
        WIDER: tl.constexpr,
    ):
        """TILE tokens of one sequence and all features. MODE 0: sums over keys, 1: weights of queries, 2: of keys."""
        tiles = (length + TILE - 1) // TILE
        sequence = (tl.program_id(0) // tiles).to(tl.int64)
        row = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
        m = tl.arange(0, M)
        inside = row < length
        real = inside
        if PADDING is not None:
            real = inside & (tl.load(PADDING + sequence // heads * length + row, mask=inside, other=1) == 0)
        X += sequence // heads * x_b + sequence % heads * x_h
        e = tl.zeros([TILE, M], tl.float32)
        norm = tl.zeros([TILE], tl.float32)
        for start in range(0, D, 16):
            d = start + tl.arange(0, 16)
            x = tl.load(X + row.to(tl.int64)[:, None] * x_n + d[None, :], mask=inside[:, None], other=0.0).to(
                tl.float32
            )
            e = tl.dot(x, tl.load(W + d[:, None] + m[None, :] * D), e, input_precision="ieee")
            norm += tl.sum(x * x, 1)
        if MODE != 1:
            excluded = tl.where(inside, -1e30, -float("inf"))  # a pad's is finite, so that a tile of pads gives no NaN
            e = tl.where(real[:, None], e - (norm * (0.5 / D**0.5))[:, None], excluded[:, None])
        if MODE == 0:
            top = tl.max(e, 0)
            places = tl.program_id(0).to(tl.int64) * M + m
            tl.store(LARGEST + places, top)
            tl.store(SUMS + places, top + tl.log(tl.sum(tl.exp(e - top[None, :]), 0)))
        else:
            e += tl.load(LEVEL + sequence * M + m)[None, :]
            line = sequence * length + row
            if MODE == 1:
                e = tl.exp(e - tl.max(e, 1)[:, None])
                e = e / tl.sum(e, 1)[:, None]
                places = line[:, None] * M + m[None, :]
            else:
                e = tl.where(real[:, None], tl.exp(e), 0.0)
                places = line[:, None] * (M + WIDER) + m[None, :]
                more = tl.arange(0, WIDER)[None, :]
                uniform = tl.where(real[:, None] & (more == 0), 1.0 / tl.load(COUNT + sequence // heads), 0.0)
                uniform = uniform.to(OUT.dtype.element_ty)
                tl.store(OUT + line[:, None] * (M + WIDER) + M + more, uniform, mask=inside[:, None])
            tl.store(OUT + places, e.to(OUT.dtype.element_ty), mask=inside[:, None])
            if GRAD is not None:
                places = line[:, None] * M + m[None, :]
                g = tl.load(GRAD + places, mask=inside[:, None], other=0.0).to(tl.float32)
                if MODE == 1:
                    g = e * (g - tl.sum(e * g, 1)[:, None])
                    tl.store(SUMS + tl.program_id(0).to(tl.int64) * M + m, tl.sum(g, 0))
                else:
                    g = e * (g + tl.load(CONSTANT + sequence * M + m)[None, :])
                    tl.store(SUMS + line, tl.sum(g, 1), mask=inside)
                tl.store(GRAD + places, g.to(GRAD.dtype.element_ty), mask=inside[:, None])


LIBRARY = torch.library.Library("xcls", "FRAGMENT")
OF = "Tensor x, Tensor w, Tensor level, Tensor? padding, Tensor? count"
LIBRARY.define("favor_sums(Tensor x, Tensor w, Tensor? padding) -> (Tensor, Tensor)")
LIBRARY.define(f"favor_weights({OF}) -> Tensor")
LIBRARY.define(f"favor_weights_grad({OF}, Tensor? constant, Tensor(a!) grad) -> (Tensor, Tensor)")
MADE = {
    "favor_sums": (empty_sums, run_sums),
    "favor_weights": (empty_weights, run_weights),
    "favor_weights_grad": (empty_grads, run_grads),
}
for name, (shapes, run) in MADE.items():
    LIBRARY.impl(name, shapes, "Meta")
    for device in (["CUDA"] + ["CPU"] * kernels.INTERPRETED) * (triton is not None):
        LIBRARY.impl(name, run, device)
