"""How far a mechanism is from the exact attention that it approximates, on random queries and keys.

Letters: B batch, H heads, N tokens, D head width, W window of the relative bias.
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

ROWS = 512  # queries at a time
DRAWS, DRAWS_LONG, LONG = 5, 3, 4096  # so many draws, or fewer above so many tokens
SOFTMAX, SHARED = "softmax", "shared-QK softmax"


@torch.no_grad()
def exact(q: Tensor, k: Tensor, v: Tensor, *, shared: bool = False, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v in fp32: q, k, v [B, H, N, D] -> [B, H, N, D].

    `shared`: Reformer's attention without hashing (Kitaev et al. 2020, section 2): keys are q / |q|, and a token
    attends to itself only where there is no other.
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
    """|out - reference| / |reference|, Frobenius norms over everything."""
    return float((out.float() - reference).norm() / reference.norm())


def errors_of(out: Tensor, reference: Tensor, v: Tensor) -> tuple[float, float]:
    """The relative errors of a mechanism's output and of the plain mean of the values, all [B, H, N, D].

    The second is what attending to nothing in particular costs: an error above it is worse than none at all.
    """
    return relative_error(out, reference), relative_error(v.mean(dim=2, keepdim=True).expand_as(v), reference)


def error_row(pairs: list[tuple[float, float]], *, shared: bool) -> dict[str, Any]:
    """Mean and standard deviation over what `errors_of` gave for each draw or layer, and what the error is against."""
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
    """Standard normal q, k, v [B, H, N, D]: logits of standard deviation one."""
    generator = torch.Generator().manual_seed(draw)
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    return q, k, v


@torch.no_grad()
def attend(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor, *masks: Masks) -> Tensor:
    """The mechanism's output, in evaluation mode: [B, H, N, D]."""
    return attention.eval()(q, q if getattr(attention, "ties_qk", False) else k, v, *masks)


def measure_error(connection: Connection, *, cases: list[Case]) -> list[dict[str, Any]]:
    """A task of worker.py: relative error of each case's core on random inputs, over several draws of everything.

    A single layer: what layers share does not show here, `measure_trained` has it. What fails has an empty answer.
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
    """The errors of one case. `references`: the exact attention of each draw, of its own q and k or of q alone; filled
    in where it is missing."""
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
