"""LSH attention against dense shared-QK attention, and against a slow union of candidates built pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from xcls.attention.base import full_dtype, zero_padding
from xcls.attention.reformer import Reformer, UnitKeys, lsh_attention
from xcls.attention.reformer_sort import lsh_buckets
from xcls.position.rope import Rotary

FACTS = {"num_heads": 2, "head_dim": 4, "layer": 0, "seed": 1}


def inputs(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    qk, v = (torch.randn(2, 2, length, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    return qk, v


def shared_qk(qk: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Dense attention with k = q / |q|, a token attending to itself only if it is the only one."""
    logits = qk @ torch.nn.functional.normalize(qk, dim=-1).transpose(-1, -2)
    logits = logits - 1e9 * torch.eye(qk.shape[2], dtype=qk.dtype)
    return logits.softmax(dim=-1) @ v


def slow_union(qk, v, buckets, *, pads, attn_mask, bias, bucket_size, before, after) -> torch.Tensor:
    """One query, one key, one round at a time, in plain Python."""
    batch, heads, length, _ = qk.shape
    out = torch.zeros_like(v)
    for b in range(batch):
        real = [i for i in range(length) if not pads[b, i]]
        for h in range(heads):
            union: dict[int, set[int]] = {i: set() for i in real}
            for bucket in buckets[b, h].tolist():
                ordered = sorted(real, key=lambda i: (bucket[i], i))
                chunks = [ordered[start : start + bucket_size] for start in range(0, len(ordered), bucket_size)]
                for number, chunk in enumerate(chunks):
                    seen = sum(chunks[max(number - before, 0) : number + after + 1], [])
                    for i in chunk:
                        union[i].update(j for j in seen if not attn_mask[b, h, i, j])
            for i, met in union.items():
                met = met - {i} or met
                window = bias.shape[1] // 2
                weights = {}
                for j in met:
                    key = qk[b, h, j] / qk[b, h, j].norm()
                    clipped = min(max(j - i, -window), window) + window
                    weights[j] = math.exp(qk[b, h, i] @ key + bias[h, clipped])
                for j, weight in weights.items():
                    out[b, h, i] += weight / sum(weights.values()) * v[b, h, j]
    return out


@pytest.mark.parametrize("rounds", [1, 2, 4])
@pytest.mark.parametrize("bucket_size,before,after", [(32, 0, 0), (8, 3, 3), (8, 2, 3)])
def test_equals_dense_attention_where_chunks_cover_the_sequence(
    rounds: int, bucket_size: int, before: int, after: int
) -> None:
    qk, v = inputs(24)
    reformer = Reformer(
        **FACTS, num_hashes=rounds, bucket_size=bucket_size, chunks_before=before, chunks_after=after, max_buckets=8
    )
    torch.testing.assert_close(reformer(qk, qk, v), shared_qk(qk, v))


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("before,after", [(1, 0), (0, 0), (1, 1), (0, 2)])
@pytest.mark.parametrize("length", [1, 5, 23])
def test_equals_the_union_built_pair_by_pair(rounds: int, before: int, after: int, length: int) -> None:
    qk, v = inputs(length)
    generator = torch.Generator().manual_seed(4)
    buckets = torch.randint(0, 5, (2, 2, rounds, length), generator=generator)
    bias = torch.randn(2, 7, dtype=torch.float64, generator=generator)
    pads = torch.arange(length) >= torch.tensor([length, max(length - 4, 1)])[:, None]
    attn_mask = torch.rand(2, 2, length, length, generator=generator) < 0.4
    out = lsh_attention(
        qk,
        v,
        buckets,
        key_padding_mask=pads,
        attn_mask=attn_mask,
        relative_bias=bias,
        bucket_size=4,
        chunks_before=before,
        chunks_after=after,
    )
    expected = slow_union(
        qk, v, buckets, pads=pads, attn_mask=attn_mask, bias=bias, bucket_size=4, before=before, after=after
    )
    torch.testing.assert_close(out, expected)


def test_the_same_round_thrice_is_that_round_once() -> None:
    qk, v = inputs(23)
    buckets = torch.randint(0, 5, (2, 2, 1, 23), generator=torch.Generator().manual_seed(4))
    once = lsh_attention(qk, v, buckets, bucket_size=4)
    torch.testing.assert_close(lsh_attention(qk, v, buckets.expand(-1, -1, 3, -1), bucket_size=4), once)


def test_a_token_attends_to_itself_only_if_alone() -> None:
    qk, v = inputs(2)
    buckets = torch.tensor([0, 1]).expand(2, 2, 1, 2)
    alone = lsh_attention(qk, v, buckets, bucket_size=1, chunks_before=0)
    torch.testing.assert_close(alone, v)
    torch.testing.assert_close(lsh_attention(qk, v, buckets, bucket_size=2, chunks_before=0), v.flip(2))
    closed = torch.eye(2, dtype=torch.bool)
    assert not lsh_attention(qk, v, buckets, bucket_size=1, chunks_before=0, attn_mask=closed).any()


