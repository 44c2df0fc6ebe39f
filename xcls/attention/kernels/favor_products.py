"""FAVOR+ without masks between tokens, in few large operations: on CPUs, and on GPUs where `favor_triton` does not run.

Linear attention is softmax attention twice: directions attend to keys, and queries to directions. With
t_m = sum_j phi_m(k_j),

    mean_m = sum_j softmax_j(w_m.k_j - |k_j|^2 / (2 sqrt D)) v_j,    out_i = sum_m softmax_m(w_m.q_i + log t_m) mean_m

The factors of 16-bit products are then weights in [0, 1] or means of values, which do not overflow in fp16; exponents,
softmax and normalisers are fp32. A term added to an exponent is one more column of the matrix product.
Letters: B batch, H heads, N tokens, D head dimension, M features, G = B x H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xcls.attention.base import full_dtype

EXCLUDED = 1e30  # the half norm of a padding token: its exponent is below all others, and finite
CACHED = 2**20  # features of a group of examples on a CPU: 4 MiB in fp32, so that they stay in the cache


def favor(
    q: Tensor, k: Tensor, v: Tensor, directions: Tensor, offset: Tensor | None, padding: Tensor | None, epsilon: float
) -> Tensor:
    """Linear attention with the features exp(w.x + c - |x|^2 / (2 sqrt D)): q, k, v [B, H, N, D] -> [B, H, N, D].

    directions: w [B|1, H|1, M, D]; offset: c [B|1, H|1, 1, M] or None; padding [B, N]: such tokens hold finite numbers,
    and their output has no meaning; epsilon is added to the features of keys, the largest of which is 1. Gradients
    reach q, k, v, w and c. They treat the stabiliser, the largest exponent of a key, as a constant: exact at epsilon =
    0, where it cancels, else up to terms of the size of epsilon. Features and normaliser are fp32 (fp64 for fp64
    input); the products with them are in the dtype of v. A CPU computes some examples at a time.
    """
    examples = len(q)
    if q.device.type == "cpu":
        examples = max(1, CACHED // max(1, q[0].numel() // q.shape[3] * directions.shape[2]))
    if examples >= len(q):
        return _Favor.apply(q, k, v, directions, offset, padding, epsilon)
    groups = -(-len(q) // examples)
    given = [(x,) * groups if x is None or len(x) == 1 else x.split(examples) for x in (directions, offset, padding)]
    parts = zip(*(x.split(examples) for x in (q, k, v)), *given)
    return torch.cat([_Favor.apply(*part, epsilon) for part in parts])


class _Favor(torch.autograd.Function):
    """Keeps q, k, v, the weights of both softmaxes in the dtype of v, and tensors of size G x M x D."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        directions: Tensor,
        offset: Tensor | None,
        padding: Tensor | None,
        epsilon: float,
    ) -> Tensor:
        """q, k, v -> [B, H, N, D]. For epsilon, h [G, M + 1, N] ends with a row of weights 1 / n at n real tokens."""
        (batch, heads, length, width), features, full = q.shape, directions.shape[2], full_dtype(q)
        w = directions.to(full).expand(batch, heads, -1, -1).flatten(0, 1)  # [G, M, D], not copied where shared
        c = 0.0 if offset is None else offset.to(full).expand(batch, heads, -1, -1).flatten(0, 1).transpose(1, 2)
        half_norm = torch.linalg.vector_norm(k, dim=-1, dtype=full).square_().mul_(0.5 * width**-0.5)  # [B, H, N]
        real = half_norm.new_ones(batch, length) if padding is None else (~padding).to(full)
        count = real.sum(dim=1, keepdim=True).clamp_(min=1.0)  # [B, 1]
        if padding is not None:
            half_norm.masked_fill_(padding[:, None], EXCLUDED)

        exponent = torch.bmm(_with_column(w, -1.0), _with_column(k, half_norm, full).transpose(1, 2))  # [G, M, N]
        largest = exponent.amax(dim=-1, keepdim=True)  # [G, M, 1]
        weights = torch.softmax(exponent, dim=-1)
        total = largest - weights.amax(dim=-1, keepdim=True).log()  # log t
        h = v.new_empty(batch * heads, features + 1, length)
        h[:, :features] = weights
        h[:, features].view(batch, heads, length).copy_((real / count)[:, None])
        del exponent, weights
        v = v.reshape(-1, length, width)
        means = torch.bmm(h, v)
        total = total - (largest + c).amax(dim=1, keepdim=True) + c  # relative to the largest feature of all
        extra = (epsilon * count).log().repeat_interleave(heads, dim=0).unsqueeze(-1)  # [G, 1, 1]
        level = torch.logaddexp(total, extra)
        share = (total - level).exp()  # the part of each sum of features that is not epsilon, [G, M, 1]
        mean = torch.lerp(means[:, features:], means[:, :features], share.to(v.dtype))

        exponent = torch.bmm(_with_column(q, 1.0, full), _with_column(w, level + c).transpose(1, 2))  # [G, N, M]
        p = torch.softmax(exponent, dim=-1).to(v.dtype)
        ctx.save_for_backward(q, k, v, directions, offset, h, p, mean, means, share)
        return torch.bmm(p, mean).view(q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of q, k, v, directions and offset."""
        q, k, v, directions, offset, h, p, mean, means, share = ctx.saved_tensors
        (batch, heads, length, width), features = q.shape, directions.shape[2]
        with torch.autocast(q.device.type, enabled=False):
            w = directions.to(v.dtype).expand(batch, heads, -1, -1).flatten(0, 1)
            grad = grad.to(v.dtype).reshape(-1, length, width)
            change_q = torch._softmax_backward_data(torch.bmm(grad, mean.transpose(1, 2)), p, -1, p.dtype)  # [G, N, M]
            q_grad = torch.bmm(change_q, w).view(q.shape)
            mean_grad = torch.bmm(p.transpose(1, 2), grad)
            level_grad = change_q.sum(dim=1, dtype=share.dtype).unsqueeze(-1)  # [G, M, 1]
            means_grad, constant = _gradient_of_means(mean_grad, means, share, level_grad)
            change_k = torch.baddbmm(constant.to(v.dtype), means_grad[:, :features], v.transpose(1, 2))
            change_k.mul_(h[:, :features])  # [G, M, N]
            k_grad = torch.bmm(change_k.transpose(1, 2), w).view(k.shape)
            k_grad.addcmul_(change_k.sum(dim=1).view(batch, heads, length, 1), k, value=-(width**-0.5))
            v_grad = torch.bmm(h.transpose(1, 2), means_grad).view(k.shape)
            w_grad, c_grad = None, None
            if ctx.needs_input_grad[3]:
                q, k = (x.to(v.dtype).reshape(-1, length, width) for x in (q, k))
                w_grad = (torch.bmm(change_q.transpose(1, 2), q) + torch.bmm(change_k, k)).view(batch, heads, -1, width)
                w_grad = w_grad.to(directions.dtype).sum_to_size(directions.shape)
            if ctx.needs_input_grad[4]:
                c_grad = level_grad + change_k.sum(dim=-1, keepdim=True, dtype=share.dtype)
                c_grad = c_grad.view(batch, heads, 1, -1).to(offset.dtype).sum_to_size(offset.shape)
        return q_grad, k_grad, v_grad, w_grad, c_grad, None, None


def _gradient_of_means(mean_grad: Tensor, means: Tensor, share: Tensor, level_grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of mean = share weighted + (1 - share) alike, with means [G, M+1, D] = (weighted, alike).

    mean_grad [G, M, D]; share, level_grad [G, M, 1] -> the gradient of `means` [G, M+1, D], and the constant term in
    the gradient of the exponents of keys, [G, M, 1]:
    share (level_grad + (1 - share) mean_grad.(weighted - alike)) - share mean_grad.weighted.
    """
    mean_grad, features = mean_grad.to(share.dtype), mean_grad.shape[1]
    weighted, alike = means.to(share.dtype).split((features, 1), dim=1)
    tilt = (mean_grad * (weighted - alike)).sum(dim=-1, keepdim=True)
    weighted_grad = share * mean_grad
    alike_grad = ((1 - share) * mean_grad).sum(dim=1, keepdim=True)
    constant = share * (level_grad + (1 - share) * tilt) - (weighted_grad * weighted).sum(dim=-1, keepdim=True)
    return torch.cat((weighted_grad, alike_grad), dim=1).to(means.dtype), constant


def _with_column(x: Tensor, column: Tensor | float, dtype: torch.dtype | None = None) -> Tensor:
    """x [..., n, D] with one column more, [G, n, D+1]; column: a number, or a tensor with one entry per row of x."""
    out = x.new_empty(*x.shape[:-1], x.shape[-1] + 1, dtype=dtype)
    out[..., :-1] = x
    out[..., -1] = column.reshape(x.shape[:-1]) if isinstance(column, Tensor) else column
    return out.flatten(0, -3)
