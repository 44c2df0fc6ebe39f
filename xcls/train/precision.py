"""Which device and which dtype: `auto` is settled by torch, anything that is named without it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from xcls.config.schema import Hardware, UserError
from xcls.train.cards import Cards, here, remedy, runs_on

CPU_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
PLANNED = "XCLS_PRECISION"  # `cuda fp16`: what the launcher of a sweep has planned this job with


@dataclass(frozen=True)
class Precision:
    """The resolved device ('cpu', 'cuda') and dtype of the matrix products ('fp32', 'bf16', 'fp16').

    `why`: what was chosen and why, in a line for people; '' where the configuration names both. `warn`: it is worth a
    warning.
    """

    device: str
    dtype: str
    why: str = field(default="", compare=False)
    warn: bool = field(default=False, compare=False)


def resolve(hardware: Hardware, find: Callable[[], Cards] = here) -> Precision:
    """Settles `auto`. Nothing is asked that the configuration names, so a login node may resolve for a GPU node.

    Device: cuda where torch can use a GPU, else cpu. Dtype: on cuda bf16 from Ampere on, else fp16; on cpu bf16 where
    the processor has instructions for it, else fp32. `find`: the cards that may be computed on; of several, the dtype
    is one that each has. A job of a sweep takes what its launcher has planned. Raises UserError for cuda with an
    automatic dtype and no GPU.
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
    """Refuses a GPU that cannot do what it is to do: there is none, this torch has no code for it, or it has no bf16.

    With `emulate` a card without bf16 is a warning, which is returned: a finished run is read with the arithmetic of
    its training. Raises UserError.
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
    told = f"hardware.dtype=bf16: {without} has no bf16 in the silicon and emulates it, slower than fp32"
    if emulate:
        return (
            f"{told}. The run was trained in it; hardware.dtype=fp16 is quick here, with numbers that differ a little."
        )
    raise UserError(f"{told}. Set hardware.dtype=fp16 (or hardware=t4, v100, auto), or fp32.")


def _of_cpu() -> str:
    """The dtype that suits this processor."""
    return "bf16" if CPU_BF16_FLAGS & cpu_flags() else "fp32"


def cpu_flags() -> set[str]:
    """The flags of the first processor in /proc/cpuinfo; empty where there is no such file."""
    try:
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return set()
    return set(found.group(1).split()) if found else set()
