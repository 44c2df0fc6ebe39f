"""Device and dtype of a run. Only `auto` needs torch; named values are taken as they are."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from xcls.config.schema import Hardware, UserError
from xcls.train.cards import Cards, here, remedy, runs_on

CPU_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
PLANNED = "XCLS_PRECISION"  # e.g. `cuda fp16`: device and dtype that the launcher of a sweep has chosen for this job


@dataclass(frozen=True)
class Precision:
    """The resolved device ('cpu', 'cuda') and dtype of the matrix products ('fp32', 'bf16', 'fp16').

    `why`: one line for the user about the choice; '' if the configuration names both. `warn`: print it as a warning.
    """

    device: str
    dtype: str
    why: str = field(default="", compare=False)
    warn: bool = field(default=False, compare=False)


def resolve(hardware: Hardware, find: Callable[[], Cards] = here) -> Precision:
    """Resolves `auto`. If the configuration names both values, no GPU is needed: a login node can resolve them.

    Device: cuda if torch can use a GPU, else cpu. Dtype: on cuda bf16 from Ampere on, else fp16; on cpu bf16 if the
    processor has instructions for it, else fp32. `find`: returns the usable cards; of several, the dtype suits all.
    A job of a sweep takes the choice of its launcher. Raises UserError for cuda with dtype `auto` and no GPU.
    """
    device, dtype = hardware.device, hardware.dtype
    if "auto" not in (device, dtype):
        return Precision(device, dtype)
    if planned := os.environ.get(PLANNED):
        given = planned.split()
        device, dtype = (place if value == "auto" else value for value, place in zip((device, dtype), given))
        return Precision(device, dtype, f"hardware={hardware.name}: {device} ({dtype}), as the sweep was planned")
    found = find() if device != "cpu" else None
    if found is None or not found.cards and device == "auto":
        dtype = _of_cpu() if dtype == "auto" else dtype
        why = f"hardware={hardware.name}: cpu ({dtype})" + (f": {found.why}" if found else "")
        return Precision("cpu", dtype, why, warn=found is not None and found.warn)
    if not found.cards:
        raise UserError(
            f"hardware.device=cuda: {found.why}. Set hardware=cpu, or name hardware.dtype for another machine."
        )
    if dtype == "auto":
        dtype = "bf16" if all(card.bf16 for card in found.cards) else "fp16"
    named = " and ".join(dict.fromkeys(map(str, found.cards)))
    return Precision("cuda", dtype, f"hardware={hardware.name}: cuda ({named}, {dtype})")


def check_cards(precision: Precision, cards: Cards, *, emulate: bool = False) -> str:
    """Refuses a missing GPU, one without code in this torch, and one without bf16 for a bf16 run. Raises UserError.

    With `emulate` a card without bf16 gives only a warning, which is returned: a finished run is evaluated with the
    dtype of its training.
    """
    if precision.device != "cuda":
        return ""
    if not cards.cards:
        raise UserError(f"hardware.device=cuda: {cards.why}. Set hardware=cpu, or make torch.cuda.is_available() true.")
    for card in cards.cards:
        if not runs_on(card.capability, cards.code):
            raise UserError(
                f"{card}: this torch ({cards.torch}) has no code for it, only for {', '.join(cards.code)}. "
                f"Install {remedy(card.capability)}. Or set hardware=cpu."
            )
    without = next((card for card in cards.cards if not card.bf16), None)
    if precision.dtype != "bf16" or without is None:
        return ""
    message = f"hardware.dtype=bf16: {without} has no bf16 hardware and emulates it, slower than fp32"
    if emulate:
        return f"{message}. The run was trained in bf16; hardware.dtype=fp16 is fast here, with slightly other numbers."
    raise UserError(f"{message}. Set hardware.dtype=fp16 (or hardware=t4, v100, auto), or fp32.")


def _of_cpu() -> str:
    """The dtype that suits this processor."""
    return "bf16" if CPU_BF16_FLAGS & cpu_flags() else "fp32"


def cpu_flags() -> set[str]:
    """The flags of the first processor in /proc/cpuinfo; empty if there is no such file."""
    try:
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return set()
    return set(found.group(1).split()) if found else set()
