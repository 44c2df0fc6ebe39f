"""LSH attention: each token attends to tokens that random rotations hash to the same bucket. Cost: O(N log N).

Kitaev, Kaiser and Levskaya 2020, "Reformer: The Efficient Transformer", sections 2 and 3 and appendix A.
Queries and keys are one projection. A hash round hashes it to buckets, sorts by (bucket, position) and cuts the sorted
sequence into chunks; the candidates of a token are the real tokens of its chunk and of some neighbouring chunks. The
result is one softmax over the union of the candidates of all rounds; a key met in several rounds counts once.
Letters: B batch, H heads, N tokens, D head dimension, R hash rounds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xcls.attention.base import Attention, Masks, full_dtype, mix
from xcls.attention.kernels import is_compiling, lsh_cpu, lsh_triton, lsh_windows
from xcls.attention.operations import Shape, Work, sorted_chunks_work
from xcls.attention.sorted_chunks import Chunks, attend, real_tokens

CACHED = 2**20  # entries hashed at a time on a CPU, so that they stay in its cache


def on_cpu(x: Tensor) -> bool:
    """Whether the versions of `kernels/lsh_cpu.py` are used."""
    return x.device.type == "cpu" and not is_compiling()


def columns_in_use(x: Tensor, rotations: Tensor, bucket_size: int, masks: Masks) -> tuple[int, Tensor | None]:
    """How many columns of the rotations the batch uses, and which of them each example does not use.

    x [B, H, N, D], rotations [R, H, D, most] -> (width, bool [B, 1, 1, width], or None without padding). An example
    with n real tokens uses the first min(most, ceil(n / (2 bucket_size))) columns, at least one.
    """
    most = rotations.shape[-1]
    width = min(most, -(-x.shape[2] // (2 * bucket_size)))  # n is at most N
    count = real_tokens(masks)
    if count is None:
        return width, None

    def spare() -> Tensor:
        needed = (count + 2 * bucket_size - 1) // (2 * bucket_size)
        return torch.arange(width, device=x.device) >= needed.clamp(1, most).view(-1, 1, 1, 1)

    return width, masks.once(("lsh spare columns", bucket_size, most), spare)


@torch.no_grad()
def hash_buckets(x: Tensor, rotations: Tensor, *, bucket_size: int, masks: Masks) -> Tensor:
    """argmax([xR; -xR]) for each round (Andoni et al. 2015): x [B, H, N, D], rotations [R, H, D, most] -> [B, H, R, N].

    An example has two buckets for each column it uses (`columns_in_use`), about one per bucket_size real tokens. The
    amount of padding changes neither which tokens share a bucket nor the order of the buckets.
    """
    width, spare = columns_in_use(x, rotations, bucket_size, masks)
    used = rotations[..., :width].to(full_dtype(x))
    entries = x.shape[0] * x.shape[1] * max(width, x.shape[3])  # of one token, in all sequences
    step = max(1, CACHED // max(1, entries)) if on_cpu(x) else max(1, x.shape[2])
    pieces = [hash_tokens(piece.to(used.dtype), used, spare) for piece in x.split(step, dim=2)]
    return torch.cat(pieces, dim=3)


def hash_tokens(x: Tensor, rotations: Tensor, spare: Tensor | None) -> Tensor:
    """`hash_buckets` with the columns in use: argmax of |xR|, then its sign. Half the products of [xR; -xR]."""
    buckets = []
    for rotation in rotations:
        rotated = x @ rotation  # [B, H, N, width]
        magnitude = rotated.abs() if spare is None else rotated.abs().masked_fill_(spare, -1.0)
        best = magnitude.argmax(dim=-1)
        negative = rotated.gather(-1, best[..., None]).squeeze(-1) < 0
        buckets.append(best + negative * rotated.shape[-1])
    return torch.stack(buckets, dim=2)


def sort_keys(buckets: Tensor, masks: Masks) -> Tensor:
    """bucket x N + position; padding tokens get a very large key, so they sort last: int64 [B, H, R, N] -> the same."""
    length = buckets.shape[-1]

    def position() -> Tensor:
        place = torch.arange(length, device=buckets.device)
        pads = masks.padding
        return place if pads is None else torch.add(place, pads[:, None, None, :], alpha=2**31 * length)

    return torch.add(masks.once("lsh positions", position), buckets, alpha=length)


def sorted_positions(keys: Tensor) -> Tensor:
    """Each round's positions, sorted by (bucket, position): keys of `sort_keys` -> [B, H, R, N] in their dtype."""
    return lsh_cpu.sorted_on_cpu(keys) if on_cpu(keys) else keys.sort(dim=-1).values % keys.shape[-1]


def unit_keys(x: Tensor) -> Tensor:
    """x / |x|, computed in fp32 at least: [B, H, N, D] -> same shape and dtype. Finite at zero, gradients too."""
    if on_cpu(x):
        return lsh_cpu.unit_on_cpu(x)
    wide = x.to(full_dtype(x))
    return (wide * (wide.square().mean(dim=-1, keepdim=True) + 1e-12).rsqrt() / x.shape[-1] ** 0.5).to(x.dtype)


