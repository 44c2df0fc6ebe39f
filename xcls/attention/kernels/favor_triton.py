"""FAVOR+ without masks between tokens by Triton kernels (favor_kernels.py): features are recomputed, never stored.

With the total and the mean of each feature over the keys, linear attention is softmax attention twice:

    level_m = log sum_j phi_m(k_j),    mean_m = sum_j phi_m(k_j) v_j / sum_j phi_m(k_j),
    out_i = sum_m softmax_m(w_m.q_i + level_m) mean_m

The factors of products are then weights in [0, 1] or means of values, which do not overflow in 16 bits; exponents, sums
and normalisers are fp32. Queries and keys are exact in 16 bits, and directions are the sum of two 16-bit halves; so two
products on tensor cores give exponents of fp32 precision. Stabiliser and epsilon are those of the readable formula;
tests compare the two. Source: Choromanski et al. 2021, "Rethinking Attention with Performers".

Letters: B batch, H heads, N tokens, D head dimension, M random features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xcls.attention import kernels
from xcls.attention.kernels import as_token_major, empty_token_major, triton

if triton is not None:
    from xcls.attention.kernels import favor_gradients, favor_kernels

SPLIT_TOKENS = 256  # the smallest number of tokens that gets its own partial sums


def available(q: Tensor, num_features: int) -> bool:
    """Whether `favor` takes q [B, H, N, D], with k and v like it, and this number of features.

    It needs D 16, 32, 64 or (not in fp32) 128, M from 16 to 256, and compute capability 8.0 (`kernels.capability`).
    """
    widest = {torch.float16: 128, torch.bfloat16: 128, torch.float32: 64}.get(q.dtype, 0)
    if q.shape[-1] not in (16, 32, 64, 128) or q.shape[-1] > widest or not 16 <= num_features <= 256:
        return False
    return kernels.capability(q.device) >= (8, 0)


def favor(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, padding: Tensor | None, epsilon: float) -> Tensor:
    """Linear attention with the features exp(w.x - |x|^2 / (2 sqrt D)): q, k, v [B, H, N, D] -> [B, H, N, D].

    q, k, v: of one dtype, any strides. directions: w [M, D], fp32, which includes the scale D^(-1/4) of q and k.
    padding: bool [B, N], True = padding token, or None; such tokens may hold anything, and their output is zero.
    epsilon: added to the features of keys, whose largest per (example, head) is 1. The output is laid out as
    [B, N, H, D], so that heads are merged without a copy. Gradients reach q, k and v; they treat the stabiliser as a
    constant, and are not themselves differentiable. Call `available` first.
    """
    return _Favor.apply(q, k, v, directions, padding, epsilon)


class _Favor(torch.autograd.Function):
    """Keeps q, k, v, out, and the normalisers, means and levels, which are smaller: nothing of size N x M."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, directions: Tensor, padding: Tensor | None, epsilon: float
    ) -> Tensor:
        q, k, v, directions = (x.contiguous() for x in (q, k, v, directions.detach().float()))
        padding = None if padding is None else padding.contiguous()
        out, *rest = torch.ops.xcls.favor_forward(q, k, v, directions, padding, epsilon)
        ctx.save_for_backward(q, k, v, directions, padding, out, *rest)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = torch.ops.xcls.favor_backward(*ctx.saved_tensors, as_token_major(grad))
        return *gradients, None, None, None


