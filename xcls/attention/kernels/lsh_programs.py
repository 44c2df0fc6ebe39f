"""The Triton kernels of LSH attention; `lsh_triton` calls them. Nothing of the size tokens x candidates is stored.

Kitaev, Kaiser and Levskaya 2020, "Reformer: The Efficient Transformer", section 2; the online softmax and the backward
pass that computes the weights again are Dao 2023, "FlashAttention-2", section 3.1.
Letters: B batch, H heads, N tokens, D head dimension, R rounds, C tokens of a chunk.
A slot is a place in the sorted order, a row is a token's place in the sequence: row = order[slot]. A sequence is one
head of one example. Pads have the last slots. The window of a chunk is the slots of the chunks that it sees.
Each program has a tile of at most 64 slots of one chunk of one sequence, so nothing passes from one example to another.
QK, V, D_QK and D_V are [B, H, N, D] in memory, OUT and GRAD [B, N, H, D].
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def own_tile(COUNT, heads, length, CHUNK: tl.constexpr, TILE: tl.constexpr):
    """This program's sequence, chunk, first slot, the end of the chunk, and the number of real tokens."""
    PARTS: tl.constexpr = (CHUNK + TILE - 1) // TILE  # tiles of a chunk
    tiles = (length + CHUNK - 1) // CHUNK * PARTS
    sequence = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    chunk = tile // PARTS
    if COUNT is None:
        real = length
    else:
        real = tl.load(COUNT + sequence // heads)
    first, end = chunk * CHUNK + tile % PARTS * TILE, tl.minimum((chunk + 1) * CHUNK, length)
    return sequence.to(tl.int64), chunk, first, end, real


@triton.jit
def window(first, chunk, real, BEFORE: tl.constexpr, AFTER: tl.constexpr, CHUNK: tl.constexpr):
    """First slot and end of the real tokens of chunks chunk - BEFORE to chunk + AFTER; empty for a tile of pads."""
    start = tl.maximum(chunk - BEFORE, 0) * CHUNK
    return start, tl.where(first < real, tl.minimum((chunk + 1 + AFTER) * CHUNK, real), start)


@triton.jit
def gather(X, row, stride, used, D: tl.constexpr):
    """Rows of X [N, D], zeros where not used: row, used [TILE] -> [TILE, D]."""
    places = row[:, None].to(tl.int64) * stride + tl.arange(0, D)[None, :]
    return tl.load(X + places, mask=used[:, None], other=0.0)


@triton.jit
def unit(x, D: tl.constexpr):
    """x [TILE, D] -> x / |x| in fp32, finite at zero, and the factor 1 / |x| [TILE]."""
    wide = x.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, 1) / D + 1e-12) * (D**-0.5)
    return wide * factor[:, None], factor


@triton.jit
def masked(
    products, query, key, allowed, CHUNKS, length, ROUND: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr
):
    """q.k of pairs -> logits of the softmax in base 2, query and key [TILE, 1] and [1, TILE] (rows) or the reverse.

    -inf where the pair is not allowed or has met in an earlier round; -1e30 for a token and itself, which counts only
    where all other logits are -inf.
    """
    logits = tl.where(query == key, -1e30, products * 1.4426950408889634)
    for earlier in tl.static_range(ROUND):
        apart = tl.load(CHUNKS + earlier * length + key) - tl.load(CHUNKS + earlier * length + query)
        allowed = allowed & ((apart < -BEFORE) | (apart > AFTER))
    return tl.where(allowed, logits, float("-inf"))