def lsh_attention(
    qk: Tensor,
    v: Tensor,
    order: Tensor,
    masks: Masks,
    *,
    chunk: int,
    before: int = 1,
    after: int = 0,
    codes: Tensor | None = None,
    agreement: float = 0.0,
) -> Tensor:
    """Softmax over the union of the rounds' candidates: qk and v [B, H, N, D], order [B, H, R, N] -> [B, H, N, D].

    Logits are q.k with k = q / |q|, as in the authors' code and in transformers. The division by |q|, which is about
    sqrt(D), replaces that by sqrt(D) (reformer-pytorch does both). A token attends to itself only where nothing else is
    allowed. Chunks do not wrap around. order: from `sorted_positions`; chunk: tokens of a chunk, which sees `before`
    and `after` chunks besides itself. codes [B, H, N, F]: adds agreement x code.code to the logit of a pair.
    """
    count = real_tokens(masks)
    plain = codes is None and masks.pairs is None and masks.bias is None
    if plain and lsh_triton.available(qk):  # GPUs from compute capability 8.0
        return lsh_triton.attend_sorted(qk, v, order.int(), count, chunk=chunk, before=before, after=after)
    chunks = Chunks(order, order, count, chunk, before, after)
    # GPUs from 7.0 (V100, T4), with one hash round
    if plain and order.shape[2] == 1 and lsh_windows.available(qk) and not is_compiling():
        return lsh_windows.attend_in_windows(qk, v, chunks, masks)
    # CPUs, and all that the two above do not take
    queries, keys = qk, unit_keys(qk)
    if codes is not None:
        codes = codes.to(qk.dtype)
        queries, keys = torch.cat((queries, agreement * codes), dim=-1), torch.cat((keys, codes), dim=-1)
    return attend(queries, keys, v, chunks, masks, avoid_self=True)


class Reformer(Attention):
    """LSH attention with fixed random rotations per layer, round and head; see `lsh_attention`."""

    ties_qk = True
    rotations: Tensor
    agreement = 0.0  # weight of the codes in the logits; a subclass may set it
    unhashed_rounds = 0  # further rounds of a subclass that do not hash

    def __init__(
        self,
        *,
        num_hashes: int = 1,
        bucket_size: int = 64,
        chunks_before: int = 1,
        chunks_after: int = 0,
        max_buckets: int = 256,
        hash_rotated: bool = False,
        **shape: Any,
    ) -> None:
        """num_hashes: R; bucket_size: tokens of a chunk; chunks_before, chunks_after: neighbouring chunks seen.

        max_buckets: even. hash_rotated: hash after the rotary embedding (buckets then depend on position) or before it.
        """
        super().__init__(**shape)
        if min(num_hashes, bucket_size) < 1 or min(chunks_before, chunks_after) < 0:
            raise ValueError("num_hashes and bucket_size must be at least 1, chunks_before and chunks_after at least 0")
        if max_buckets < 2 or max_buckets % 2:
            raise ValueError(f"max_buckets must be even and at least 2, not {max_buckets}")
        self.bucket_size = bucket_size
        self.chunks_before = chunks_before
        self.chunks_after = chunks_after
        self.hash_rotated = hash_rotated
        self.wants_unrotated = not hash_rotated
        self.register_buffer("rotations", torch.empty(num_hashes, self.num_heads, self.head_dim, max_buckets // 2))
        self.redraw(torch.Generator().manual_seed(mix(self.seed, self.layer)))

    def redraw(self, generator: torch.Generator) -> None:
        """New rotations from `generator` (a CPU one)."""
        self.rotations.copy_(torch.randn(self.rotations.shape, generator=generator))

    def sort_keys(self, x: Tensor, masks: Masks) -> Tensor:
        """Hash x [B, H, N, D] -> the keys that each round sorts by, [B, H, R, N]; see the function `sort_keys`."""
        return sort_keys(hash_buckets(x, self.rotations, bucket_size=self.bucket_size, masks=masks), masks)

    def order(self, x: Tensor, masks: Masks) -> Tensor:
        """x [B, H, N, D] -> each round's positions in sorted order, padding last, [B, H, R, N]. No gradient."""
        return sorted_positions(self.sort_keys(x.detach(), masks))

    def codes(self, x: Tensor, masks: Masks) -> Tensor | None:
        """The codes for `lsh_attention`: x [B, H, N, D] -> [B, H, N, F], or None. Gradients pass through."""
        return None

    def operations(self, shape: Shape) -> tuple[Work, Work]:
        """xR for the hashes, without a gradient, and attention within chunks in each round. Codes add the columns of xR
        to q and k; then xR has a gradient.
        """
        rounds = len(self.rotations)
        columns = rounds * min(self.rotations.shape[-1], -(-shape.length // (2 * self.bucket_size)))
        hashes = Work(2.0 * shape.vectors * columns, shape.moved / 4)
        codes = Work(hashes.flops if self.agreement else 0.0, 0)
        inference, training = sorted_chunks_work(
            shape,
            rounds=rounds + self.unhashed_rounds,
            size=self.bucket_size,
            reach=(self.chunks_before, self.chunks_after),
            key_width=shape.head_dim + (columns if self.agreement else 0),
        )
        return hashes + inference + codes, hashes + training + codes * 3

    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        """q, v [B, H, N, D] -> [B, H, N, D]; k equals q and is not read. `hash_rotated` sets what is hashed."""
        rotated = q if masks.rotate is None else masks.rotate(q)
        hashed = rotated if self.hash_rotated else q
        return lsh_attention(
            rotated,
            v,
            self.order(hashed, masks),
            masks,
            chunk=self.bucket_size,
            before=self.chunks_before,
            after=self.chunks_after,
            codes=self.codes(hashed, masks),
            agreement=self.agreement,
        )
