"""The Triton kernels of FAVOR+; favor_triton.py launches them, and says why the mathematics is written this way.

Each tile of exponents lives in registers. Offsets that may pass 2^31 are 64-bit. Nothing is added atomically, so that
results repeat to the bit.

Letters: n tokens, m features, d channels; TILE_N, TILE_M, TILE_D how many of them a program holds; `row` counts the
pairs of an example and a head, WIDTH is the head width. Strides are in entries; that of channels is 1.
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
def _row(x, row, heads, by_batch, by_head):
    """Where the tokens of one example and head begin."""
    return x + (row // heads).to(tl.int64) * by_batch + (row % heads).to(tl.int64) * by_head


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
def _load_halves(halves, m, d, num_features, WIDTH: tl.constexpr):
    """The directions m as two halves [TILE_M, TILE_D]; the low one of fp32 is zero and not multiplied."""
    here = (m < num_features)[:, None] & (d < WIDTH)[None, :]
    at = halves + m[:, None] * WIDTH + d[None, :]
    return tl.load(at, mask=here, other=0.0), tl.load(at + num_features * WIDTH, mask=here, other=0.0)


@triton.jit
def _exponents(high, low, x, TOKENS_FIRST: tl.constexpr):
    """w_m.x_n for directions in two halves [TILE_M, TILE_D] and x [TILE_N, TILE_D]: [N, M] or [M, N]."""
    if TOKENS_FIRST:
        y = _dot(x, tl.trans(high))
        if high.dtype != tl.float32:
            y = _dot(x, tl.trans(low), y)
    else:
        y = _dot(high, tl.trans(x))
        if high.dtype != tl.float32:
            y = _dot(low, tl.trans(x), y)
    return y


@triton.jit
def _close(
    mean,
    level,
    floor,
    row,
    m,
    d,
    peak,
    total,
    weighted,
    values,
    count,
    top,
    num_features,
    log_epsilon,
    WIDTH: tl.constexpr,
):
    """Stores level and mean of the features m from the sums over all keys.

    total, weighted: the sums of exp(x_jm - peak_m) and of its product with v; values, count: those of v and of 1,
    which get epsilon; top: the largest exponent of the example and head, and so the stabiliser.
    """
    floor_here = top + log_epsilon
    seen = peak + tl.log(tl.where(count > 0, total, 1.0))
    least = floor_here + tl.log(tl.maximum(count, 1.0))
    level_here = tl.maximum(seen, least)
    level_here += tl.log(tl.exp(seen - level_here) + tl.exp(least - level_here))
    average = weighted * tl.exp(peak - level_here)[:, None] + tl.exp(floor_here - level_here)[:, None] * values[None, :]
    here = m < num_features
    to = row.to(tl.int64) * num_features + m
    tl.store(level + to, level_here, mask=here)
    tl.store(mean + to[:, None] * WIDTH + d[None, :], average, mask=here[:, None] & (d < WIDTH)[None, :])
    tl.store(floor + row, floor_here)


@triton.jit(do_not_specialize=VARIES)
def sum_keys(
    k,
    v,
    halves,
    padding,
    mean,
    level,
    floor,
    peaks,
    totals,
    weighteds,
    valueses,
    counts,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    heads,
    length,
    num_features,
    span,
    splits,
    log_epsilon,
    BLOCKS: tl.constexpr,
    ALONE: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE_D: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
):
    """One program: the sums over one split of the keys for one block of features, of one example and head.

    As in flash attention, with directions for queries: peak_m is the largest exponent so far, and what was summed
    below an earlier one shrinks by exp(earlier - peak_m). A program that is ALONE stores mean and level.
    """
    program = tl.program_id(0)
    block, split, row = program % BLOCKS, program // BLOCKS % splits, program // BLOCKS // splits
    m, d, n = block * TILE_M + tl.arange(0, TILE_M), tl.arange(0, TILE_D), tl.arange(0, TILE_N)
    high, low = _load_halves(halves, m, d, num_features, WIDTH)
    first = split * span
    end = _end(padding, row, heads, length, first, min(first + span, length))
    begin = first.to(tl.int64) + n[:, None]
    k_at = _row(k, row, heads, k_batch, k_head) + begin * k_token + d[None, :]
    v_at = _row(v, row, heads, v_batch, v_head) + begin * v_token + d[None, :]
    peak, total = tl.full([TILE_M], NEVER, tl.float32), tl.zeros([TILE_M], tl.float32)
    weighted = tl.zeros([TILE_M, TILE_D], tl.float32)
    values, count = tl.zeros([TILE_D], tl.float32), tl.zeros([TILE_N], tl.float32)
    for start in range(first, end, TILE_N):
        real = _real(padding, row, heads, length, start + n)
        here = real[:, None] & (d < WIDTH)[None, :]
        keys, vals = tl.load(k_at, mask=here, other=0.0), tl.load(v_at, mask=here, other=0.0)
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
        k_at += TILE_N * k_token
        v_at += TILE_N * v_token
    peak, count = tl.where(m < num_features, peak, NEVER), tl.sum(count, 0)
    if ALONE:
        _close(
            mean,
            level,
            floor,
            row,
            m,
            d,
            peak,
            total,
            weighted,
            values,
            count,
            tl.max(peak, 0),
            num_features,
            log_epsilon,
            WIDTH,
        )
    else:
        part = (row * splits + split).to(tl.int64)
        to = part * (BLOCKS * TILE_M) + m
        tl.store(peaks + to, peak)
        tl.store(totals + to, total)
        tl.store(weighteds + to[:, None] * WIDTH + d[None, :], weighted, mask=(d < WIDTH)[None, :])
        tl.store(valueses + part * WIDTH + d, values, mask=d < WIDTH)
        tl.store(counts + part, count)


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
    TILE_D: tl.constexpr,
    TILE_M: tl.constexpr,
    PADDED: tl.constexpr,
):
    """One program: the sums of TILE_M features over all splits, each brought under the common peak: exact."""
    row, block = tl.program_id(0) // (PADDED // TILE_M), tl.program_id(0) % (PADDED // TILE_M)
    m, d = block * TILE_M + tl.arange(0, TILE_M), tl.arange(0, TILE_D)
    peak, total, count = tl.full([TILE_M], NEVER, tl.float32), tl.zeros([TILE_M], tl.float32), 0.0
    weighted, values = tl.zeros([TILE_M, TILE_D], tl.float32), tl.zeros([TILE_D], tl.float32)
    for split in range(splits):
        part = row.to(tl.int64) * splits + split
        to = part * PADDED + m
        above = tl.maximum(peak, tl.load(peaks + to))
        old, new = tl.exp(peak - above), tl.exp(tl.load(peaks + to) - above)
        more = tl.load(weighteds + to[:, None] * WIDTH + d[None, :], mask=(d < WIDTH)[None, :], other=0.0)
        total = total * old + tl.load(totals + to) * new
        weighted = weighted * old[:, None] + more * new[:, None]
        values += tl.load(valueses + part * WIDTH + d, mask=d < WIDTH, other=0.0)
        count += tl.load(counts + part)
        peak = above
    _close(
        mean,
        level,
        floor,
        row,
        m,
        d,
        peak,
        total,
        weighted,
        values,
        count,
        tl.load(tops + row),
        num_features,
        log_epsilon,
        WIDTH,
    )


@triton.jit(do_not_specialize=VARIES)
def answer_queries(
    q,
    halves,
    padding,
    mean,
    level,
    out,
    normaliser,
    q_batch,
    q_head,
    q_token,
    out_batch,
    out_head,
    out_token,
    heads,
    length,
    num_features,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE_D: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
):
    """One program: out and the log of the softmax's normaliser for one tile of queries, of one example and head.

    Rows of pads are zero; their normaliser is so large that all their weights are zero in the backward pass.
    """
    tiles = tl.cdiv(length, TILE_N)
    row, start = tl.program_id(0) // tiles, tl.program_id(0) % tiles * TILE_N
    d, n = tl.arange(0, TILE_D), start + tl.arange(0, TILE_N)
    inside = n < length
    real = _real(padding, row, heads, length, n)
    q_at = _row(q, row, heads, q_batch, q_head) + n.to(tl.int64)[:, None] * q_token + d[None, :]
    queries = tl.load(q_at, mask=real[:, None] & (d < WIDTH)[None, :], other=0.0)
    peak, total = tl.full([TILE_N], 2 * NEVER, tl.float32), tl.zeros([TILE_N], tl.float32)
    answer = tl.zeros([TILE_N, TILE_D], tl.float32)
    for block in range(BLOCKS * tl.max(real.to(tl.int32), 0)):  # no work on a tile of pads
        m = block * TILE_M + tl.arange(0, TILE_M)
        high, low = _load_halves(halves, m, d, num_features, WIDTH)
        at = row.to(tl.int64) * num_features + m
        means = tl.load(
            mean + at[:, None] * WIDTH + d[None, :], mask=(m < num_features)[:, None] & (d < WIDTH)[None, :], other=0.0
        )
        y = _exponents(high, low, queries, True) + tl.load(level + at, mask=m < num_features, other=NEVER)[None, :]
        above = tl.maximum(peak, tl.max(y, 1))
        weights, shrink = tl.exp(y - above[:, None]), tl.exp(peak - above)
        total = total * shrink + tl.sum(weights, 1)
        answer = _dot(weights.to(means.dtype), means, answer * shrink[:, None])
        peak = above
    answer = tl.where(real[:, None], answer / total[:, None], 0.0)
    out_at = _row(out, row, heads, out_batch, out_head) + n.to(tl.int64)[:, None] * out_token + d[None, :]
    tl.store(out_at, answer, mask=inside[:, None] & (d < WIDTH)[None, :])
    tl.store(normaliser + row.to(tl.int64) * length + n, tl.where(real, peak + tl.log(total), -NEVER), mask=inside)


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
    q_batch,
    q_head,
    q_token,
    g_batch,
    g_head,
    g_token,
    out_batch,
    out_head,
    out_token,
    heads,
    length,
    num_features,
    span,
    splits,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE_D: tl.constexpr,
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
    d, n = tl.arange(0, TILE_D), tl.arange(0, TILE_N)
    first = split * span
    last = min(first + span, length)
    end = _end(padding, row, heads, length, first, last)
    begin = first.to(tl.int64) + n[:, None]
    for block in range(BLOCKS):
        m = block * TILE_M + tl.arange(0, TILE_M)
        high, low = _load_halves(halves, m, d, num_features, WIDTH)
        at = row.to(tl.int64) * num_features + m
        means = tl.load(
            mean + at[:, None] * WIDTH + d[None, :], mask=(m < num_features)[:, None] & (d < WIDTH)[None, :], other=0.0
        )
        levels = tl.load(level + at, mask=m < num_features, other=NEVER)
        q_at = _row(q, row, heads, q_batch, q_head) + begin * q_token + d[None, :]
        g_at = _row(grad, row, heads, g_batch, g_head) + begin * g_token + d[None, :]
        out_at = _row(out, row, heads, out_batch, out_head) + begin * out_token + d[None, :]
        dq_at = _row(dq, row, heads, out_batch, out_head) + begin * out_token + d[None, :]
        dmeans, dtotals = tl.zeros([TILE_M, TILE_D], tl.float32), tl.zeros([TILE_M], tl.float32)
        for start in range(first, end, TILE_N):
            inside = start + n < length
            norm = tl.load(normaliser + row.to(tl.int64) * length + start + n, mask=inside, other=-NEVER)
            here = (norm < -NEVER)[:, None] & (d < WIDTH)[None, :]  # no pads
            queries, g = tl.load(q_at, mask=here, other=0.0), tl.load(g_at, mask=here, other=0.0)
            delta = tl.sum(g.to(tl.float32) * tl.load(out_at, mask=here, other=0.0).to(tl.float32), 1)
            y = _exponents(high, low, queries, False)
            weights = tl.exp(y + levels[:, None] - norm[None, :])
            dmeans = _dot(weights.to(g.dtype), g, dmeans)
            dtotals -= tl.sum(weights * delta[None, :], 1)
            dy = (weights * (_dot(means, tl.trans(g)) - delta[None, :])).to(high.dtype)
            dqueries = _dot(tl.trans(dy), high)
            here = inside[:, None] & (d < WIDTH)[None, :]
            if block > 0:
                dqueries += tl.load(dq_at, mask=here, other=0.0).to(tl.float32)
            tl.store(dq_at, dqueries, mask=here)
            q_at += TILE_N * q_token
            g_at += TILE_N * g_token
            out_at += TILE_N * out_token
            dq_at += TILE_N * out_token
        to = program.to(tl.int64) * (BLOCKS * TILE_M) + m
        tl.store(dmean + to[:, None] * WIDTH + d[None, :], dmeans, mask=(d < WIDTH)[None, :])
        tl.store(dtotal + to, dtotals)
        tl.debug_barrier()  # what is added to in memory has been written
    for start in range(first + tl.cdiv(end - first, TILE_N) * TILE_N, last, TILE_N):
        at = _row(dq, row, heads, out_batch, out_head) + (start + n).to(tl.int64)[:, None] * out_token + d[None, :]
        tl.store(at, tl.zeros([TILE_N, TILE_D], tl.float32), mask=(start + n < last)[:, None] & (d < WIDTH)[None, :])


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
    TILE_D: tl.constexpr,
    TILE_M: tl.constexpr,
    PADDED: tl.constexpr,
):
    """One program: the gradients of TILE_M features, added up over the splits and divided by the largest of each.

    So they fit 16 bits; `share` = level - log(the largest) gives the factor back, in the exponent of exp(x - share).
    """
    row, block = tl.program_id(0) // (PADDED // TILE_M), tl.program_id(0) % (PADDED // TILE_M)
    m, d = block * TILE_M + tl.arange(0, TILE_M), tl.arange(0, TILE_D)
    by_mean, by_total = tl.zeros([TILE_M, TILE_D], tl.float32), tl.zeros([TILE_M], tl.float32)
    for split in range(splits):
        at = (row.to(tl.int64) * splits + split) * PADDED + m
        by_mean += tl.load(dmeans + at[:, None] * WIDTH + d[None, :], mask=(d < WIDTH)[None, :], other=0.0)
        by_total += tl.load(dtotals + at)
    largest = tl.maximum(tl.max(tl.abs(by_mean), 1), tl.abs(by_total))
    largest = tl.where(largest == 0, 1.0, largest)
    here, to = m < num_features, row.to(tl.int64) * num_features + m
    tl.store(
        dmean + to[:, None] * WIDTH + d[None, :], by_mean / largest[:, None], mask=here[:, None] & (d < WIDTH)[None, :]
    )
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
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    to_batch,
    to_head,
    to_token,
    heads,
    length,
    num_features,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE_D: tl.constexpr,
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
    d, n = tl.arange(0, TILE_D), start + tl.arange(0, TILE_N)
    inside = n < length
    real = _real(padding, row, heads, length, n)
    here = real[:, None] & (d < WIDTH)[None, :]
    n = n.to(tl.int64)[:, None]
    keys = tl.load(_row(k, row, heads, k_batch, k_head) + n * k_token + d[None, :], mask=here, other=0.0)
    vals = tl.load(_row(v, row, heads, v_batch, v_head) + n * v_token + d[None, :], mask=here, other=0.0)
    half_norm = tl.sum(keys.to(tl.float32) * keys.to(tl.float32), 1) * (0.5 / WIDTH**0.5)
    dkeys, dvals = tl.zeros([TILE_N, TILE_D], tl.float32), tl.zeros([TILE_N, TILE_D], tl.float32)
    dnorm, top = tl.zeros([TILE_N], tl.float32), tl.full([TILE_N], 2 * NEVER, tl.float32)
    for block in range(BLOCKS * tl.max(real.to(tl.int32), 0)):
        m = block * TILE_M + tl.arange(0, TILE_M)
        high, low = _load_halves(halves, m, d, num_features, WIDTH)
        at = row.to(tl.int64) * num_features + m
        shares = tl.load(share + at, mask=m < num_features, other=-NEVER)
        dmeans = tl.load(
            dmean + at[:, None] * WIDTH + d[None, :], mask=(m < num_features)[:, None] & (d < WIDTH)[None, :], other=0.0
        )
        dtotals = tl.load(dtotal + at, mask=m < num_features, other=0.0)
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
    here = inside[:, None] & (d < WIDTH)[None, :]
    tl.store(_row(dk, row, heads, to_batch, to_head) + n * to_token + d[None, :], dkeys, mask=here)
    tl.store(_row(dv, row, heads, to_batch, to_head) + n * to_token + d[None, :], dvals * size, mask=here)