def _processors(device: torch.device) -> int:
    """The number of multiprocessors."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _halves(directions: Tensor, dtype: torch.dtype) -> Tensor:
    """The directions [M, D] as two summands in `dtype`, [2, M, D]: each product with one is exact in fp32."""
    high = directions.to(dtype)
    return torch.stack((high, (directions - high).to(dtype)))


class _Plan:
    """The tiles for q [B, H, N, D] and M features, and the launch options of each kernel.

    A program of the sums holds a block of features in registers and loops over one of `splits` parts of the sequence,
    `span` tokens long; a program of the other kernels holds a tile of tokens and loops over features. Sizes follow the
    compiler's report: few spilled registers, and shared memory of at most 99 KiB (the limit at 8.6, 8.9, 12.0).
    """

    def __init__(self, q: Tensor, num_features: int) -> None:
        batch, heads, length, width = q.shape
        if q.dtype == torch.float32:
            tokens, sums, queries, keys = 32, (32, 4), (32, 4), (32, 4)  # features of a block, warps
        elif width > 64:
            tokens, sums, queries, keys = 32, (64, 8), (64, 8), (64, 8)
        else:
            tokens, sums, queries, keys = 64, (128, 8), (64, 4), (32, 4)
        self.rows, self.tiles = batch * heads, triton.cdiv(length, tokens)
        wanted = round(2 * _processors(q.device) / self.rows)
        self.span = triton.cdiv(self.tiles, max(1, min(wanted, length // SPLIT_TOKENS))) * tokens
        self.splits = triton.cdiv(length, self.span)
        shared = {"WIDTH": width}

        def launch(features: int, warps: int) -> dict[str, int]:
            features = min(features, max(16, triton.next_power_of_2(num_features)))
            blocks = triton.cdiv(num_features, features)
            tiles = {"TILE_N": tokens, "TILE_M": features, "BLOCKS": blocks}
            return shared | tiles | {"num_warps": warps, "num_stages": 2}

        self.sums, self.queries, self.keys = launch(*sums), launch(*queries), launch(*keys)
        self.padded = self.sums["BLOCKS"] * self.sums["TILE_M"]
        self.merges = shared | {"TILE_M": 16, "PADDED": self.padded, "num_warps": 4}


Made = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def shapes_forward(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, padding: Tensor | None, epsilon: float) -> Made:
    """out [B, H, N, D] and mean [B, H, M, D] like v; normaliser [B, H, N], level [B, H, M] and floor [B, H], fp32."""
    heads = q.shape[:2]
    sizes = q.shape[:3], (*heads, directions.shape[0]), heads
    normaliser, level, floor = (q.new_empty(size, dtype=torch.float32) for size in sizes)
    return empty_token_major(v), normaliser, v.new_empty(*heads, *directions.shape), level, floor


def run_forward(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, padding: Tensor | None, epsilon: float) -> Made:
    """`xcls::favor_forward`."""
    made = out, normaliser, mean, level, floor = shapes_forward(q, k, v, directions, padding, epsilon)
    if out.numel() == 0:
        return made
    (_, heads, length, width), num_features, plan = q.shape, directions.shape[0], _Plan(q, directions.shape[0])
    log_epsilon = math.log(epsilon) if epsilon > 0 else favor_kernels.NEVER.value
    sizes = {"heads": heads, "length": length, "num_features": num_features}
    shapes: Any = [plan.padded], [plan.padded], [plan.padded, width], [width], []
    parts = [directions.new_empty(plan.rows, plan.splits, *shape) for shape in shapes]
    with torch.cuda.device_of(q):
        halves, programs = _halves(directions, q.dtype), plan.rows * plan.splits * plan.sums["BLOCKS"]
        favor_kernels.sum_keys[(programs,)](
            k, v, halves, padding, *parts, **sizes, span=plan.span, splits=plan.splits, **plan.sums
        )
        found = *parts, parts[0].amax(dim=(1, 2)), mean, level, floor
        favor_kernels.merge_sums[(plan.rows * (plan.padded // 16),)](
            *found, num_features, plan.splits, log_epsilon, **plan.merges
        )
        favor_kernels.answer_queries[(plan.rows * plan.tiles,)](
            q, halves, padding, mean, level, out, normaliser, **sizes, **plan.queries
        )
    return made


def run_backward(*given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`xcls::favor_backward`, with the arguments of the schema below: dq, dk, dv [B, H, N, D]."""
    q, k, v, directions, padding, out, normaliser, mean, level, floor, grad = given
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    if out.numel() == 0:
        return dq, dk, dv
    (_, heads, length, width), num_features, plan = q.shape, directions.shape[0], _Plan(q, directions.shape[0])
    sizes = {"heads": heads, "length": length, "num_features": num_features}
    parts = [directions.new_empty(plan.rows, plan.splits, plan.padded, *shape) for shape in ([width], [])]
    dmean, dtotal, share = torch.empty_like(mean), torch.empty_like(level), torch.empty_like(level)
    with torch.cuda.device_of(q):
        halves = _halves(directions, q.dtype)
        read = q, grad, out, halves, padding, normaliser, mean, level
        favor_gradients.backward_queries[(plan.rows * plan.splits,)](
            *read, dq, *parts, **sizes, span=plan.span, splits=plan.splits, **plan.sums
        )
        favor_gradients.merge_gradients[(plan.rows * (plan.padded // 16),)](
            *parts, level, dmean, dtotal, share, num_features, plan.splits, **plan.merges
        )
        favor_gradients.backward_keys[(plan.rows * plan.tiles,)](
            k, v, halves, padding, share, floor, dmean, dtotal, dk, dv, **sizes, **plan.keys
        )
    return dq, dk, dv


GIVEN = "Tensor q, Tensor k, Tensor v, Tensor directions, Tensor? padding"
FOUND = "Tensor out, Tensor normaliser, Tensor mean, Tensor level, Tensor floor"
FIVE = "Tensor, Tensor, Tensor, Tensor, Tensor"
kernels.register("favor_forward", f"({GIVEN}, float epsilon) -> ({FIVE})", shapes_forward, run_forward)
kernels.register(
    "favor_backward",
    f"({GIVEN}, {FOUND}, Tensor grad) -> (Tensor, Tensor, Tensor)",
    lambda q, k, v, *rest: tuple(torch.empty_like(x) for x in (q, k, v)),
    run_backward,
)
