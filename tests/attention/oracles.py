"""The mechanisms on the whole N x N matrix, slow and readable: what the tests hold the real ones against.

Letters: B batch, H heads, N tokens, D head dimension, W window of the relative bias.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xcls.attention.base import Attention, Masks, full_dtype, zero_padding
from xcls.attention.favor import KernelAttention, key_features, query_features
from xcls.attention.favor_band import PerformerBand
from xcls.attention.lsh import Reformer
from xcls.attention.lsh_learned import ReformerLearned
from xcls.attention.lsh_local import ReformerLocal
from xcls.attention.smyrf import Smyrf, asymmetric_scores
from xcls.attention.softmax import Sdpa, SdpaFused
from xcls.attention.window import Window

Oracle = Callable[[Attention, Tensor, Tensor, Tensor, Masks], Tensor]
ORACLES: dict[type[Attention], Oracle] = {}  # of a class and its subclasses


def oracle(attention: Attention, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
    """What `attention(q, k, v, masks)` must be, [B, H, N, D]: pads and rows with nothing to attend to are zero."""
    function = next(
        ORACLES[kind] for kind in type(attention).__mro__ if kind in ORACLES
    )  # of the nearest class that has one
    q, k, v = (zero_padding(x, masks.padding) for x in (q, k, v))
    return zero_padding(function(attention, q, k, v, masks).to(v.dtype), masks.padding)


def dense_bias(masks: Masks, length: int) -> Tensor | float:
    """The relative bias of all pairs, [H, N, N], by a gather; 0 without one."""
    if masks.bias is None:
        return 0.0
    window, position = masks.bias.shape[-1] // 2, torch.arange(length, device=masks.bias.device)
    return masks.bias[:, (position - position[:, None]).clamp(-window, window) + window]


def allowed_pairs(masks: Masks, like: Tensor) -> Tensor:
    """Who may attend to whom, bool [B, H, N, N], for q, k, v like `like` [B, H, N, D]."""
    batch, heads, length, _ = like.shape
    allowed = torch.ones(batch, heads, length, length, dtype=torch.bool, device=like.device)
    blocked = masks.blocked()
    return allowed if blocked is None else allowed & ~blocked


def softmax_over(allowed: Tensor, logits: Tensor, v: Tensor) -> Tensor:
    """Softmax from exponentials and sums alone: allowed, logits [B, H, N, N], v [B, H, N, D]; zeros where nothing is
    allowed."""
    peak = logits.masked_fill(~allowed, -torch.inf).amax(dim=-1, keepdim=True).clamp(min=-1e30).detach()
    weights = torch.where(allowed, (logits - peak).masked_fill(~allowed, 0.0).exp(), 0.0)
    total = weights.sum(dim=-1, keepdim=True)
    return (weights / total.masked_fill(total == 0, 1.0)).to(v.dtype) @ v


def dense_softmax(attention: Attention, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v."""
    logits = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5 + dense_bias(masks, q.shape[2])
    return softmax_over(allowed_pairs(masks, q), logits, v)


ORACLES.update({Sdpa: dense_softmax, SdpaFused: dense_softmax})


