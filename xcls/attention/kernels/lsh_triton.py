"""LSH attention on a GPU: two Triton kernels a round, one forward and one backward, and one that hashes.

The readable version is `xcls/attention/lsh.py`, the kernels and their mathematics are in `lsh_programs.py`.
Letters: B batch, H heads, N tokens, D head width, R rounds, C tokens of a chunk, M columns of a rotation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from xcls.attention import kernels

try:
    import triton
except ImportError:
    triton = None

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def available(x: Tensor, *, hashing: bool = False) -> bool:
    """Whether `attend_sorted`, or with hashing=True `hash_keys`, takes tensors like x [B, H, N, D].

    D is a power of two from 16 to 128 and x fp32, fp16 or bf16; attention needs tensor cores that Triton uses
    (`kernels.capability`), hashing does not. Not in bf16 under Triton's interpreter, whose products are wrong there.
    """
    if x.dtype not in DTYPES or x.shape[-1] not in (16, 32, 64, 128):
        return False
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and not hashing:
        return False
    return kernels.capability(x.device) >= ((7, 0) if hashing else (8, 0))


def hash_keys(
    x: Tensor, rotations: Tensor, bucket_size: int, *, padding: Tensor | None = None, count: Tensor | None = None
) -> Tensor:
    """bucket N + position, bucket = argmax([xR; -xR]) (Andoni et al. 2015): x [B, H, N, D] -> int32 [B, H, R, N].

    rotations [R, H, D, M]. padding: bool [B, N], True = a pad; pads are behind all real tokens. count: int32 [B], the
    real tokens of each example, counted here if not given. An example has as many buckets as it has real tokens /
    bucket_size, rounded up to an even number, 2M at the most. Computed in fp32. No gradient. `sort_keys` sorts them.
    """
    rounds, heads, width, columns = rotations.shape
    if (heads, width) != (x.shape[1], x.shape[3]):
        raise ValueError(f"rotations for {heads} heads of width {width}, but x has {x.shape[1]} of width {x.shape[3]}")
    if (2 * columns + 1) * x.shape[2] >= 2**31:
        raise ValueError(f"{2 * columns} buckets x {x.shape[2]} tokens do not fit into int32: lower max_buckets")
    if padding is None:
        count = None
    elif count is None:
        count = (~padding).sum(dim=-1, dtype=torch.int32)
    x, rotations = unit_stride(x.detach()), rotations.detach().to(torch.float32).contiguous()
    return torch.ops.xcls.lsh_keys(x, rotations, padding, whole(count), bucket_size)


def sort_keys(keys: Tensor) -> Tensor:
    """The keys of `hash_keys` -> positions in order of bucket and position, pads last: int32 [B, H, R, N]."""
    return keys.sort(dim=-1).values % keys.shape[-1]


def attend_sorted(
    qk: Tensor, v: Tensor, order: Tensor, count: Tensor | None, *, chunk: int, before: int = 1, after: int = 0
) -> Tensor:
    """Softmax over the union of the rounds' candidates: qk, v [B, H, N, D] -> [B, H, N, D], in memory [B, N, H, D].

    Logits are q.k with k = q / |q|. order: int32 [B, H, R, N], the positions of each round sorted by bucket and
    position, pads last; count: int32 [B], the real tokens of each example, or None for N. The candidates of a query are
    the real tokens of its chunk of the sorted sequence and of `before` and `after` chunks beside it; a key met in
    several rounds counts once; a token attends to itself only where nothing else is allowed. Pads give zeros.
    qk and v have one dtype of fp32, fp16 and bf16; logits, softmax and sums are fp32, and R > 1 rounds are rounded to
    that dtype R times. Ask `available` first.
    """
    if qk.dtype != v.dtype or qk.shape != v.shape:
        raise ValueError(f"qk and v must be alike, not {qk.dtype} {tuple(qk.shape)} and {v.dtype} {tuple(v.shape)}")
    if order.dtype != torch.int32 or order.dim() != 4 or (*order.shape[:2], order.shape[3]) != qk.shape[:3]:
        raise ValueError(f"order must be int32 [B, H, R, N], not {order.dtype} {tuple(order.shape)}")
    return SortedAttention.apply(
        unit_stride(qk), unit_stride(v), order.contiguous(), whole(count), chunk, before, after
    )


def operations(
    shape: tuple[int, int, int, int], *, chunk: int, before: int = 1, after: int = 0, rounds: int = 1
) -> tuple[int, int]:
    """Operations of the matrix products, forward and backward (2 for each multiplication and addition), at most.

    shape: (B, H, N, D). Two products over all pairs forward; seven backward, where logits are computed twice again.
    """
    batch, heads, length, width = shape
    chunks = -(-length // chunk)
    seen = sum(max(min(i + after, chunks - 1) - max(i - before, 0) + 1, 0) for i in range(chunks))
    product = 2 * batch * heads * rounds * seen * chunk**2 * width
    return 2 * product, 7 * product


class SortedAttention(torch.autograd.Function):
    """The gradient of `attend_sorted`, whose arguments it has."""

    @staticmethod
    def forward(ctx: FunctionCtx, qk: Tensor, v: Tensor, order: Tensor, count: Tensor | None, *sizes: int) -> Tensor:
        """-> [B, H, N, D]."""
        out, lse, chunks = torch.ops.xcls.lsh_forward(qk, v, order, count, *sizes)
        ctx.save_for_backward(qk, v, out, lse, order, count, chunks)
        ctx.sizes = sizes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """[B, H, N, D] -> the gradients of qk and v."""
        d_qk, d_v = torch.ops.xcls.lsh_backward(unit_stride(grad), *ctx.saved_tensors, *ctx.sizes)
        return d_qk, d_v, None, None, None, None, None


def unit_stride(x: Tensor) -> Tensor:
    """x itself if entries of its last dimension are neighbours in memory, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def whole(count: Tensor | None) -> Tensor | None:
    """count as the kernels read it: int32, one after the other."""
    return None if count is None else count.to(torch.int32).contiguous()


