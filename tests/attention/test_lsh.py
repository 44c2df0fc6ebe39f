"""LSH attention against dense shared-QK attention, and against the union of candidates pair by pair."""

from __future__ import annotations

from contextlib import nullcontext
from unittest import mock

import pytest
import torch

from tests.attention.layers import padding
from tests.attention.oracles import lsh_buckets, lsh_over
from xcls.attention import kernels, lsh
from xcls.attention.base import Masks
from xcls.attention.kernels import lsh_windows
from xcls.attention.lsh import Reformer, hash_buckets, lsh_attention, sort_keys, sorted_positions
from xcls.attention.sorted_chunks import attend, attend_plainly

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


def order_of(buckets: torch.Tensor, masks: Masks) -> torch.Tensor:
    return sorted_positions(sort_keys(buckets, masks))


def attended(qk, v, buckets, masks=None, *, chunk=4, before=1, after=0) -> torch.Tensor:
    """`lsh_attention` given the buckets [B, H, R, N]; masks as Attention.forward applies them."""
    masks = Masks() if masks is None else masks
    out = lsh_attention(qk, v, order_of(buckets, masks), masks, chunk=chunk, before=before, after=after)
    return out if masks.padding is None else out.masked_fill(masks.padding[:, None, :, None], 0.0)


@pytest.mark.parametrize(("rounds", "bucket_size", "before", "after"), [(1, 32, 0, 0), (4, 8, 3, 3), (2, 8, 2, 3)])
def test_equals_dense_attention_where_chunks_cover_the_sequence(
    rounds: int, bucket_size: int, before: int, after: int
) -> None:
    qk, v = inputs(24)
    reformer = Reformer(
        **FACTS, num_hashes=rounds, bucket_size=bucket_size, chunks_before=before, chunks_after=after, max_buckets=8
    )
    torch.testing.assert_close(reformer(qk, qk, v), shared_qk(qk, v))


@pytest.mark.parametrize(
    ("rounds", "before", "after", "length"), [(1, 1, 0, 23), (3, 0, 2, 23), (3, 1, 1, 5), (1, 0, 0, 1)]
)
def test_equals_the_union_of_candidates_pair_by_pair(rounds: int, before: int, after: int, length: int) -> None:
    qk, v = inputs(length)
    generator = torch.Generator().manual_seed(4)
    buckets = torch.randint(0, 5, (2, 2, rounds, length), generator=generator)
    bias = torch.randn(2, 7, dtype=torch.float64, generator=generator)
    pads = torch.arange(length) >= torch.tensor([length, max(length - 4, 1)])[:, None]
    attn_mask = torch.rand(2, 2, length, length, generator=generator) < 0.4
    masks = Masks.make(key_padding_mask=pads, attn_mask=attn_mask, relative_bias=bias)
    out = attended(qk, v, buckets, masks, before=before, after=after)
    expected = lsh_over(qk, v, buckets, masks, chunk=4, before=before, after=after)
    torch.testing.assert_close(out, expected.masked_fill(pads[:, None, :, None], 0.0))


def test_a_token_attends_to_itself_only_if_alone() -> None:
    qk, v = inputs(2)
    buckets = torch.tensor([0, 1]).expand(2, 2, 1, 2)
    torch.testing.assert_close(attended(qk, v, buckets, chunk=1, before=0), v)
    torch.testing.assert_close(attended(qk, v, buckets, chunk=2, before=0), v.flip(2))
    closed = Masks.make(attn_mask=torch.eye(2, dtype=torch.bool))
    assert not attended(qk, v, buckets, closed, chunk=1, before=0).any()


def test_buckets_are_the_argmax_of_both_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    qk, _ = inputs(40)
    rotations = torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    expected = lsh_buckets(qk, rotations, 4, None)
    for entries in (2**20, 2 * 2 * 5 * 7):  # all tokens at once, and seven at a time
        monkeypatch.setattr(lsh, "CACHED", entries)
        assert torch.equal(hash_buckets(qk, rotations, bucket_size=4, masks=Masks()), expected)