def dense_kernel(attention: KernelAttention, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
    """phi(q) phi(k)^T exp(bias) written out, in fp32 at least."""
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (x.to(full_dtype(x)) for x in (q, k, v))
        phi_q, phi_k = attention.features(q, k, masks)
        bias = dense_bias(masks, q.shape[2])
        bias = bias if masks.bias is None else bias - masks.bias.detach().amax(dim=-1)[:, None, None]
        weights = torch.einsum("bhim,bhjm->bhij", phi_q, phi_k) * torch.as_tensor(bias, dtype=q.dtype).exp()
        weights = torch.where(allowed_pairs(masks, q), weights, 0.0)
        total = weights.sum(dim=-1, keepdim=True)
        return weights / total.masked_fill(total == 0, 1.0) @ v


def dense_band(attention: PerformerBand, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
    """exp(q.k) for pairs in the same chunk or in neighbouring ones, phi(q).phi(k) for the others, times exp(bias), in
    logarithms."""
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (x.to(full_dtype(x)) for x in (q, k, v))
        directions = attention.directions(q, k, masks)
        phi_q, level_q = query_features(q, *directions)
        phi_k, level_k = key_features(k, *directions, padding=masks.padding, epsilon=attention.epsilon)
        rough = torch.einsum("bhim,bhjm->bhij", phi_q, phi_k).div(attention.num_features).clamp(min=1e-37).log()
        size = attention.window if masks.bias is None else max(attention.window, masks.bias.shape[-1] // 2)
        chunk = torch.arange(q.shape[2]) // size
        near = (chunk - chunk[:, None]).abs() <= 1
        logits = torch.where(near, q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, rough + level_q + level_k)
        return softmax_over(allowed_pairs(masks, q), logits + dense_bias(masks, q.shape[2]), v)


ORACLES.update({KernelAttention: dense_kernel, PerformerBand: dense_band})


# LSH, SMYRF and the sliding window


def ranks(order: Tensor, padding: Tensor | None) -> Tensor:
    """How many real tokens of its sequence come before each token, by (order, position): [B, H, R, N] -> the same."""
    position = torch.arange(order.shape[-1], device=order.device)
    this, other = order[..., :, None], order[..., None, :]
    earlier = (other < this) | ((other == this) & (position < position[:, None]))  # [B, H, R, N, N]
    if padding is not None:
        earlier = earlier & ~padding[:, None, None, None, :]
    return earlier.sum(dim=-1)


def lsh_buckets(x: Tensor, rotations: Tensor, bucket_size: int, padding: Tensor | None) -> Tensor:
    """argmax([xR; -xR]) over as many columns as an example needs: x [B, H, N, D], rotations [R, H, D, most] ->
    [B, H, R, N]."""
    found = []
    for number, example in enumerate(x):
        real = example.shape[1] if padding is None else int((~padding[number]).sum())
        columns = min(max(-(-real // (2 * bucket_size)), 1), rotations.shape[-1])
        turned = torch.einsum("hnd,rhdk->hrnk", example, rotations[..., :columns].to(x.dtype))
        found.append(torch.cat((turned, -turned), dim=-1).argmax(dim=-1))
    return torch.stack(found)


def lsh_over(
    qk: Tensor,
    v: Tensor,
    buckets: Tensor,
    masks: Masks,
    *,
    chunk: int,
    before: int,
    after: int,
    similar: Tensor | float = 0.0,
) -> Tensor:
    """LSH attention with these buckets [B, H, R, N], without sorting: qk, v [B, H, N, D], similar [B, H, N, N] added
    to logits."""
    place = ranks(buckets, masks.padding) // chunk  # [B, H, R, N]
    apart = place[..., None, :] - place[..., :, None]
    met = ((apart >= -before) & (apart <= after)).any(dim=2)  # in some round: [B, H, N, N]
    allowed = allowed_pairs(masks, qk) & met
    others = allowed & ~torch.eye(qk.shape[2], dtype=torch.bool, device=qk.device)
    allowed = torch.where(others.any(dim=-1, keepdim=True), others, allowed)  # itself only where nothing else is
    logits = qk @ torch.nn.functional.normalize(qk, dim=-1).transpose(-1, -2) + similar
    return softmax_over(allowed, logits + dense_bias(masks, qk.shape[2]), v)


def dense_lsh(attention: Reformer, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
    """Hashed before or after the rotation; a round by position where the class has one; the agreement of trained
    codes."""
    turned = q if masks.rotate is None else masks.rotate(q)
    hashed = turned if attention.hash_rotated else q
    with torch.autocast(q.device.type, enabled=False):
        buckets = lsh_buckets(
            hashed.detach().to(full_dtype(q)), attention.rotations, attention.bucket_size, masks.padding
        )
    if isinstance(attention, ReformerLocal):
        buckets = torch.cat((buckets, torch.zeros_like(buckets[:, :, :1])), dim=2)
    similar: Tensor | float = 0.0
    if isinstance(attention, ReformerLearned):
        codes = attention.codes(hashed, masks)
        similar = attention.agreement * codes @ codes.transpose(-1, -2)
    sizes = {"chunk": attention.bucket_size, "before": attention.chunks_before, "after": attention.chunks_after}
    return lsh_over(turned, v, buckets, masks, similar=similar, **sizes)


def dense_smyrf(attention: Smyrf, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
    """Queries and keys in the same cluster in some round, ranks instead of sorting."""
    length, size = q.shape[2], attention.bucket_size
    tokens = torch.tensor(length, device=q.device)
    if masks.padding is not None:
        tokens = (~masks.padding).sum(dim=-1).clamp(min=1)[:, None, None, None]
    parts = (tokens + size - 1) // size
    with torch.autocast(q.device.type, enabled=False):
        scores = asymmetric_scores(q, k, attention.directions, masks.padding)
    q_cluster, k_cluster = (ranks(score, masks.padding) * parts // tokens for score in scores)
    met = (q_cluster[..., :, None] == k_cluster[..., None, :]).any(dim=2)  # [B, H, N, N]
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return softmax_over(allowed_pairs(masks, q) & met, logits + dense_bias(masks, length), v)


def dense_window(attention: Window, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
    """Softmax attention with distant pairs blocked."""
    position = torch.arange(q.shape[2], device=q.device)
    near = (position - position[:, None]).abs() <= attention.window
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + dense_bias(masks, q.shape[2])
    return softmax_over(allowed_pairs(masks, q) & near, logits, v)


ORACLES.update({Reformer: dense_lsh, Smyrf: dense_smyrf, Window: dense_window})
