"""The Triton kernels of FAVOR+ for the gradients of q, k and v; letters and layout as in favor_kernels.py."""

from __future__ import annotations

import triton
import triton.language as tl

from xcls.attention.kernels.favor_kernels import (
    NEVER,
    VARIES,
    _dot,
    _end,
    _exponents,
    _head,
    _load_halves,
    _load_means,
    _merged,
    _real,
)


@triton.jit(do_not_specialize=VARIES)
def backward_queries(
    q,
    grad,
    out,
    halves,
    padding,
    normaliser,
    mean,
    level,
    dq,
    dmean,
    dtotal,
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
    """One program: dq of one split of the queries, and what they add to the gradients of mean and total.

    With g_i the gradient of out_i and delta_i = g_i.out_i: dy_im = p_im (g_i.mean_m - delta_i), dq_i = sum_m dy_im w_m,
    dmean_m = sum_i p_im g_i, and dtotal_m = -sum_i p_im delta_i; the last two are those of the sums over the keys
    times the total. Later blocks of features add to dq in memory.
    """
    program = tl.program_id(0)
    split, row = program % splits, program // splits
    n = tl.arange(0, TILE_N)
    first = split * span
    last = min(first + span, length)
    end = _end(padding, row, heads, length, first, last)
    for block in range(BLOCKS):
        m = block * TILE_M + tl.arange(0, TILE_M)
        high, low = _load_halves(halves, m, num_features, WIDTH)
        means = _load_means(mean, row, m, num_features, WIDTH)
        levels = tl.load(level + row.to(tl.int64) * num_features + m, mask=m < num_features, other=NEVER)
        dmeans, dtotals = tl.zeros([TILE_M, WIDTH], tl.float32), tl.zeros([TILE_M], tl.float32)
        for start in range(first, end, TILE_N):
            inside = start + n < length
            norm = tl.load(normaliser + row.to(tl.int64) * length + start + n, mask=inside, other=-NEVER)
            here = (norm < -NEVER)[:, None]  # no pads
            at, there = _head(row, start + n, length, WIDTH), _merged(row, start + n, heads, length, WIDTH)
            queries, g = tl.load(q + at, mask=here, other=0.0), tl.load(grad + there, mask=here, other=0.0)
            delta = tl.sum(g.to(tl.float32) * tl.load(out + there, mask=here, other=0.0).to(tl.float32), 1)
            y = _exponents(high, low, queries, False)
            weights = tl.exp(y + levels[:, None] - norm[None, :])
            dmeans = _dot(weights.to(g.dtype), g, dmeans)
            dtotals -= tl.sum(weights * delta[None, :], 1)
            dy = (weights * (_dot(means, tl.trans(g)) - delta[None, :])).to(high.dtype)
            dqueries = _dot(tl.trans(dy), high)
            here = inside[:, None]
            if block > 0:
                dqueries += tl.load(dq + at, mask=here, other=0.0).to(tl.float32)
            tl.store(dq + at, dqueries, mask=here)
        to = program.to(tl.int64) * (BLOCKS * TILE_M) + m
        tl.store(dmean + to[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :], dmeans)
        tl.store(dtotal + to, dtotals)
        tl.debug_barrier()  # what is added to in memory has been written
    for start in range(first + tl.cdiv(end - first, TILE_N) * TILE_N, last, TILE_N):
        at = dq + _head(row, start + n, length, WIDTH)
        tl.store(at, tl.zeros([TILE_N, WIDTH], tl.float32), mask=(start + n < last)[:, None])


@triton.jit(do_not_specialize=VARIES)
def merge_gradients(
    dmeans,
    dtotals,
    level,
    dmean,
    dtotal,
    share,
    num_features,
    splits,
    WIDTH: tl.constexpr,
    TILE_M: tl.constexpr,
    PADDED: tl.constexpr,
):
    """One program: the gradients of TILE_M features, added up over the splits and divided by the largest of each.

    So they fit 16 bits; `share` = level - log(the largest) gives the factor back, in the exponent of exp(x - share).
    """
    row, block = tl.program_id(0) // (PADDED // TILE_M), tl.program_id(0) % (PADDED // TILE_M)
    m = block * TILE_M + tl.arange(0, TILE_M)
    by_mean, by_total = tl.zeros([TILE_M, WIDTH], tl.float32), tl.zeros([TILE_M], tl.float32)
    for split in range(splits):
        at = (row.to(tl.int64) * splits + split) * PADDED + m
        by_mean += tl.load(dmeans + at[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :])
        by_total += tl.load(dtotals + at)
    largest = tl.maximum(tl.max(tl.abs(by_mean), 1), tl.abs(by_total))
    largest = tl.where(largest == 0, 1.0, largest)
    here, to = m < num_features, row.to(tl.int64) * num_features + m
    whole = here[:, None]
    tl.store(dmean + _head(row, m, num_features, WIDTH), by_mean / largest[:, None], mask=whole)
    tl.store(dtotal + to, by_total / largest, mask=here)
    tl.store(share + to, tl.load(level + to, mask=here, other=0.0) - tl.log(largest), mask=here)


@triton.jit(do_not_specialize=VARIES)
def backward_keys(
    k,
    v,
    halves,
    padding,
    share,
    floor,
    dmean,
    dtotal,
    dk,
    dv,
    heads,
    length,
    num_features,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
):
    """One program: dk and dv of one tile of keys, of one example and head.

    With a_jm = exp(x_jm - level_m), the share of key j in feature m, and b_m = epsilon exp(stabiliser - level_m):
    dv_j = sum_m (a_jm + b_m) dmean_m, dx_jm = a_jm (v_j.dmean_m + dtotal_m), dk_j = sum_m dx_jm (w_m - k_j / sqrt D).
    Each row of a and b is divided by the largest of them so far, so that it fits 16 bits.
    """
    tiles = tl.cdiv(length, TILE_N)
    row, start = tl.program_id(0) // tiles, tl.program_id(0) % tiles * TILE_N
    n = start + tl.arange(0, TILE_N)
    real = _real(padding, row, heads, length, n)
    here, at = real[:, None], _head(row, n, length, WIDTH)
    keys, vals = tl.load(k + at, mask=here, other=0.0), tl.load(v + at, mask=here, other=0.0)
    half_norm = tl.sum(keys.to(tl.float32) * keys.to(tl.float32), 1) * (0.5 / WIDTH**0.5)
    dkeys, dvals = tl.zeros([TILE_N, WIDTH], tl.float32), tl.zeros([TILE_N, WIDTH], tl.float32)
    dnorm, top = tl.zeros([TILE_N], tl.float32), tl.full([TILE_N], 2 * NEVER, tl.float32)
    for block in range(BLOCKS * tl.max(real.to(tl.int32), 0)):
        m = block * TILE_M + tl.arange(0, TILE_M)
        high, low = _load_halves(halves, m, num_features, WIDTH)
        dmeans = _load_means(dmean, row, m, num_features, WIDTH)
        of = row.to(tl.int64) * num_features + m
        shares = tl.load(share + of, mask=m < num_features, other=-NEVER)
        dtotals = tl.load(dtotal + of, mask=m < num_features, other=0.0)
        x = _exponents(high, low, keys, True) - half_norm[:, None] - shares[None, :]
        least = tl.load(floor + row) - shares
        lowest = tl.max(least, 0)
        above = tl.maximum(top, tl.maximum(tl.max(x, 1), lowest))
        a, shrink = tl.exp(x - above[:, None]), tl.exp(top - above)
        b = tl.exp(lowest - above)[:, None] * tl.exp(least - lowest)[None, :]
        dvals = _dot((a + b).to(dmeans.dtype), dmeans, dvals * shrink[:, None])
        dx = a * (_dot(vals, tl.trans(dmeans)) + dtotals[None, :])
        dkeys = _dot(dx.to(high.dtype), high, dkeys * shrink[:, None])
        dnorm = dnorm * shrink + tl.sum(dx, 1)
        top = above
    size = tl.where(real, tl.exp(top), 0.0)[:, None]
    dkeys = (dkeys - keys.to(tl.float32) * (dnorm / WIDTH**0.5)[:, None]) * size
    here = (n < length)[:, None]
    tl.store(dk + at, dkeys, mask=here)
    tl.store(dv + at, dvals * size, mask=here)