@triton.jit
def forward_kernel(
    QK,
    V,
    ORDER,
    COUNT,
    CHUNKS,
    OUT,
    LSE,
    heads,
    length,
    rounds,
    ROUND: tl.constexpr,
    CHUNK: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out_i = sum_j p_ij v_j with p_ij = exp(s_ij - lse_i), s_ij = q_i.k_j, k = q / |q|, j in the window of i's chunk.

    Online softmax over tiles of keys: with the running maximum t, the sum l of exp(s_ij - t) and the sum a of
    exp(s_ij - t) v_j, out = a / l and lse = t + log l. A later round goes on from t = lse, l = 1, a = out of the one
    before it, over pairs that have not met yet: so the rounds give one softmax over the union. Logarithms in base 2.
    """
    sequence, chunk, first, end, real = own_tile(COUNT, heads, length, CHUNK, TILE)
    base = sequence * length
    ORDER += base * rounds + ROUND * length
    CHUNKS += base * (rounds - 1)
    LSE += base
    QK += base * D
    V += base * D
    OUT += (sequence // heads * length * heads + sequence % heads) * D
    slots = first + tl.arange(0, TILE)
    mine = slots < tl.minimum(end, real)
    row = tl.load(ORDER + slots, mask=slots < end, other=0)
    q = gather(QK, row, D, mine, D)
    if ROUND == 0:
        top = tl.full([TILE], -1e37, tl.float32)
        total = tl.zeros([TILE], tl.float32)
        out = tl.zeros([TILE, D], tl.float32)
    else:
        top = tl.load(LSE + row, mask=mine, other=0.0)
        total = tl.full([TILE], 1.0, tl.float32)
        out = gather(OUT, row, heads * D, mine, D).to(tl.float32)
    start, stop = window(first, chunk, real, BEFORE, AFTER, CHUNK)
    for place in range(start, stop, STEP):
        seen = place + tl.arange(0, STEP) < stop
        other = tl.load(ORDER + place + tl.arange(0, STEP), mask=seen, other=0)
        k, _ = unit(gather(QK, other, D, seen, D), D)
        v = gather(V, other, D, seen, D)
        products = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision=PRECISION)
        allowed = mine[:, None] & seen[None, :]
        logits = masked(products, row[:, None], other[None, :], allowed, CHUNKS, length, ROUND, BEFORE, AFTER)
        higher = tl.maximum(top, tl.max(logits, 1))
        shrink = tl.exp2(top - higher)
        weights = tl.exp2(logits - higher[:, None])
        total = total * shrink + tl.sum(weights, 1)
        out = out * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        top = higher
    total = tl.where(total == 0.0, 1.0, total)  # nothing met yet: out = 0, lse = -1e37
    out = tl.where(mine[:, None], out / total[:, None], 0.0)
    places = row[:, None].to(tl.int64) * (heads * D) + tl.arange(0, D)[None, :]
    tl.store(OUT + places, out.to(OUT.dtype.element_ty), mask=(slots < end)[:, None])
    tl.store(LSE + row, top + tl.log2(total), mask=slots < end)


@triton.jit
def backward_kernel(
    QK,
    V,
    ORDER,
    COUNT,
    CHUNKS,
    OUT,
    LSE,
    GRAD,
    D_QK,
    D_V,
    heads,
    length,
    rounds,
    ROUND: tl.constexpr,
    CHUNK: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of a tile of tokens, first as keys and values of the queries that see them, then as queries.

    With g = dL/dout, delta_i = g_i.out_i and p_ij as in `forward_kernel`, from lse of the union:
    ds_ij = p_ij (g_i.v_j - delta_i), zero for i = j;
    dv_j = sum_i p_ij g_i; dk_j = sum_i ds_ij q_i; dq_i = sum_j ds_ij k_j.
    x is a query and, over its length, a key: dx = dq + (dk - k (k.dk)) / |x|. A later round adds to the earlier ones.
    Each row is written by one program: no atomics, so the same call gives the same bits.
    """
    sequence, chunk, first, end, real = own_tile(COUNT, heads, length, CHUNK, TILE)
    base = sequence * length
    ORDER += base * rounds + ROUND * length
    CHUNKS += base * (rounds - 1)
    LSE += base
    QK += base * D
    V += base * D
    GRAD += (sequence // heads * length * heads + sequence % heads) * D
    OUT += (sequence // heads * length * heads + sequence % heads) * D
    slots = first + tl.arange(0, TILE)
    mine = slots < tl.minimum(end, real)
    row = tl.load(ORDER + slots, mask=slots < end, other=0)
    x = gather(QK, row, D, mine, D)
    wide, factor = unit(x, D)
    own_k = wide.to(x.dtype)
    own_v = gather(V, row, D, mine, D)
    d_k = tl.zeros([TILE, D], tl.float32)
    d_v = tl.zeros([TILE, D], tl.float32)
    start, stop = window(first, chunk, real, AFTER, BEFORE, CHUNK)  # the queries that see this chunk
    for place in range(start, stop, STEP):
        seen = place + tl.arange(0, STEP) < stop
        other = tl.load(ORDER + place + tl.arange(0, STEP), mask=seen, other=0)
        q = gather(QK, other, D, seen, D)
        g = gather(GRAD, other, heads * D, seen, D)
        delta = tl.sum(g.to(tl.float32) * gather(OUT, other, heads * D, seen, D).to(tl.float32), 1)
        lse = tl.load(LSE + other, mask=seen, other=0.0)
        products = tl.dot(own_k, tl.trans(q), input_precision=PRECISION)
        allowed = mine[:, None] & seen[None, :]
        logits = masked(products, other[None, :], row[:, None], allowed, CHUNKS, length, ROUND, BEFORE, AFTER)
        p = tl.exp2(logits - lse[None, :])
        d_v += tl.dot(p.to(g.dtype), g, input_precision=PRECISION)
        d_s = p * (tl.dot(own_v, tl.trans(g), input_precision=PRECISION) - delta[None, :])
        d_s = tl.where(other[None, :] == row[:, None], 0.0, d_s)
        d_k += tl.dot(d_s.to(q.dtype), q, input_precision=PRECISION)
    rounded = own_k.to(tl.float32)  # `wide` would have to be kept in registers
    d_x = (d_k - rounded * tl.sum(d_k * rounded, 1)[:, None]) * factor[:, None]
    own_g = gather(GRAD, row, heads * D, mine, D)
    own_delta = tl.sum(own_g.to(tl.float32) * gather(OUT, row, heads * D, mine, D).to(tl.float32), 1)
    own_lse = tl.load(LSE + row, mask=mine, other=0.0)
    start, stop = window(first, chunk, real, BEFORE, AFTER, CHUNK)  # the keys that this chunk sees
    for place in range(start, stop, STEP):
        seen = place + tl.arange(0, STEP) < stop
        other = tl.load(ORDER + place + tl.arange(0, STEP), mask=seen, other=0)
        unrounded, _ = unit(gather(QK, other, D, seen, D), D)
        k = unrounded.to(x.dtype)
        v = gather(V, other, D, seen, D)
        products = tl.dot(x, tl.trans(k), input_precision=PRECISION)
        allowed = mine[:, None] & seen[None, :]
        logits = masked(products, row[:, None], other[None, :], allowed, CHUNKS, length, ROUND, BEFORE, AFTER)
        p = tl.exp2(logits - own_lse[:, None])
        d_s = p * (tl.dot(own_g, tl.trans(v), input_precision=PRECISION) - own_delta[:, None])
        d_s = tl.where(row[:, None] == other[None, :], 0.0, d_s)
        d_x += tl.dot(d_s.to(k.dtype), k, input_precision=PRECISION)
    places = base * D + row[:, None].to(tl.int64) * D + tl.arange(0, D)[None, :]
    if ROUND > 0:
        d_x += tl.load(D_QK + places, mask=mine[:, None], other=0.0).to(tl.float32)
        d_v += tl.load(D_V + places, mask=mine[:, None], other=0.0).to(tl.float32)
    d_x = tl.where(mine[:, None], d_x, 0.0)
    d_v = tl.where(mine[:, None], d_v, 0.0)
    tl.store(D_QK + places, d_x.to(D_QK.dtype.element_ty), mask=(slots < end)[:, None])
    tl.store(D_V + places, d_v.to(D_V.dtype.element_ty), mask=(slots < end)[:, None])
