"""The Triton kernels of LSH attention; `lsh_triton` calls them. Nothing of the size tokens x candidates is stored.

Kitaev, Kaiser and Levskaya 2020, "Reformer: The Efficient Transformer", section 2; the online softmax and the backward
pass that computes the weights again are Dao 2023, "FlashAttention-2", section 3.1.
Letters: B batch, H heads, N tokens, D head width, R rounds, C tokens of a chunk, M columns of a rotation.
A slot is a place in the sorted order, a row is a token's place in the sequence: row = order[slot]. A sequence is one
head of one example. Pads have the last slots. The window of a chunk is the slots of the chunks that it sees.
Each program has a tile of at most 64 slots of one chunk of one sequence, so nothing passes from one example to another.
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
    return sequence, chunk, chunk * CHUNK + tile % PARTS * TILE, tl.minimum((chunk + 1) * CHUNK, length), real


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
    qk_b,
    qk_h,
    qk_n,
    v_b,
    v_h,
    v_n,
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
    example, head = (sequence // heads).to(tl.int64), (sequence % heads).to(tl.int64)
    base = sequence.to(tl.int64) * length
    ORDER += base * rounds + ROUND * length
    CHUNKS += base * (rounds - 1)
    LSE += base
    QK += example * qk_b + head * qk_h
    V += example * v_b + head * v_h
    OUT += (example * length * heads + head) * D
    slots = first + tl.arange(0, TILE)
    mine = slots < tl.minimum(end, real)
    row = tl.load(ORDER + slots, mask=slots < end, other=0)
    q = gather(QK, row, qk_n, mine, D)
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
        k, _ = unit(gather(QK, other, qk_n, seen, D), D)
        v = gather(V, other, v_n, seen, D)
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
def sums_over_queries(
    QK,
    GRAD,
    OUT,
    LSE,
    ORDER,
    CHUNKS,
    own_k,
    v,
    row,
    mine,
    start,
    stop,
    qk_n,
    g_n,
    heads,
    length,
    ROUND: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    D: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dk and dv [TILE, D] of the tokens `row`, over the queries in slots start to stop; see `backward_kernel`."""
    d_k = tl.zeros(own_k.shape, tl.float32)
    d_v = tl.zeros(own_k.shape, tl.float32)
    for place in range(start, stop, STEP):
        seen = place + tl.arange(0, STEP) < stop
        other = tl.load(ORDER + place + tl.arange(0, STEP), mask=seen, other=0)
        q = gather(QK, other, qk_n, seen, D)
        g = gather(GRAD, other, g_n, seen, D)
        delta = tl.sum(g.to(tl.float32) * gather(OUT, other, heads * D, seen, D).to(tl.float32), 1)
        lse = tl.load(LSE + other, mask=seen, other=0.0)
        products = tl.dot(own_k, tl.trans(q), input_precision=PRECISION)
        allowed = mine[:, None] & seen[None, :]
        logits = masked(products, other[None, :], row[:, None], allowed, CHUNKS, length, ROUND, BEFORE, AFTER)
        p = tl.exp2(logits - lse[None, :])
        d_v += tl.dot(p.to(g.dtype), g, input_precision=PRECISION)
        d_s = p * (tl.dot(v, tl.trans(g), input_precision=PRECISION) - delta[None, :])
        d_s = tl.where(other[None, :] == row[:, None], 0.0, d_s)
        d_k += tl.dot(d_s.to(q.dtype), q, input_precision=PRECISION)
    return d_k, d_v


