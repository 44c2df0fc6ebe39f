"""LSH attention on a GPU: two Triton kernels per hash round, one forward and one backward.

The readable version is `xcls/attention/lsh.py`, the kernels and their mathematics are in `lsh_programs.py`.
Letters: B batch, H heads, N tokens, D head dimension, R hash rounds, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xcls.attention import kernels
from xcls.attention.kernels import as_token_major, empty_token_major

if kernels.triton is not None:
    from xcls.attention.kernels import lsh_programs as programs


def available(x: Tensor) -> bool:
    """Whether `attend_sorted` takes tensors like x [B, H, N, D]: fp32, fp16 or bf16, D a power of two from 16 to 128.

    It needs compute capability 8.0 (`kernels.capability`). bf16 is excluded under Triton's interpreter, whose bf16
    products are wrong.
    """
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        return False
    fits = x.dtype in (torch.float32, torch.float16, torch.bfloat16) and x.shape[-1] in (16, 32, 64, 128)
    return fits and kernels.capability(x.device) >= (8, 0)


def attend_sorted(
    qk: Tensor, v: Tensor, order: Tensor, count: Tensor | None, *, chunk: int, before: int = 1, after: int = 0
) -> Tensor:
    """Softmax over the union of the candidates of all rounds: qk, v [B, H, N, D] -> [B, H, N, D].

    The output is laid out as [B, N, H, D]. Logits are q.k with k = q / |q|. order: int32 [B, H, R, N], the positions of
    each round sorted by bucket and position, padding last; count: int32 [B], the real tokens of each example, or None
    for N. The candidates of a query are the real tokens of its chunk of the sorted sequence and of `before` and `after`
    chunks beside it; a key met in several rounds counts once; a token attends to itself only where nothing else is
    allowed. Padding gives zeros. qk and v have one dtype, fp32, fp16 or bf16; logits, softmax and sums are fp32; the
    output is rounded to that dtype after each round. Call `available` first.
    """
    count = None if count is None else count.int().contiguous()
    return SortedAttention.apply(qk.contiguous(), v.contiguous(), order.contiguous(), count, chunk, before, after)


class SortedAttention(torch.autograd.Function):
    """`attend_sorted` with its gradient; the arguments are the same."""

    @staticmethod
    def forward(ctx: Any, qk: Tensor, v: Tensor, order: Tensor, count: Tensor | None, *sizes: int) -> Tensor:
        """-> [B, H, N, D]."""
        out, lse, chunks = torch.ops.xcls.lsh_forward(qk, v, order, count, *sizes)
        ctx.save_for_backward(qk, v, order, count, chunks, out, lse)
        ctx.sizes = sizes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """[B, H, N, D] -> the gradients of qk and v."""
        gradients = torch.ops.xcls.lsh_backward(*ctx.saved_tensors, as_token_major(grad), *ctx.sizes)
        return *gradients, None, None, None, None, None


def shapes_forward(
    qk: Tensor, v: Tensor, order: Tensor, count: Tensor | None, chunk: int, before: int, after: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of `xcls::lsh_forward` without values: out, lse [B, H, N], and chunk numbers [B, H, R - 1, N]."""
    batch, heads, rounds, length = order.shape
    lse = torch.empty(batch, heads, length, dtype=torch.float32, device=qk.device)
    return empty_token_major(v), lse, order.new_empty(batch, heads, rounds - 1, length)


def run_forward(
    qk: Tensor, v: Tensor, order: Tensor, count: Tensor | None, chunk: int, before: int, after: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`xcls::lsh_forward`: one round after the other; each continues from the output of the round before."""
    out, lse, chunks = shapes_forward(qk, v, order, count, chunk, before, after)
    if order.shape[2] > 1:
        numbers = torch.arange(order.shape[3], dtype=torch.int32, device=order.device) // chunk
        chunks.scatter_(-1, order[:, :, :-1].long(), numbers.expand_as(chunks))
    run_rounds(programs.forward_kernel, (qk, v, order, count, chunks, out, lse), chunk, before, after)
    return out, lse, chunks


def run_backward(*given: Any) -> tuple[Tensor, Tensor]:
    """`xcls::lsh_backward`, with the arguments of the schema below: the gradients of qk and v, [B, H, N, D] each."""
    *tensors, chunk, before, after = given
    made = torch.empty_like(tensors[0]), torch.empty_like(tensors[1])
    run_rounds(programs.backward_kernel, (*tensors, *made), chunk, before, after)
    return made


def run_rounds(kernel: Any, tensors: tuple[Any, ...], chunk: int, before: int, after: int) -> None:
    """Starts the kernel for each round, with one program per tile of each chunk of each sequence."""
    qk, order = tensors[0], tensors[2]
    batch, heads, rounds, length = order.shape
    chosen = options(qk, chunk)
    programs_ = batch * heads * -(-length // chunk) * -(-chunk // chosen["TILE"])
    with torch.cuda.device_of(qk):
        for number in range(rounds if programs_ else 0):
            sizes = {"ROUND": number, "CHUNK": chunk, "BEFORE": before, "AFTER": after}
            kernel[(programs_,)](*tensors, heads, length, rounds, **sizes, **chosen)


def options(qk: Tensor, chunk: int) -> dict[str, Any]:
    """Launch options of the two kernels: a program holds TILE tokens of a chunk and reads STEP others at a time.

    The sizes are chosen so that the backward pass spills few registers with 4 warps. Products of fp32 numbers are three
    products of TF32 parts, with an error of about 2^-21, or one TF32 product where PyTorch allows that.
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


GIVEN, SIZES = "Tensor qk, Tensor v, Tensor order, Tensor? count", "int chunk, int before, int after"
kernels.register("lsh_forward", f"({GIVEN}, {SIZES}) -> (Tensor, Tensor, Tensor)", shapes_forward, run_forward)
kernels.register(
    "lsh_backward",
    f"({GIVEN}, Tensor chunks, Tensor out, Tensor lse, Tensor grad, {SIZES}) -> (Tensor, Tensor)",
    lambda qk, v, *rest: (torch.empty_like(qk), torch.empty_like(v)),
    run_backward,
)