def test_buckets_do_not_depend_on_padding_and_stay_below_their_number() -> None:
    qk, _ = inputs(40)
    rotations = torch.randn(3, 2, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    short = lsh_buckets(qk[:, :, :22], rotations, bucket_size=4)
    pads = (torch.arange(40) >= 22).expand(2, -1)
    padded = lsh_buckets(qk, rotations, bucket_size=4, key_padding_mask=pads)
    assert torch.equal(padded[..., :22], short)
    assert short.max() < 6 and short.unique().numel() == 6  # 22 / 4, rounded up to an even number


def test_equals_argmax_of_both_signs() -> None:
    qk, _ = inputs(40)
    rotations = torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    rotated = torch.einsum("bhnd,rhdk->bhrnk", qk, rotations)
    expected = torch.cat((rotated, -rotated), dim=-1).argmax(dim=-1)
    assert torch.equal(lsh_buckets(qk, rotations, bucket_size=4), expected)


@pytest.mark.parametrize("changed", [
    {"num_hashes": 2}, {"bucket_size": 5}, {"chunks_before": 0}, {"chunks_after": 1}, {"max_buckets": 2},
    {"hash_rotated": True}, {"seed": 2}, {"layer": 1},
])  # fmt: skip
def test_options_have_an_effect(changed: dict) -> None:
    qk, v = inputs(40)
    turned = torch.linspace(0, 3, 40, dtype=torch.float64)[:, None]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        cos, sin = turned.cos(), turned.sin()
        return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)

    base = {**FACTS, "bucket_size": 4}
    first = Reformer(**base)(qk, qk, v, rotate=rotate)
    assert not torch.allclose(first, Reformer(**{**base, **changed})(qk, qk, v, rotate=rotate), atol=1e-4)


def test_nothing_is_quadratic(largest: Callable) -> None:
    length = 1024
    qk, v = (x.requires_grad_() for x in inputs(length))
    bias = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    reformer = Reformer(**FACTS, num_hashes=2, bucket_size=8)
    entries = largest(lambda: reformer(qk, qk, v, relative_bias=bias))
    assert entries <= 2 * 2 * (length + 64) * max(2 * 8, reformer.rotations.shape[-1])


@pytest.mark.parametrize("real", [24, 19])
def test_equals_transformers_given_its_hashes_on_rows_that_its_wrap_around_does_not_touch(real: int) -> None:
    reason = "transformers (the extra `bench`) is not installed"
    other = pytest.importorskip("transformers.models.reformer.modeling_reformer", reason=reason)
    from transformers import ReformerConfig

    torch.manual_seed(2)
    config = ReformerConfig(
        hidden_size=8, num_attention_heads=2, attention_head_size=4, lsh_attn_chunk_length=4, num_hashes=1,
        num_buckets=6, lsh_attention_probs_dropout_prob=0.0, is_decoder=False, axial_pos_embds=False,
    )  # fmt: skip
    layer = other.LSHSelfAttention(config).double()
    x = torch.randn(2, 24, 8, dtype=torch.float64)
    pads = torch.arange(24).expand(2, -1) >= real
    buckets = torch.randint(0, 6, (2, 2, 1, 24)).masked_fill(pads[:, None, None], 6)
    theirs = layer(x, attention_mask=~pads, buckets=buckets).hidden_states.view(2, 24, 2, 4).transpose(1, 2)
    qk, v = (project(x).view(2, 24, 2, 4).transpose(1, 2) for project in (layer.query_key, layer.value))
    ours = lsh_attention(qk, v, buckets, key_padding_mask=pads, bucket_size=4)
    rank = (buckets.squeeze(2) * 24 + torch.arange(24)).argsort(dim=-1).argsort(dim=-1)  # [B, H, N]
    rows = (rank >= 4) & (rank < real)  # its first chunk looks back at its last
    assert rows.sum() == 4 * (real - 4)
    # It adds 1e-6 to the mean square of a key, and -1e5 stands for itself: the scale of the logits shows, these do not.
    torch.testing.assert_close(ours[rows], theirs[rows], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours[rows], lsh_attention(qk / 2, v, buckets, bucket_size=4)[rows], atol=1e-2)


def test_unit_keys_are_unit_and_their_gradient_is_that_of_the_function() -> None:
    x = inputs(3)[0].flatten(0, 2).requires_grad_()
    torch.testing.assert_close(UnitKeys.apply(x), torch.nn.functional.normalize(x, dim=-1))
    assert torch.autograd.gradcheck(UnitKeys.apply, (x,))
    assert not UnitKeys.apply(torch.zeros(2, 4)).any()


@pytest.mark.parametrize("hash_rotated", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_buckets_are_those_of_the_vectors_that_the_setting_names(hash_rotated: bool, half: bool) -> None:
    qk, v = inputs(64)
    qk = qk.to(torch.bfloat16 if half else qk.dtype)
    rotate = Rotary(embed_dim=8, num_heads=2, head_dim=4, num_layers=1, seq_len=64).rotation(64, qk.device)
    reformer = Reformer(**FACTS, num_hashes=3, bucket_size=4, hash_rotated=hash_rotated)
    pads = torch.arange(64) >= torch.tensor([64, 50])[:, None]
    settings = {"bucket_size": 4, "key_padding_mask": pads}
    turned, rotations = rotate(qk), reformer.rotations.to(full_dtype(qk))
    either = [lsh_buckets(zero_padding(x, pads), rotations, **settings) for x in (qk, turned)]
    assert not torch.equal(*either)
    hashed = reformer.arguments(qk, key_padding_mask=pads, rotate=rotate, context=None)
    assert torch.equal(hashed["buckets"], either[hash_rotated]) and torch.equal(hashed["qk"], turned)
    found = reformer(qk, qk, v.to(qk.dtype), key_padding_mask=pads, rotate=rotate)
    assert torch.equal(found, lsh_attention(turned, v.to(qk.dtype), either[hash_rotated], **settings))