@pytest.mark.parametrize("real", [24, 19])
def test_equals_transformers_given_its_hashes_on_rows_that_its_wrap_around_does_not_touch(real: int) -> None:
    reason = "transformers (the extra `bench`) is not installed"
    other = pytest.importorskip("transformers.models.reformer.modeling_reformer", reason=reason)
    from transformers import ReformerConfig

    torch.manual_seed(2)
    config = ReformerConfig(
        hidden_size=8,
        num_attention_heads=2,
        attention_head_size=4,
        lsh_attn_chunk_length=4,
        num_hashes=1,
        num_buckets=6,
        lsh_attention_probs_dropout_prob=0.0,
        is_decoder=False,
        axial_pos_embds=False,
    )
    layer = other.LSHSelfAttention(config).double()
    x = torch.randn(2, 24, 8, dtype=torch.float64)
    pads = torch.arange(24).expand(2, -1) >= real
    buckets = torch.randint(0, 6, (2, 2, 1, 24)).masked_fill(pads[:, None, None], 6)
    theirs = layer(x, attention_mask=~pads, buckets=buckets).hidden_states.view(2, 24, 2, 4).transpose(1, 2)
    qk, v = (project(x).view(2, 24, 2, 4).transpose(1, 2) for project in (layer.query_key, layer.value))
    ours = attended(qk, v, buckets, Masks(pads))
    rank = (buckets.squeeze(2) * 24 + torch.arange(24)).argsort(dim=-1).argsort(dim=-1)  # [B, H, N]
    rows = (rank >= 4) & (rank < real)  # its first chunk looks back at its last
    assert rows.sum() == 4 * (real - 4)
    # It adds 1e-6 to the mean square of a key, and -1e5 stands for itself: the scale of the logits shows, these do not.
    torch.testing.assert_close(ours[rows], theirs[rows], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours[rows], attended(qk / 2, v, buckets)[rows], atol=1e-2)


def weighted(out: torch.Tensor, wanted: list[torch.Tensor], padding: torch.Tensor | None) -> list[torch.Tensor]:
    """The result without pads, and the gradients of a weighted sum of it."""
    if padding is not None:
        out = out.masked_fill(padding[:, None, :, None], 0.0)
    weights = torch.arange(out[0].numel(), dtype=torch.float64).view(out[0].shape).cos().to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), wanted)]


@pytest.mark.parametrize(("rounds", "before", "after", "padded"), [(1, 1, 0, True), (3, 1, 2, True), (3, 1, 0, False)])
def test_on_other_devices_it_is_the_same(
    monkeypatch: pytest.MonkeyPatch, rounds: int, before: int, after: int, padded: bool
) -> None:
    sizes = {"num_hashes": rounds, "bucket_size": 4, "chunks_before": before, "chunks_after": after}
    reformer = Reformer(**FACTS, **sizes).double()
    found = []
    for cpu in (True, False):
        monkeypatch.setattr("xcls.attention.lsh.on_cpu", lambda x, cpu=cpu: cpu)
        monkeypatch.setattr("xcls.attention.lsh.attend", attend if cpu else attend_plainly)
        masks = Masks(padding(23, 23, 9) if padded else None)
        wanted = [x.requires_grad_() for x in inputs(23)]
        found.append(weighted(reformer(wanted[0], wanted[0], wanted[1], masks), wanted, masks.padding))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(("rounds", "capability"), [(1, (7, 0)), (1, (0, 0)), (3, (7, 0))])
def test_other_devices_take_windows_or_blocks_and_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, rounds: int, capability: tuple[int, int]
) -> None:
    """On the meta device, which has no numbers to wait for, and no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **how: nullcontext())
    monkeypatch.setattr(kernels, "assumed_capability", capability)
    shape = (2, 2, 70, 16)
    qk, v = (torch.empty(shape, device="meta", requires_grad=True) for _ in range(2))
    masks = Masks(torch.empty(2, 70, dtype=torch.bool, device="meta"))
    reformer = Reformer(**{**FACTS, "head_dim": 16}, num_hashes=rounds, bucket_size=16).to("meta")
    with (
        mock.patch.object(lsh, "attend", wraps=lsh.attend) as blocks,
        mock.patch.object(lsh_windows, "attend_in_windows", wraps=lsh_windows.attend_in_windows) as windows,
    ):
        out = reformer.attend(qk, qk, v, masks)
    assert (windows.call_count, blocks.call_count) == ((1, 0) if rounds == 1 and capability[0] else (0, 1))
    out.backward(torch.empty_like(out))
    assert qk.grad.shape == v.grad.shape == out.shape == shape


@pytest.mark.skipif(not hasattr(torch.compiler, "is_compiling"), reason="needs PyTorch 2.3")
def test_it_compiles_as_one_graph_for_many_widths() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("eager")
    reformer = Reformer(**FACTS, bucket_size=16)

    def run(x: torch.Tensor, pads: torch.Tensor) -> torch.Tensor:
        return reformer.attend(x, x, x, Masks(pads, finite=True)).masked_fill(pads[:, None, :, None], 0.0)

    torch._dynamo.reset()
    compiled = torch.compile(run, backend=counter, fullgraph=True)
    for length in (64, 128, 96, 208, 500):
        x = inputs(length)[0].float()
        pads = padding(length, length, length - 20)
        torch.testing.assert_close(compiled(x, pads), run(x, pads))
    assert counter.frame_count <= 2  # the first width, and all others