@triton.jit
def sum_over_keys(
    QK,
    V,
    ORDER,
    CHUNKS,
    q,
    g,
    delta,
    lse,
    d_q,
    row,
    mine,
    start,
    stop,
    qk_n,
    v_n,
    length,
    ROUND: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    D: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """d_q [TILE, D] with dq of the queries `row` added, over the keys in slots start to stop; see `backward_kernel`."""
    for place in range(start, stop, STEP):
        seen = place + tl.arange(0, STEP) < stop
        other = tl.load(ORDER + place + tl.arange(0, STEP), mask=seen, other=0)
        wide, _ = unit(gather(QK, other, qk_n, seen, D), D)
        k = wide.to(q.dtype)
        v = gather(V, other, v_n, seen, D)
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        allowed = mine[:, None] & seen[None, :]
        logits = masked(products, row[:, None], other[None, :], allowed, CHUNKS, length, ROUND, BEFORE, AFTER)
        p = tl.exp2(logits - lse[:, None])
        d_s = p * (tl.dot(g, tl.trans(v), input_precision=PRECISION) - delta[:, None])
        d_s = tl.where(row[:, None] == other[None, :], 0.0, d_s)
        d_q += tl.dot(d_s.to(k.dtype), k, input_precision=PRECISION)
    return d_q


@triton.jit
def backward_kernel(
    QK,
    V,
    OUT,
    GRAD,
    LSE,
    ORDER,
    COUNT,
    CHUNKS,
    D_QK,
    D_V,
    qk_b,
    qk_h,
    qk_n,
    v_b,
    v_h,
    v_n,
    g_b,
    g_h,
    g_n,
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
    example, head = (sequence // heads).to(tl.int64), (sequence % heads).to(tl.int64)
    base = sequence.to(tl.int64) * length
    own = (example * length * heads + head) * D
    ORDER += base * rounds + ROUND * length
    CHUNKS += base * (rounds - 1)
    LSE += base
    QK += example * qk_b + head * qk_h
    V += example * v_b + head * v_h
    GRAD += example * g_b + head * g_h
    OUT += own
    slots = first + tl.arange(0, TILE)
    mine = slots < tl.minimum(end, real)
    row = tl.load(ORDER + slots, mask=slots < end, other=0)
    x = gather(QK, row, qk_n, mine, D)
    wide, factor = unit(x, D)
    k = wide.to(x.dtype)
    start, stop = window(first, chunk, real, AFTER, BEFORE, CHUNK)  # the queries that see this chunk
    d_k, d_v = sums_over_queries(
        QK,
        GRAD,
        OUT,
        LSE,
        ORDER,
        CHUNKS,
        k,
        gather(V, row, v_n, mine, D),
        row,
        mine,
        start,
        stop,
        qk_n,
        g_n,
        heads,
        length,
        ROUND,
        BEFORE,
        AFTER,
        D,
        STEP,
        PRECISION,
    )
    rounded = k.to(tl.float32)  # `wide` would have to be kept in registers
    d_x = (d_k - rounded * tl.sum(d_k * rounded, 1)[:, None]) * factor[:, None]
    g = gather(GRAD, row, g_n, mine, D)
    delta = tl.sum(g.to(tl.float32) * gather(OUT, row, heads * D, mine, D).to(tl.float32), 1)
    lse = tl.load(LSE + row, mask=mine, other=0.0)
    start, stop = window(first, chunk, real, BEFORE, AFTER, CHUNK)  # the keys that this chunk sees
    d_x = sum_over_keys(
        QK,
        V,
        ORDER,
        CHUNKS,
        x,
        g,
        delta,
        lse,
        d_x,
        row,
        mine,
        start,
        stop,
        qk_n,
        v_n,
        length,
        ROUND,
        BEFORE,
        AFTER,
        D,
        STEP,
        PRECISION,
    )
    places = own + row[:, None].to(tl.int64) * (heads * D) + tl.arange(0, D)[None, :]
    if ROUND > 0:
        d_x += tl.load(D_QK + places, mask=mine[:, None], other=0.0).to(tl.float32)
        d_v += tl.load(D_V + places, mask=mine[:, None], other=0.0).to(tl.float32)
    d_x = tl.where(mine[:, None], d_x, 0.0)
    d_v = tl.where(mine[:, None], d_v, 0.0)
    tl.store(D_QK + places, d_x.to(D_QK.dtype.element_ty), mask=(slots < end)[:, None])
    tl.store(D_V + places, d_v.to(D_V.dtype.element_ty), mask=(slots < end)[:, None])


@triton.jit
def chunks_kernel(ORDER, CHUNKS, length, rounds, CHUNK: tl.constexpr, TILE: tl.constexpr):
    """The chunk of each token in all rounds but the last: CHUNKS[order[slot]] = slot // C."""
    tiles = (length + TILE - 1) // TILE
    line = (tl.program_id(0) // tiles).to(tl.int64)  # sequence x (rounds - 1) + round
    slots = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    row = tl.load(ORDER + (line + line // (rounds - 1)) * length + slots, mask=slots < length, other=0)
    tl.store(CHUNKS + line * length + row, slots // CHUNK, mask=slots < length)


@triton.jit
def keys_kernel(
    X,
    ROTATIONS,
    PADDING,
    COUNT,
    KEYS,
    x_b,
    x_h,
    x_n,
    heads,
    length,
    rounds,
    columns,
    size,
    D: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """key = bucket N + position, with bucket = argmax([xR; -xR]) over the first half_b columns of R, in fp32.

    half_b = ceil(real tokens / 2C), at least 1 and at most M: a bucket below half_b is a column with xR > 0, one from
    half_b on a column with xR < 0. Pads have the bucket 2M, which is behind all others.
    """
    tiles = (length + TILE - 1) // TILE
    line = tl.program_id(0) // tiles  # sequence x rounds + round
    sequence, number = line // rounds, line % rounds
    example, head = (sequence // heads).to(tl.int64), (sequence % heads).to(tl.int64)
    row = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    inside = row < length
    real = inside
    count = length
    if PADDING is not None:
        real = inside & (tl.load(PADDING + example * length + row, mask=inside, other=1) == 0)
        count = tl.load(COUNT + example)
    half = tl.minimum(tl.maximum((count + 2 * size - 1) // (2 * size), 1), columns)
    x = gather(X + example * x_b + head * x_h, row, x_n, real, D).to(tl.float32)
    ROTATIONS += (number * heads + head) * D * columns
    best = tl.full([TILE], -2.0, tl.float32)
    bucket = tl.zeros([TILE], tl.int32)
    for start in range(0, half, WIDTH):
        column = start + tl.arange(0, WIDTH)
        used = column < half
        places = tl.arange(0, D)[:, None] * columns + column[None, :]
        rotation = tl.load(ROTATIONS + places, mask=used[None, :], other=0.0)
        rotated = tl.dot(x, rotation, input_precision="ieee")
        size_of = tl.where(used[None, :] & (rotated == rotated), tl.abs(rotated), -1.0)
        most, place = tl.max(size_of, 1, return_indices=True)
        place = start + place
        value = tl.sum(tl.where(column[None, :] == place[:, None], rotated, 0.0), 1)
        bucket = tl.where(most > best, place + tl.where(value < 0, half, 0), bucket)
        best = tl.maximum(most, best)
    bucket = tl.where(real, bucket, 2 * columns)
    tl.store(KEYS + line.to(tl.int64) * length + row, bucket * length + row, mask=inside)
