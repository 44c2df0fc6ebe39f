"""The error of a mechanism against the exact attention that it approximates, on random queries and keys.

Letters: B batch, H heads, N tokens, D head dimension, W window of the relative bias.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from statistics import mean, pstdev
from typing import Any

import torch
from torch import Tensor, nn

from xcls.attention.base import Masks, distance_matrix
from xcls.bench.cases import Case, make_attention
from xcls.bench.worker import cause_of
from xcls.train.amp import DTYPES

ROWS = 512  # queries of one block
DRAWS, DRAWS_LONG, LONG = 5, 3, 4096  # DRAWS draws, DRAWS_LONG above LONG tokens
SOFTMAX, SHARED = "softmax", "shared-QK softmax"


@torch.no_grad()
def exact(q: Tensor, k: Tensor, v: Tensor, *, shared: bool = False, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v in fp32: q, k, v [B, H, N, D] -> [B, H, N, D].

    `shared`: Reformer's attention without hashing (Kitaev et al. 2020, section 2): keys are q / |q|, and a token
    attends to itself only if there is no other token.
    """
    q, v, length = q.float(), v.float(), q.shape[2]
    k = nn.functional.normalize(q, dim=-1) if shared else k.float() * q.shape[-1] ** -0.5
    parts = []
    for start in range(0, length, ROWS):
        block = q[:, :, start : start + ROWS]
        scores = block @ k.transpose(-1, -2)
        if bias is not None:
            scores += distance_matrix(bias.float(), rows=block.shape[2], columns=length, offset=-start)
        if shared and length > 1:
            own = torch.arange(block.shape[2], device=q.device)
            scores[:, :, own, own + start] = -torch.inf
        parts.append(torch.softmax(scores, dim=-1) @ v)
    return torch.cat(parts, dim=2)


def relative_error(out: Tensor, reference: Tensor) -> float:
    """|out - reference| / |reference|, Frobenius norms over all elements."""
    return float((out.float() - reference).norm() / reference.norm())


def errors_of(out: Tensor, reference: Tensor, v: Tensor) -> tuple[float, float]:
    """The relative errors of a mechanism's output and of the mean of the values; arguments [B, H, N, D].

    The second is the error of uniform attention: a mechanism with a larger error is worse than no attention.
    """
    return relative_error(out, reference), relative_error(v.mean(dim=2, keepdim=True).expand_as(v), reference)


def error_row(pairs: list[tuple[float, float]], *, shared: bool) -> dict[str, Any]:
    """The part of a row with mean and standard deviation of `errors_of` over draws or layers, and the reference."""
    errors = [error for error, _ in pairs]
    return {
        "error_mean": mean(errors),
        "error_std": pstdev(errors),
        "error_of_mean": mean(of_mean for _, of_mean in pairs),
        "error_reference": SHARED if shared else SOFTMAX,
        "error_draws": len(errors),
    }


def random_inputs(
    shape: tuple[int, int, int, int], draw: int, *, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Standard normal q, k, v [B, H, N, D]: logits have standard deviation 1."""
    generator = torch.Generator().manual_seed(draw)
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    return q, k, v


@torch.no_grad()
def attend(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor, *masks: Masks) -> Tensor:
    """The mechanism's output, in evaluation mode: [B, H, N, D]."""
    return attention.eval()(q, q if getattr(attention, "ties_qk", False) else k, v, *masks)


def measure_error(connection: Connection, *, cases: list[Case]) -> list[dict[str, Any]]:
    """A task of worker.py: relative error of the core of each case, over several draws of inputs and parameters.

    One layer only; `measure_trained` also measures what layers share. The answer of a case that fails is empty.
    """
    found: list[dict[str, Any]] = []
    references: dict[tuple[int, bool], Tensor] = {}
    for place, case in enumerate(cases):
        connection.send(("at", place))
        try:
            found.append(_case_error(case, references))
        except Exception as error:
            found.append({})
            print(f"{case.mechanism}: no error measured: {cause_of(error)}")
    return found


def _case_error(case: Case, references: dict[tuple[int, bool], Tensor]) -> dict[str, Any]:
    """The errors of one case. `references`: (draw, shared) -> exact attention, filled in if missing."""
    shape = (1, case.num_heads, case.seq_len, case.head_dim)
    pairs, shared = [], False
    for draw in range(DRAWS if case.seq_len <= LONG else DRAWS_LONG):
        q, k, v = random_inputs(shape, draw, dtype=DTYPES[case.dtype], device=case.device)
        torch.manual_seed(draw)
        attention = make_attention(case, seed=draw).to(case.device)
        shared = getattr(attention, "ties_qk", False)
        if (draw, shared) not in references:
            references[draw, shared] = exact(q, k, v, shared=shared)
        with case.autocast():
            out = attend(attention, q, k, v)
        pairs.append(errors_of(out, references[draw, shared], v))
    return error_row(pairs, shared=shared)
