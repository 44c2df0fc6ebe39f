"""What `favor_products.py` does between its matrix products, in one pass over memory each (Triton, from 7.0 on).

Letters: G sequences (one head of one example each), R rows, C columns, M features, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xcls.attention import kernels

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

WHOLE = 4096  # columns up to which a program holds whole rows in registers; longer ones are read twice


def available(x: Tensor) -> bool:
    """Whether these operations take exponents or gradients like x: not fp64, which only tests have."""
    return x.dtype != torch.float64 and kernels.capability(x.device) >= (7, 0)


def softmax_into(x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(x) over the last dimension into the first rows of `out`; the logarithm of its sum and the largest of each row.

    x [G, R, C], contiguous; out [G, at least R, C], contiguous, of any dtype -> [G, R, 1] each, like x. No gradient.
    """
    if available(x):
        return torch.ops.xcls.favor_softmax(x, out)
    weights = torch.softmax(x, dim=-1)
    most, where = weights.max(dim=-1, keepdim=True)
    out[:, : x.shape[1]] = weights
    largest = x.gather(-1, where)
    return largest - most.log(), largest


def gradient_of_means(mean_grad: Tensor, means: Tensor, share: Tensor, level_grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of mean = share weighted + (1 - share) alike, with means [G, M+1, D] = (weighted, alike), or more rows.

    mean_grad [G, M, D]; share [G, M, 1]; level_grad [G, M, 1], that of the level, of which each feature's sum has its
    share -> the gradient of `means`, like it, and what it takes from the softmax over keys, [G, M, 1]:
    share (level_grad + (1 - share) mean_grad.(weighted - alike)) - share mean_grad.weighted.
    """
    if available(mean_grad):
        return torch.ops.xcls.favor_means_grad(mean_grad, means, share, level_grad)
    mean_grad, features = mean_grad.to(share.dtype), mean_grad.shape[1]
    weighted, alike = means[:, :features].to(share.dtype), means[:, features : features + 1].to(share.dtype)
    tilt = (mean_grad * (weighted - alike)).sum(dim=-1, keepdim=True)
    weighted_grad = share * mean_grad
    alike_grad = ((1 - share) * mean_grad).sum(dim=1, keepdim=True)
    constant = share * (level_grad + (1 - share) * tilt) - (weighted_grad * weighted).sum(dim=-1, keepdim=True)
    grad = torch.cat((weighted_grad, alike_grad, torch.zeros_like(means[:, features + 1 :])), dim=1)
    return grad.to(means.dtype), constant


def run_softmax(x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Starts the kernel of the softmax: x [G, N, M] -> `out`, and the sum and the largest of each row, [G, N, 1]."""
    sequences, rows, columns = x.shape
    sums, largest = (x.new_empty(sequences, rows, 1) for _ in range(2))
    block = min(WHOLE, triton.next_power_of_2(columns))
    tile = max(1, 2048 // block)
    with torch.cuda.device_of(x):
        softmax_kernel[(sequences * triton.cdiv(rows, tile),)](
            x, out, sums, largest, rows, out.shape[1], columns, ONCE=columns <= block, TILE=tile, BLOCK=block
        )
    return sums, largest


def run_means_grad(mean_grad: Tensor, means: Tensor, share: Tensor, level_grad: Tensor) -> tuple[Tensor, Tensor]:
    """Starts the kernel of the gradient of the means: that of the sums, like `means`, and of their constant, like `share`."""
    grad, constant = torch.zeros_like(means), torch.empty_like(share)
    sequences, features, width = mean_grad.shape
    with torch.cuda.device_of(means):
        means_grad_kernel[(sequences,)](
            mean_grad,
            means,
            share,
            level_grad,
            grad,
            constant,
            features,
            means.shape[1],
            width,
            TILE=16,
            D=triton.next_power_of_2(width),
        )
    return grad, constant


if triton is not None:

    @triton.jit(do_not_specialize=["rows", "out_rows"])
    def softmax_kernel(
        X, OUT, SUMS, LARGEST, rows, out_rows, columns, ONCE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr
    ):
        """TILE rows of one sequence, BLOCK columns at a time: maximum and sum as they go, then the weights."""
        tiles = (rows + TILE - 1) // TILE
        sequence = (tl.program_id(0) // tiles).to(tl.int64)
        row = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
        column = tl.arange(0, BLOCK)
        X += (sequence * rows + row)[:, None] * columns + column[None, :]
        OUT += (sequence * out_rows + row)[:, None] * columns + column[None, :]
        inside = (row < rows)[:, None]
        top = tl.full([TILE], -float("inf"), tl.float32)
        total = tl.zeros([TILE], tl.float32)
        if ONCE:
            x = tl.load(X, mask=inside & (column < columns)[None, :], other=-float("inf"))
            top = tl.where(row < rows, tl.max(x, 1), 0.0)
            weights = tl.exp(x - top[:, None])
            total = tl.where(row < rows, tl.sum(weights, 1), 1.0)
            tl.store(
                OUT, (weights / total[:, None]).to(OUT.dtype.element_ty), mask=inside & (column < columns)[None, :]
            )
        else:
            for start in range(0, columns, BLOCK):
                x = tl.load(X + start, mask=inside & (start + column < columns)[None, :], other=-float("inf"))
                higher = tl.maximum(top, tl.where(row < rows, tl.max(x, 1), 0.0))
                total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher[:, None]), 1)
                top = higher
            for start in range(0, columns, BLOCK):
                used = inside & (start + column < columns)[None, :]
                x = tl.load(X + start, mask=used, other=0.0)
                weights = tl.exp(x - top[:, None]) / total[:, None]
                tl.store(OUT + start, weights.to(OUT.dtype.element_ty), mask=used)
        tl.store(LARGEST + sequence * rows + row, top, mask=row < rows)
        tl.store(SUMS + sequence * rows + row, top + tl.log(total), mask=row < rows)

    @triton.jit
    def means_grad_kernel(
        MEAN_GRAD, MEANS, SHARE, LEVEL_GRAD, GRAD, CONSTANT, features, rows, width, TILE: tl.constexpr, D: tl.constexpr
    ):
        """One sequence, TILE features at a time; see `gradient_of_means`."""
        sequence = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, D)
        inside = column < width
        MEANS += sequence * rows * width
        GRAD += sequence * rows * width
        alike = tl.load(MEANS + features * width + column, mask=inside, other=0.0).to(tl.float32)
        alike_grad = tl.zeros([D], tl.float32)
        for start in range(0, features, TILE):
            row = start + tl.arange(0, TILE)
            used = (row < features)[:, None] & inside[None, :]
            places = row[:, None] * width + column[None, :]
            g = tl.load(MEAN_GRAD + sequence * features * width + places, mask=used, other=0.0).to(tl.float32)
            weighted = tl.load(MEANS + places, mask=used, other=0.0).to(tl.float32)
            share = tl.load(SHARE + sequence * features + row, mask=row < features, other=0.0)
            level_grad = tl.load(LEVEL_GRAD + sequence * features + row, mask=row < features, other=0.0)
            tilt = tl.sum(g * (weighted - alike[None, :]), 1)
            constant = share * (level_grad + (1 - share) * tilt - tl.sum(g * weighted, 1))
            tl.store(GRAD + places, (share[:, None] * g).to(GRAD.dtype.element_ty), mask=used)
            tl.store(CONSTANT + sequence * features + row, constant, mask=row < features)
            alike_grad += tl.sum((1 - share)[:, None] * g, 0)
        tl.store(GRAD + features * width + column, alike_grad.to(GRAD.dtype.element_ty), mask=inside)


LIBRARY = torch.library.Library("xcls", "FRAGMENT")
LIBRARY.define("favor_softmax(Tensor x, Tensor(a!) out) -> (Tensor, Tensor)")
LIBRARY.define("favor_means_grad(Tensor mean_grad, Tensor means, Tensor share, Tensor level_grad) -> (Tensor, Tensor)")
LIBRARY.impl("favor_softmax", lambda x, out: tuple(x.new_empty(*x.shape[:2], 1) for _ in range(2)), "Meta")
LIBRARY.impl(
    "favor_means_grad", lambda g, means, share, level: (torch.empty_like(means), torch.empty_like(share)), "Meta"
)
if triton is not None:
    for device in ["CUDA"] + ["CPU"] * kernels.INTERPRETED:
        LIBRARY.impl("favor_softmax", run_softmax, device)
        LIBRARY.impl("favor_means_grad", run_means_grad, device)
