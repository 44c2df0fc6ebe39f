"""LSH attention: each token attends to the tokens that random rotations sort near it, in N log N.

Kitaev, Kaiser and Levskaya 2020, "Reformer: The Efficient Transformer", sections 2 and 3 and appendix A.
Queries and keys are one projection. A round hashes it to buckets, sorts by (bucket, position) and cuts the sorted
sequence into chunks; a token's candidates are the real tokens of its chunk and of the named neighbouring chunks.
Letters: B batch, H heads, N tokens, D head width, R rounds, C tokens of a chunk, K = C x chunks that a query sees,
T all chunks of all sequences, G = B x H sequences, W window of the relative bias.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xcls.attention.base import Attention, check_attn_mask, full_dtype, mix, zero_padding
from xcls.attention.reformer_oracle import dense_lsh
from xcls.attention.reformer_sort import Layout, ToSlots, ToTokens, chunk_layout, lsh_buckets

ITSELF = -1e30  # a token's logit for itself: it counts only where every other one is BLOCKED
BLOCKED = -1e38  # finite, so that a row of nothing else is no NaN; such rows end as zeros


def unit_keys(x: Tensor) -> Tensor:
    """x / |x|, computed in fp32 at least: [B, H, N, D] -> same shape and dtype. Finite at zero, gradients too."""
    wide = x.to(full_dtype(x))
    scale = (wide.square().mean(dim=-1, keepdim=True) + 1e-12).rsqrt() * x.shape[-1] ** -0.5
    return (wide * scale).to(x.dtype)


def lsh_attention(
    qk: Tensor,
    v: Tensor,
    buckets: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    relative_bias: Tensor | None = None,
    bucket_size: int = 64,
    chunks_before: int = 1,
    chunks_after: int = 0,
) -> Tensor:
    """Softmax over the union of the rounds' candidates: qk and v [B, H, N, D], buckets [B, H, R, N] -> [B, H, N, D].

    Logits are q.k with k = q / |q|, as in the authors' code (no further 1 / sqrt(D): |q| is about sqrt(D) by itself).
    A key met in n rounds has log n taken off in each, so the rounds, merged by their normalisers, give each key its
    weight once. Masks and bias as in `Attention.forward`. A token attends to itself only where nothing else is
    allowed. Pads sort behind all real tokens, and no chunk wraps around.
    """
    batch, heads, length, width = qk.shape
    attn_mask = check_attn_mask(attn_mask)
    qk, v = zero_padding(qk, key_padding_mask), zero_padding(v, key_padding_mask)
    layout = chunk_layout(
        buckets,
        key_padding_mask=key_padding_mask,
        bucket_size=bucket_size,
        chunks_before=chunks_before,
        chunks_after=chunks_after,
    )
    window = Window(layout, bucket_size, chunks_before, chunks_after, (batch, heads, length))
    tokens = torch.cat((qk, unit_keys(qk), v), dim=-1).view(-1, 3 * width)  # [G N, 3D]: one gather moves all three
    rounds = len(layout.take)
    outs, norms = [], []
    for number in range(rounds):
        slots = ToSlots.apply(tokens, layout.take[number], layout.give[number])
        q, k, values = slots.split(width, dim=1)
        logits = window.queries(q) @ window.keys(k).transpose(1, 2)  # [T, C, K]
        logits = window.restricted(logits, number, attn_mask, relative_bias)
        weights = torch.softmax(logits, dim=-1)
        if rounds > 1:
            norms.append(window.to_tokens(torch.logsumexp(logits, dim=-1, keepdim=True), number))
        outs.append(window.to_tokens(weights.to(v.dtype) @ window.keys(values), number))
    out = outs[0]
    if rounds > 1:
        share = torch.softmax(torch.stack(norms), dim=0)  # [R, B, H, N, 1]
        out = sum(part * weight for part, weight in zip(outs, share))
    if attn_mask is not None:
        out = out.masked_fill(window.nothing_allowed(attn_mask), 0.0)
    return zero_padding(out, key_padding_mask).to(v.dtype)


class Window:
    """Chunks and their candidates in the long list of slots, and what keeps a pair of them apart."""

    def __init__(
        self, layout: Layout, bucket_size: int, chunks_before: int, chunks_after: int, shape: tuple[int, int, int]
    ) -> None:
        """shape: (B, H, N)."""
        self.layout = layout
        self.size = bucket_size
        self.before = chunks_before
        self.after = chunks_after
        self.span = (chunks_before + 1 + chunks_after) * bucket_size  # K
        self.shape = shape
        self.first = chunks_before * bucket_size
        self.last = self.first + shape[0] * shape[1] * layout.chunks * bucket_size

    def queries(self, slots: Tensor) -> Tensor:
        """Each chunk's own slots: [slots, F] or [slots] -> [T, C, F] or [T, C]."""
        return slots[self.first : self.last].view(-1, self.size, *slots.shape[1:])

    def keys(self, slots: Tensor) -> Tensor:
        """Each chunk's candidates, a view: [slots, F] or [slots] -> [T, K, F] or [T, K]."""
        windows = slots.unfold(0, self.span, self.size)
        return windows.transpose(1, 2) if slots.dim() == 2 else windows

    def to_tokens(self, chunks: Tensor, number: int) -> Tensor:
        """What the chunks of one round computed, back at its tokens: [T, C, F] -> [B, H, N, F]."""
        tokens = ToTokens.apply(chunks.flatten(0, 1), self.layout.give[number] - self.first)
        return tokens.view(*self.shape, -1)

    def restricted(self, logits: Tensor, number: int, attn_mask: Tensor | None, bias: Tensor | None) -> Tensor:
        """Logits [T, C, K] of one round, in fp32 at least, with everything added that is not q.k."""
        dtype = full_dtype(logits)
        empty = torch.zeros(self.layout.real.shape, dtype=dtype, device=logits.device)
        empty = self.keys(empty.masked_fill_(~self.layout.real, BLOCKED))
        logits = logits + empty[:, None]
        own = torch.zeros(self.size, self.span, dtype=dtype, device=logits.device)
        logits += own.diagonal_scatter(own.new_full((self.size,), ITSELF), self.first)
        if len(self.layout.take) > 1:
            logits -= self._log_count(number).to(dtype)
        if bias is not None:
            logits = logits + self._bias(number, bias)
        if attn_mask is not None:
            logits = logits.masked_fill(self._blocked(number, attn_mask), BLOCKED)
        return logits

    def nothing_allowed(self, attn_mask: Tensor) -> Tensor:
        """bool [B, H, N, 1]: tokens that may attend to no candidate of any round, themselves included."""
        nothing = torch.ones((*self.shape, 1), dtype=torch.bool, device=attn_mask.device)
        for number in range(len(self.layout.take)):
            closed = self._blocked(number, attn_mask) | ~self.keys(self.layout.real)[:, None]
            nothing &= self.to_tokens(closed.all(dim=-1, keepdim=True), number)
        return nothing

    def _log_count(self, number: int) -> Tensor:
        """log of the number of rounds in which a pair of this round meets: [T, C, K]."""
        count: Tensor | float = 0.0
        for chunk_of in self.layout.chunk_of:
            slots = chunk_of.index_select(0, self.layout.take[number])
            apart = self.keys(slots)[:, None] - self.queries(slots)[:, :, None]
            count = count + ((apart >= -self.before) & (apart <= self.after))
        return count.clamp(min=1.0).log()  # empty slots may have none

    def _positions(self, number: int) -> tuple[Tensor, Tensor]:
        """Positions in the sequence of a round's queries [T, C, 1] and keys [T, 1, K]."""
        position = self.layout.take[number] % self.shape[2]
        return self.queries(position)[:, :, None], self.keys(position)[:, None]

    def _sequence(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Example and head of each chunk, [T, 1, 1] each."""
        batch, heads, _ = self.shape
        sequence = torch.arange(batch * heads, device=device).repeat_interleave(self.layout.chunks)[:, None, None]
        return sequence // heads, sequence % heads

    def _bias(self, number: int, bias: Tensor) -> Tensor:
        """bias [H, 2W+1] at the clipped distances of a round's pairs: [T, C, K]."""
        window = bias.shape[-1] // 2
        query, key = self._positions(number)
        _, head = self._sequence(bias.device)
        entry = (key - query).clamp_(-window, window) + (window + head * bias.shape[-1])
        return bias.reshape(-1).index_select(0, entry.flatten()).view(entry.shape)

    def _blocked(self, number: int, attn_mask: Tensor) -> Tensor:
        """attn_mask [1|B, 1|H, N, N] at a round's pairs: bool [T, C, K]."""
        query, key = self._positions(number)
        example, head = self._sequence(attn_mask.device)
        return attn_mask[example % attn_mask.shape[0], head % attn_mask.shape[1], query, key]


class Reformer(Attention):
    """LSH attention with fixed random rotations per layer, round and head; see `lsh_attention`."""

    ties_qk = True

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        layer: int,
        seed: int,
        num_hashes: int = 1,
        bucket_size: int = 64,
        chunks_before: int = 1,
        chunks_after: int = 0,
        max_buckets: int = 256,
        hash_rotated: bool = False,
    ) -> None:
        """num_hashes: R; bucket_size: C; chunks_before, chunks_after: neighbouring chunks seen; max_buckets: even.

        hash_rotated: hash after the rotary embedding, which makes buckets depend on position, or before it.
        """
        super().__init__(num_heads=num_heads, head_dim=head_dim, layer=layer, seed=seed)
        if min(num_hashes, bucket_size) < 1 or min(chunks_before, chunks_after) < 0:
            raise ValueError("num_hashes and bucket_size must be at least 1, chunks_before and chunks_after at least 0")
        if max_buckets < 2 or max_buckets % 2:
            raise ValueError(f"max_buckets must be even and at least 2, not {max_buckets}")
        self.bucket_size = bucket_size
        self.chunks_before = chunks_before
        self.chunks_after = chunks_after
        self.hash_rotated = hash_rotated
        self.wants_unrotated = not hash_rotated
        self.register_buffer("rotations", torch.empty(num_hashes, num_heads, head_dim, max_buckets // 2))
        self.redraw(torch.Generator().manual_seed(mix(seed, layer)))

    def redraw(self, generator: torch.Generator) -> None:
        """New rotations from `generator` (a CPU one)."""
        self.rotations.copy_(torch.randn(self.rotations.shape, generator=generator))

    def hashed(
        self, qk: Tensor, key_padding_mask: Tensor | None, rotate: Callable[[Tensor], Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Rotate and hash, in the configured order: qk [B, H, N, D] -> (rotated qk, buckets [B, H, R, N])."""
        turned = qk if rotate is None else rotate(qk)
        source = zero_padding(turned if self.hash_rotated else qk, key_padding_mask).detach()
        dtype = full_dtype(source)
        with torch.autocast(qk.device.type, enabled=False):
            buckets = lsh_buckets(
                source.to(dtype),
                self.rotations.to(dtype),
                bucket_size=self.bucket_size,
                key_padding_mask=key_padding_mask,
            )
        return turned, buckets

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        relative_bias: Tensor | None = None,
        rotate: Callable[[Tensor], Tensor] | None = None,
        context: dict | None = None,
    ) -> Tensor:
        """q (k is the same, and is not read), v [B, H, N, D] -> [B, H, N, D]; arguments as in `Attention.forward`."""
        qk, buckets = self.hashed(q, key_padding_mask, rotate)
        return lsh_attention(
            qk,
            v,
            buckets,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            relative_bias=relative_bias,
            bucket_size=self.bucket_size,
            chunks_before=self.chunks_before,
            chunks_after=self.chunks_after,
        )

    def oracle(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        relative_bias: Tensor | None = None,
        rotate: Callable[[Tensor], Tensor] | None = None,
        context: dict | None = None,
    ) -> Tensor:
        """A dense softmax over the union of candidates, with the same hashes: [B, H, N, D] -> [B, H, N, D]."""
        qk, buckets = self.hashed(q, key_padding_mask, rotate)
        return dense_lsh(
            qk,
            v,
            buckets,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            relative_bias=relative_bias,
            bucket_size=self.bucket_size,
            chunks_before=self.chunks_before,
            chunks_after=self.chunks_after,
        )
