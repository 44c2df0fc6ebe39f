"""What only a card can tell: kernels in every dtype, whole trainings, memory that runs out, long texts. `make
test-gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.attention.layers import ATTENTIONS, build
from tests.attention.oracles import oracle
from tests.faults.runs import rows
from tests.gpu.cost import batch_of, configuration, model_of
from tests.kernels.test_rope_triton import check
from tests.pairwise import pairwise
from tests.train.harness import Case, live, stop_at
from xcls.attention.base import Attention, Masks
from xcls.position import rope_triton
from xcls.runs.record import read_record
from xcls.stages.finetune import classification_loss
from xcls.stages.pretrain import mlm_loss
from xcls.train.signals import Interrupted

pytestmark = pytest.mark.gpu
HEADS, WIDTH, LENGTH = 4, 64, 300
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 4e-2}  # of a row, beside the length of a usual row
MAIN = ["sdpa", "sdpa_fused", "performer", "reformer"]


def results(function: Any, attention: Attention, given: list[Tensor], masks: Masks) -> list[Tensor]:
    """The output and the gradients of q, k and v, float64, for q, k and v [B, H, N, D]; k is q where they are tied."""
    q, k, v = (x.detach().requires_grad_() for x in given)
    inputs = [q, v] if attention.ties_qk else [q, k, v]
    out = function(attention, q, q if attention.ties_qk else k, v, masks)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out)
    grads = torch.autograd.grad((out.float() * weight).sum(), inputs, allow_unused=True, materialize_grads=True)
    return [x.detach().double() for x in (out, *grads)]


@pytest.mark.parametrize(
    ("name", "dtype", "kind"), pairwise(ATTENTIONS, list(DTYPES), ["padding", "relative", "causal"])
)
def test_every_dtype_is_near_the_oracle(name: str, dtype: str, kind: str, cuda: torch.device) -> None:
    """99 of 100 rows at least: of hashes that lie on an edge, a rounding decides."""
    shape = {"num_heads": HEADS, "head_dim": WIDTH, "layer": 0, "seed": 1}
    ours, exact = (build("attention", name, small=False, **shape).to(cuda) for _ in range(2))
    draws = torch.Generator().manual_seed(0)
    given = [torch.randn(2, HEADS, LENGTH, WIDTH, generator=draws).to(cuda, DTYPES[dtype]) for _ in range(3)]
    pads = torch.arange(LENGTH) >= torch.tensor([LENGTH, LENGTH - 40])[:, None]
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1).to(cuda) if kind == "causal" else None
    bias = (0.3 * torch.randn(HEADS, 257, generator=draws)).to(cuda) if kind == "relative" else None
    masks = Masks.make(key_padding_mask=pads.to(cuda), attn_mask=causal, relative_bias=bias)
    found = results(type(ours).__call__, ours, given, masks)
    wide = masks.with_(bias=None if bias is None else bias.double(), context={})
    wanted = results(oracle, exact.double(), [x.double() for x in given], wide)
    for one, other in zip(found, wanted, strict=True):
        assert one.isfinite().all()
        errors = (one - other).norm(dim=-1) / other.norm(dim=-1).square().mean().sqrt().clamp(min=1e-9)
        assert errors.flatten().quantile(0.99) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation(dtype: str, cuda: torch.device) -> None:
    x = torch.randn(3, 77, 3, HEADS, WIDTH, generator=torch.Generator().manual_seed(0)).to(cuda, DTYPES[dtype])
    if not rope_triton.available(x):
        pytest.skip("Triton does not run here")
    check(x, 2)
    check(x.transpose(0, 1)[..., ::2], 1)


@pytest.mark.parametrize(
    ("stage", "attention", "dtype"),
    [
        ("finetune", "sdpa", "fp16"),
        ("finetune", "performer", "bf16"),
        ("pretrain", "reformer", "fp32"),
        ("pretrain", "sdpa_fused", "bf16"),
    ],
)
def test_a_training_that_is_stopped_and_resumed(
    stage: str, attention: str, dtype: str, cuda: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(stage, attention, device=cuda.type, dtype=dtype, workers=1, training={"redraw_every_steps": 3})
    live(tmp_path / "whole", case)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 5)
        live(tmp_path / "parts", case)
    live(tmp_path / "parts", case)
    whole, parts = rows(tmp_path / "whole"), rows(tmp_path / "parts")
    assert read_record(tmp_path / "parts").status == "completed" and len(whole) == len(parts) > 1
    for one, other in zip(whole, parts, strict=True):  # sums of many threads need not repeat to the bit
        assert float(other["train_loss"]) == pytest.approx(float(one["train_loss"]), rel=1e-3)
        assert float(other["val_loss"]) == pytest.approx(float(one["val_loss"]), rel=1e-2)
    assert float(whole[-1]["train_loss"]) < float(whole[0]["train_loss"])


def test_memory_that_runs_out_is_met_by_smaller_micro_batches(cuda: torch.device, tmp_path: Path) -> None:
    live(tmp_path, Case("finetune", "performer", device=cuda.type, fault="memory"))
    record = read_record(tmp_path)
    assert [fault["kind"] for fault in record.faults] == ["halved"]
    assert record.device["micro_batch"] == 4 and record.status == "completed"


@pytest.mark.parametrize("mlm", [False, True])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_host_does_not_wait(attention: str, mlm: bool, cuda: torch.device) -> None:
    config = configuration(attention, "size=tiny", "size.num_heads=2", "seq_len=256")
    model = model_of(config, mlm).to(cuda)
    batch = {name: None if x is None else x.to(cuda) for name, x in batch_of(16, 256, mlm, True).items()}
    losses = []
    for mode in (0, 2):  # what is made once may wait; an error from the second step on
        if cuda.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)
        try:
            with torch.autocast(cuda.type, torch.bfloat16):
                loss = (mlm_loss if mlm else classification_loss)(model, batch)
            loss.backward()
        finally:
            if cuda.type == "cuda":
                torch.cuda.set_sync_debug_mode(0)
        losses.append(loss.detach())
    assert torch.stack(losses).isfinite().all()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_16384_tokens(attention: str, cuda: torch.device) -> None:
    words = ("size.num_layers=1", "size.width=128", "size.num_heads=2", "size.feed_forward=256", "seq_len=16384")
    model = model_of(configuration(attention, *words), mlm=False).to(cuda)
    batch = {name: None if x is None else x.to(cuda) for name, x in batch_of(1, 16384, False, True).items()}
    if cuda.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with torch.autocast(cuda.type, torch.bfloat16):
        loss = classification_loss(model, batch)
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if cuda.type == "cuda" and attention != "sdpa":
        assert torch.cuda.max_memory_allocated() < 2**30  # one N x N matrix of both heads takes as much
