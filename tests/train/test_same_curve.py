"""Quick code changes nothing: the same seed gives the same loss curve as the formulas written out."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.attention.oracles import oracle
from tests.samples import from_yaml
from tests.train.harness import Case, live
from xcls.data.masking import IGNORED
from xcls.model.dropout import Dropout, draw
from xcls.model.heads import MaskedLanguageModel
from xcls.model.multihead import MultiHeadAttention
from xcls.position import rope
from xcls.train import optim

CASES = [("sdpa", "finetune"), ("performer", "pretrain"), ("performer_band_oprf", "finetune"), ("reformer", "pretrain")]


def dropped(self: Dropout, x: Tensor, rows: None = None, whole: Tensor | None = None) -> Tensor:
    """The same draws as a product."""
    return x * draw(x, x.shape, self.threshold).to(x.dtype) * self.scale if self.training and self.rate else x


def projected(self: MultiHeadAttention, x: Tensor, rotate: Callable[[Tensor], Tensor] | None) -> list[Tensor]:
    """A product for each projection."""
    layers = [layer for layer in (self.q_proj, self.k_proj, self.v_proj) if layer is not None]
    parts = [layer(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for layer in layers]
    return parts if rotate is None else [*map(rotate, parts[:-1]), parts[-1]]


def all_logits(
    self: MaskedLanguageModel, input_ids: Tensor, attention_mask: Tensor | None, rows: Tensor, targets: Tensor
) -> Tensor:
    """The whole vocabulary at every token."""
    logits = self.head(self.encoder(input_ids, attention_mask), self.encoder.token_embedding.weight).float()
    chosen = targets != IGNORED
    labels = torch.full((input_ids.numel(),), IGNORED).index_put((rows[chosen],), targets[chosen])
    return F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORED, reduction="sum")


@contextmanager
def written_out(attention: str) -> Iterator[None]:
    """Every quick path replaced by its formula: dense attention, rotation, dropout, projections, logits, AdamW."""
    mechanism = from_yaml("attention", attention)[0]
    with ExitStack() as stack:
        for owner, name, plain in (
            (mechanism, "forward", oracle),
            (Dropout, "forward", dropped),
            (MultiHeadAttention, "_heads", projected),
            (MaskedLanguageModel, "forward", all_logits),
            (rope, "is_compiling", lambda: True),  # the formulas that a compiler is given
            (optim, "TORCH", (2, 2)),  # which has no fused optimizer on a CPU
        ):
            stack.enter_context(mock.patch.object(owner, name, plain))
        yield


def curve(folder: Path, case: Case, **changes: Any) -> Tensor:
    """The loss of every step of a small run."""
    live(folder, case, **changes)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return torch.tensor([event["step_loss"] for event in events if event["event"] == "step"], dtype=torch.float64)


@pytest.mark.parametrize(("attention", "stage"), CASES)
def test_the_curve_is_that_of_the_formulas(attention: str, stage: str, tmp_path: Path) -> None:
    case = Case(stage, attention)
    quick = curve(tmp_path / "quick", case)
    with written_out(attention):
        plain = curve(tmp_path / "plain", case)
    assert len(quick) == 10 and quick.isfinite().all() and quick.std() > 0.01
    torch.testing.assert_close(quick, plain, rtol=1e-5, atol=0.0)
