"""What training costs: seconds in training steps, tokens, memory, parameters."""

from __future__ import annotations

import re
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from xcls.model.multihead import MultiHeadAttention

MIB = 2**20


@dataclass
class StepClock:
    """Seconds and tokens of the training steps alone: no evaluation, no checkpoint, no compilation, no downtime.

    The first step of a process (lazy initialisation) and every step in which a graph was compiled go to `set_aside`.
    A resumed run goes on from its totals.
    """

    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    set_aside: float = 0.0  # seconds

    def __post_init__(self) -> None:
        self._began = 0.0
        self._graphs = -1  # no step yet in this process

    def start(self) -> None:
        """A step begins."""
        self._began = time.perf_counter()

    def stop(self, *, tokens: int, padded_tokens: int) -> None:
        """The step ends; it had so many real tokens, and so many with padding. The device must be done with it."""
        elapsed = time.perf_counter() - self._began
        graphs = compiled_graphs()
        if graphs != self._graphs:
            self.set_aside += elapsed
        else:
            self.seconds += elapsed
            self.steps += 1
            self.tokens += tokens
            self.padded_tokens += padded_tokens
        self._graphs = graphs

    def costs(self, steps_per_epoch: int) -> dict[str, float | None]:
        """time_per_step, time_per_epoch (seconds), tokens_per_s (real), padded_tokens_per_s; None before any step.

        And set_aside_s, the seconds that are in none of these.
        """
        apart = {"set_aside_s": self.set_aside}
        if not self.steps or self.seconds <= 0:
            names = ("time_per_step", "time_per_epoch", "tokens_per_s", "padded_tokens_per_s")
            return {**dict.fromkeys(names), **apart}
        per_step = self.seconds / self.steps
        return {
            **apart,
            "time_per_step": per_step,
            "time_per_epoch": per_step * steps_per_epoch,
            "tokens_per_s": self.tokens / self.seconds,
            "padded_tokens_per_s": self.padded_tokens / self.seconds,
        }

    def state(self) -> dict[str, float | int]:
        """The totals, as plain numbers."""
        return asdict(self)


def compiled_graphs() -> int:
    """How many graphs torch.compile has made in this process; 0 where it was not used."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])


class MemoryGauge:
    """Peak memory of training, in MiB. What evaluations and checkpoints take in between is left out.

    `max_rss_MiB` is the highest resident memory of the process during training, `rss_growth_MiB` how far that is above
    the memory in use just before the process's first step. A resumed run keeps the higher of its peaks. `ru_maxrss`
    never falls, so on Linux the kernel's high-water mark is reset instead; elsewhere the growth of `ru_maxrss` is what
    there is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = _resident() or _highest()
        self.peaks: dict[str, float | None] = {"max_gpu_mem_MiB": None, "max_rss_MiB": 0.0, "rss_growth_MiB": 0.0}
        self.resume()

    def resume(self) -> None:
        """Training goes on: earlier peaks are forgotten."""
        _forget_highest()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def pause(self) -> None:
        """Training stops for an evaluation or a checkpoint: its peak so far is kept."""
        highest = _highest()
        now: dict[str, float] = {"max_rss_MiB": highest, "rss_growth_MiB": highest - self.before}
        if self.device.type == "cuda":
            now["max_gpu_mem_MiB"] = torch.cuda.max_memory_allocated(self.device) / MIB
        for name, value in now.items():
            self.peaks[name] = max(self.peaks[name] or 0.0, value)


def _status(field: str) -> float | None:
    """A field of /proc/self/status in MiB, None where there is no such file."""
    try:
        found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) / 1024 if found else None


def _resident() -> float | None:
    return _status("VmRSS")


def _highest() -> float:
    """The highest resident memory since the last reset, MiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def _forget_highest() -> None:
    """Resets the kernel's high-water mark (Linux, proc(5): clear_refs); without effect elsewhere."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        pass


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters: total, trainable, embeddings (tokens and positions), attention (with its projections)."""
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    embeddings.append(model.encoder.position)
    attentions = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    return {
        "total": sum(parameter.numel() for parameter in model.parameters()),
        "trainable": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "embeddings": _count(embeddings),
        "attention": _count(attentions),
    }


def _count(modules: list[nn.Module]) -> int:
    """Parameters of `modules`, each counted once."""
    return sum({id(parameter): parameter.numel() for module in modules for parameter in module.parameters()}.values())
