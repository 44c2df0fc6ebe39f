"""The Triton kernels of FAVOR+ for the output; those for the gradients are in favor_gradients.py.

favor_triton.py launches them, and says why the mathematics is written this way. Each tile of exponents lives in
registers. Offsets that may pass 2^31 are 64-bit. Nothing is added atomically, so that results repeat to the bit.

Letters: n tokens, m features; TILE_N, TILE_M how many of them a program holds; `row` counts the pairs of an example and
a head, WIDTH is the head dimension. q, k, v and their gradients are [B, H, N, D] in memory, `out` and `grad`
[B, N, H, D].
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

NEVER = tl.constexpr(-1e30)  # the logarithm of nothing: finite, so that differences have a value
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
VARIES = ["heads", "length", "num_features", "span", "splits"]  # compiled once for all their values


@triton.jit
def _dot(a, b, total=None):
    """a b + total, in fp32. The interpreter takes bf16 for integers; there the factors become fp32, which is exact."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="tf32x3")


@triton.jit
def _head(row, n, length, WIDTH: tl.constexpr):
    """Where the channels of the tokens n lie in [B, H, N, D]."""
    return (row.to(tl.int64) * length + n)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _merged(row, n, heads, length, WIDTH: tl.constexpr):
    """Where the channels of the tokens n lie in [B, N, H, D]."""
    return (((row // heads).to(tl.int64) * length + n) * heads + row % heads)[:, None] * WIDTH + tl.arange(0, WIDTH)[
        None, :
    ]


@triton.jit
def _real(padding, row, heads, length, n):
    """Which of the tokens n of an example exist and are no pads."""
    real = n < length
    if padding is not None:
        real &= tl.load(padding + (row // heads).to(tl.int64) * length + n, mask=real, other=1) == 0
    return real


@triton.jit
def _end(padding, row, heads, length, first, last):
    """Where the last token of first..last that is no pad ends: the tiles behind it are not worked on."""
    if padding is not None:
        n = tl.arange(0, 512)
        ends = tl.zeros([512], tl.int32) + first
        for start in range(first, last, 512):
            real = (start + n < last) & _real(padding, row, heads, length, start + n)
            ends = tl.where(real, start + n + 1, ends)
        last = tl.max(ends, 0)
    return last


@triton.jit
def _load_halves(halves, m, num_features, WIDTH: tl.constexpr):
    """The directions m as two halves [TILE_M, WIDTH]; the low one of fp32 is zero and not multiplied."""
    here = (m < num_features)[:, None]
    at = halves + m[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    return tl.load(at, mask=here, other=0.0), tl.load(at + num_features * WIDTH, mask=here, other=0.0)


@triton.jit
def _load_means(means, row, m, num_features, WIDTH: tl.constexpr):
    """The features m of `row` from means [rows, M, D]: [TILE_M, WIDTH]."""
    here = (m < num_features)[:, None]
    return tl.load(means + _head(row, m, num_features, WIDTH), mask=here, other=0.0)


@triton.jit
def _exponents(high, low, x, TOKENS_FIRST: tl.constexpr):
    """w_m.x_n for directions in two halves [TILE_M, WIDTH] and x [TILE_N, WIDTH]: [N, M] or [M, N]."""
    if TOKENS_FIRST:
        y = _dot(x, tl.trans(high))
        if high.dtype != tl.float32:
            y = _dot(x, tl.trans(low), y)
    else:
        y = _dot(high, tl.trans(x))
        if high.dtype != tl.float32:
            y = _dot(low, tl.trans(x), y)
    return y


@triton.jit(do_not_specialize=VARIES)
def sum_keys(
    k,
    v,
    halves,
    padding,
    peaks,
    totals,
    weighteds,
    valueses,
    counts,
    heads,
    length,
    num_features,
    span,
    splits,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
):
    """One program: the sums over one split of the keys for one block of features, of one example and head.

    With x_jm = w_m.k_j - |k_j|^2 / (2 sqrt D), and peak_m the largest: the sums of exp(x_jm - peak_m) and of its
    product with v, and those of v and of 1, which get epsilon.
    """
    program = tl.program_id(0)
    block, part = program % BLOCKS, (program // BLOCKS).to(tl.int64)
    split, row = part % splits, part // splits
    m, n = block * TILE_M + tl.arange(0, TILE_M), tl.arange(0, TILE_N)
    high, low = _load_halves(halves, m, num_features, WIDTH)
    first = split.to(tl.int32) * span
    end = _end(padding, row, heads, length, first, min(first + span, length))
    peak, total = tl.full([TILE_M], NEVER, tl.float32), tl.zeros([TILE_M], tl.float32)
    weighted = tl.zeros([TILE_M, WIDTH], tl.float32)
    values, count = tl.zeros([WIDTH], tl.float32), tl.zeros([TILE_N], tl.float32)
    for start in range(first, end, TILE_N):
        real = _real(padding, row, heads, length, start + n)
        here, at = real[:, None], _head(row, start + n, length, WIDTH)
        keys, vals = tl.load(k + at, mask=here, other=0.0), tl.load(v + at, mask=here, other=0.0)
        x = _exponents(high, low, keys, False)
        half_norm = tl.sum(keys.to(tl.float32) * keys.to(tl.float32), 1) * (0.5 / WIDTH**0.5)
        x -= tl.where(real, half_norm, float("inf"))[None, :]
        above = tl.maximum(peak, tl.max(x, 1))
        features, shrink = tl.exp(x - above[:, None]), tl.exp(peak - above)
        total = total * shrink + tl.sum(features, 1)
        weighted = _dot(features.to(vals.dtype), vals, weighted * shrink[:, None])
        values += tl.sum(vals.to(tl.float32), 0)
        count += real.to(tl.float32)
        peak = above
    to = part * (BLOCKS * TILE_M) + m
    tl.store(peaks + to, tl.where(m < num_features, peak, NEVER))
    tl.store(totals + to, total)
    tl.store(weighteds + to[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :], weighted)
    tl.store(valueses + part * WIDTH + tl.arange(0, WIDTH), values)
    tl.store(counts + part, tl.sum(count, 0))


@triton.jit(do_not_specialize=VARIES)
def merge_sums(
    peaks,
    totals,
    weighteds,
    valueses,
    counts,
    tops,
    mean,
    level,
    floor,
    num_features,
    splits,
    log_epsilon,
    WIDTH: tl.constexpr,
    TILE_M: tl.constexpr,
    PADDED: tl.constexpr,
):
    """One program: level and mean of TILE_M features from the sums of all splits, brought under the common peak: exact.

    tops: the largest exponent of each example and head, and so the stabiliser.
    """
    row, block = tl.program_id(0) // (PADDED // TILE_M), tl.program_id(0) % (PADDED // TILE_M)
    m = block * TILE_M + tl.arange(0, TILE_M)
    peak, total, count = tl.full([TILE_M], NEVER, tl.float32), tl.zeros([TILE_M], tl.float32), 0.0
    weighted, values = tl.zeros([TILE_M, WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32)
    for split in range(splits):
        part = row.to(tl.int64) * splits + split
        to = part * PADDED + m
        above = tl.maximum(peak, tl.load(peaks + to))
        old, new = tl.exp(peak - above), tl.exp(tl.load(peaks + to) - above)
        more = tl.load(weighteds + to[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :])
        total = total * old + tl.load(totals + to) * new
        weighted = weighted * old[:, None] + more * new[:, None]
        values += tl.load(valueses + part * WIDTH + tl.arange(0, WIDTH))
        count += tl.load(counts + part)
        peak = above
    floors = tl.load(tops + row) + log_epsilon
    seen = peak + tl.log(tl.where(count > 0, total, 1.0))
    least = floors + tl.log(tl.maximum(count, 1.0))
    levels = tl.maximum(seen, least)
    levels += tl.log(tl.exp(seen - levels) + tl.exp(least - levels))
    average = weighted * tl.exp(peak - levels)[:, None] + tl.exp(floors - levels)[:, None] * values[None, :]
    here = m < num_features
    tl.store(level + row.to(tl.int64) * num_features + m, levels, mask=here)
    tl.store(mean + _head(row, m, num_features, WIDTH), average, mask=here[:, None])
    tl.store(floor + row, floors)


@triton.jit(do_not_specialize=VARIES)
def answer_queries(
    q,
    halves,
    padding,
    mean,
    level,
    out,
    normaliser,
    heads,
    length,
    num_features,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
):
    """One program: out and the log of the softmax's normaliser for one tile of queries, of one example and head.

    Rows of pads are zero; their normaliser is so large that all their weights are zero in the backward pass.
    """
    tiles = tl.cdiv(length, TILE_N)
    row, start = tl.program_id(0) // tiles, tl.program_id(0) % tiles * TILE_N
    n = start + tl.arange(0, TILE_N)
    inside = n < length
    real = _real(padding, row, heads, length, n)
    queries = tl.load(q + _head(row, n, length, WIDTH), mask=real[:, None], other=0.0)
    peak, total = tl.full([TILE_N], 2 * NEVER, tl.float32), tl.zeros([TILE_N], tl.float32)
    answer = tl.zeros([TILE_N, WIDTH], tl.float32)
    for block in range(BLOCKS * tl.max(real.to(tl.int32), 0)):  # no work on a tile of pads
        m = block * TILE_M + tl.arange(0, TILE_M)
        high, low = _load_halves(halves, m, num_features, WIDTH)
        means = _load_means(mean, row, m, num_features, WIDTH)
        levels = tl.load(level + row.to(tl.int64) * num_features + m, mask=m < num_features, other=NEVER)
        y = _exponents(high, low, queries, True) + levels[None, :]
        above = tl.maximum(peak, tl.max(y, 1))
        weights, shrink = tl.exp(y - above[:, None]), tl.exp(peak - above)
        total = total * shrink + tl.sum(weights, 1)
        answer = _dot(weights.to(means.dtype), means, answer * shrink[:, None])
        peak = above
    answer = tl.where(real[:, None], answer / total[:, None], 0.0)
    tl.store(out + _merged(row, n, heads, length, WIDTH), answer, mask=inside[:, None])
    tl.store(normaliser + row.to(tl.int64) * length + n, tl.where(real, peak + tl.log(total), -NEVER), mask=inside)