def token_major(x: Tensor) -> Tensor:
    """An empty tensor like x [B, H, N, D], in memory [B, N, H, D]."""
    batch, heads, length, width = x.shape
    return x.new_empty(batch, length, heads, width).transpose(1, 2)


def shapes_forward(
    qk: Tensor, v: Tensor, order: Tensor, count: Tensor | None, chunk: int, before: int, after: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What `xcls::lsh_forward` gives back, not filled: out, lse [B, H, N], and chunk numbers [B, H, R - 1, N]."""
    batch, heads, rounds, length = order.shape
    lse = torch.empty(batch, heads, length, dtype=torch.float32, device=qk.device)
    return token_major(v), lse, order.new_empty(batch, heads, rounds - 1, length)


def run_forward(
    qk: Tensor, v: Tensor, order: Tensor, count: Tensor | None, chunk: int, before: int, after: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`xcls::lsh_forward`: the rounds one after the other, each going on from the output of the one before."""
    from xcls.attention.kernels import lsh_programs as programs

    out, lse, chunks = shapes_forward(qk, v, order, count, chunk, before, after)
    if out.numel() == 0:
        return out, lse, chunks
    batch, heads, rounds, length = order.shape
    with torch.cuda.device_of(qk):
        if rounds > 1:
            grid = (batch * heads * (rounds - 1) * -(-length // 256),)
            programs.chunks_kernel[grid](order, chunks, length, rounds, CHUNK=chunk, TILE=256, num_warps=4)
        for number in range(rounds):
            programs.forward_kernel[tiles(qk, chunk)](
                qk,
                v,
                order,
                count,
                chunks,
                out,
                lse,
                *qk.stride()[:3],
                *v.stride()[:3],
                heads,
                length,
                rounds,
                CHUNK=chunk,
                BEFORE=before,
                AFTER=after,
                ROUND=number,
                **options(qk, chunk),
            )
    return out, lse, chunks


def run_backward(
    grad: Tensor,
    qk: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    order: Tensor,
    count: Tensor | None,
    chunks: Tensor,
    chunk: int,
    before: int,
    after: int,
) -> tuple[Tensor, Tensor]:
    """`xcls::lsh_backward`: the gradients of qk and v, each [B, H, N, D] in memory [B, N, H, D]."""
    from xcls.attention.kernels import lsh_programs as programs

    d_qk, d_v = token_major(qk), token_major(v)
    if out.numel() == 0:
        return d_qk, d_v
    _, heads, rounds, length = order.shape
    with torch.cuda.device_of(qk):
        for number in range(rounds):
            programs.backward_kernel[tiles(qk, chunk)](
                qk,
                v,
                out,
                grad,
                lse,
                order,
                count,
                chunks,
                d_qk,
                d_v,
                *qk.stride()[:3],
                *v.stride()[:3],
                *grad.stride()[:3],
                heads,
                length,
                rounds,
                CHUNK=chunk,
                BEFORE=before,
                AFTER=after,
                ROUND=number,
                **options(qk, chunk),
            )
    return d_qk, d_v


def run_keys(x: Tensor, rotations: Tensor, padding: Tensor | None, count: Tensor | None, bucket_size: int) -> Tensor:
    """`xcls::lsh_keys`: see `hash_keys`."""
    from xcls.attention.kernels import lsh_programs as programs

    batch, heads, length, width = x.shape
    rounds, _, _, columns = rotations.shape
    keys = torch.empty(batch, heads, rounds, length, dtype=torch.int32, device=x.device)
    if keys.numel() == 0:
        return keys
    padding = None if padding is None else padding.contiguous().view(torch.uint8)
    with torch.cuda.device_of(x):
        programs.keys_kernel[(batch * heads * rounds * -(-length // 64),)](
            x,
            rotations,
            padding,
            count,
            keys,
            *x.stride()[:3],
            heads,
            length,
            rounds,
            columns,
            bucket_size,
            D=width,
            TILE=64,
            WIDTH=16,
            num_warps=4,
        )
    return keys


def tiles(qk: Tensor, chunk: int) -> tuple[int]:
    """The number of programs: one for each tile of each chunk of each sequence."""
    batch, heads, length, _ = qk.shape
    return (batch * heads * -(-length // chunk) * -(-chunk // options(qk, chunk)["TILE"]),)


def options(qk: Tensor, chunk: int) -> dict[str, int | str]:
    """How the two attention kernels are started: a program has TILE tokens of a chunk and meets STEP others at a time.

    So many that nothing, or little, of the backward pass must be moved out of the registers of 4 warps. fp32 numbers
    are multiplied as three products of TF32 parts, which together are exact to about 2^-21, or as one where allowed.
    """
    width, wide = qk.shape[-1], qk.dtype == torch.float32
    most = max(16, min(64, 8192 // (width * qk.element_size())))
    return {
        "D": width,
        "TILE": min(most, max(16, 1 << (chunk - 1).bit_length())),
        "STEP": 16 if wide else 32,
        "PRECISION": "tf32x3" if wide and not torch.backends.cuda.matmul.allow_tf32 else "tf32",
        "num_warps": 4,
        "num_stages": 1,
    }


LIBRARY = torch.library.Library("xcls", "FRAGMENT")
LIBRARY.define(
    "lsh_forward(Tensor qk, Tensor v, Tensor order, Tensor? count, int chunk, int before, int after)"
    " -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "lsh_backward(Tensor grad, Tensor qk, Tensor v, Tensor out, Tensor lse, Tensor order, Tensor? count, Tensor chunks,"
    " int chunk, int before, int after) -> (Tensor, Tensor)"
)
LIBRARY.define("lsh_keys(Tensor x, Tensor rotations, Tensor? padding, Tensor? count, int bucket_size) -> Tensor")
LIBRARY.impl("lsh_forward", shapes_forward, "Meta")
LIBRARY.impl("lsh_backward", lambda grad, qk, v, *rest: (token_major(qk), token_major(v)), "Meta")
LIBRARY.impl("lsh_keys", lambda x, r, *rest: x.new_empty(*x.shape[:2], len(r), x.shape[2], dtype=torch.int32), "Meta")
for device in ["CUDA"] + ["CPU"] * kernels.INTERPRETED:
    LIBRARY.impl("lsh_forward", run_forward, device)
    LIBRARY.impl("lsh_backward", run_backward, device)
    LIBRARY.impl("lsh_keys", run_keys, device)
