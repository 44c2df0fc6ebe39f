"""What training costs: seconds in training steps, tokens, memory, parameters."""

from __future__ import annotations

import math
import re
import resource
import sys
import time
from array import array
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn

from xcls.model.encoder import Encoder
from xcls.model.multihead import MultiHeadAttention

MIB = 2**20
MANY = 25  # steps of one shape whose median is taken
SLOW = 1.25  # times the usual seconds of its shape: beyond what steps scatter by themselves
ROUNDS, SAMPLE = 50, 5000  # of the fit; steps that it looks at


class StepClock:
    """Seconds and tokens of the training steps alone: no evaluation, no checkpoint, no compilation, no downtime.

    A step that takes more than SLOW times as long as its shape usually does (`usual_seconds`) was disturbed, by a stall
    or by another program, and counts with the usual time. `excluded_steps` and `excluded_s` tell how many and how much.
    The first step of a process (lazy initialisation) and every step in which a graph was compiled go to `set_aside`.
    A resumed run goes on from all its steps.
    """

    def __init__(self) -> None:
        self.seconds = self.set_aside = 0.0  # of the steps that count, as measured; of the others
        self.tokens = self.padded_tokens = 0
        self._taken = array("d")  # of each step: computed positions, 1 where it drew new features, seconds
        self._began = 0.0
        self._graphs = -1  # no step yet in this process

    @property
    def steps(self) -> int:
        """How many steps count."""
        return len(self._taken) // 3

    @property
    def speed(self) -> float | None:
        """Real tokens per second as measured, disturbed or not; None before any step."""
        return self.tokens / self.seconds if self.seconds > 0 else None

    def start(self) -> None:
        """A step begins."""
        self._began = time.perf_counter()

    def stop(self, *, tokens: int, padded_tokens: int, redrew: bool = False) -> None:
        """The step ends; it had so many real tokens, and so many with padding. The device must be done with it.

        `redrew`: it also drew new random features, and is compared only with steps that did.
        """
        elapsed = time.perf_counter() - self._began
        graphs = compiled_graphs()
        if graphs != self._graphs:
            self.set_aside += elapsed
        else:
            self.seconds += elapsed
            self.tokens += tokens
            self.padded_tokens += padded_tokens
            self._taken.extend((padded_tokens, redrew, elapsed))
        self._graphs = graphs

    def costs(self, steps_per_epoch: int) -> dict[str, float | None]:
        """time_per_step, time_per_epoch (seconds), tokens_per_s (real), padded_tokens_per_s; None before any step.

        And what is in none of these: set_aside_s, excluded_s (seconds), excluded_steps.
        """
        taken = np.array(self._taken).reshape(-1, 3)
        usual = usual_seconds(taken)
        slow = taken[:, 2] > SLOW * usual
        excluded = float((taken[:, 2] - usual)[slow].sum())
        apart = {"set_aside_s": self.set_aside, "excluded_s": excluded, "excluded_steps": int(slow.sum())}
        seconds = self.seconds - excluded
        if seconds <= 0:
            names = ("time_per_step", "time_per_epoch", "tokens_per_s", "padded_tokens_per_s")
            return {**dict.fromkeys(names), **apart}
        per_step = seconds / self.steps
        return {
            **apart,
            "time_per_step": per_step,
            "time_per_epoch": per_step * steps_per_epoch,
            "tokens_per_s": self.tokens / seconds,
            "padded_tokens_per_s": self.padded_tokens / seconds,
        }

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint: 24 bytes a step."""
        taken = torch.from_numpy(np.array(self._taken).reshape(-1, 3))
        return {"taken": taken, "tokens": self.tokens, "padded_tokens": self.padded_tokens, "set_aside": self.set_aside}

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> StepClock:
        """From a checkpoint."""
        clock = cls()
        clock.tokens, clock.padded_tokens, clock.set_aside = saved["tokens"], saved["padded_tokens"], saved["set_aside"]
        clock._taken = array("d", saved["taken"].flatten().tolist())
        clock.seconds = math.fsum(clock._taken[2::3])
        return clock


def usual_seconds(taken: np.ndarray) -> np.ndarray:
    """What each step usually takes, seconds [S], from `taken` [S, 3]: computed positions, drew new features, seconds.

    The median over the steps of its shape where there are MANY. Else what a curve over all shapes says.
    """
    size, redrew, seconds = taken.T
    scaled = size / size.mean() if len(size) else size
    terms = np.stack([np.ones_like(size), scaled, scaled**2, redrew], axis=1)
    thin = slice(None, None, 1 + len(taken) // SAMPLE)
    usual = terms @ _least_absolute(terms[thin], seconds[thin])
    _, of, counts = np.unique(2 * size + redrew, return_inverse=True, return_counts=True)
    for shape in np.flatnonzero(counts >= MANY):
        usual[of == shape] = np.median(seconds[of == shape])
    return usual


def _least_absolute(terms: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weights [T] of `terms` [S, T], none negative, with the least sum of absolute differences to `values` [S].

    A few far-off values do not move it. Found by least squares that are weighted anew each round.
    """
    least = 1e-6 * float(values.mean()) if len(values) else 1.0
    fit, weights = np.zeros(terms.shape[1]), np.ones_like(values)
    for _ in range(ROUNDS):
        root = np.asarray(
            np.linalg.qr(np.column_stack([terms, values]) * weights[:, None], mode="r")
        )  # few rows, the same squares
        fit = nnls(root[:, :-1], root[:, -1])[0]
        weights = np.abs(values - terms @ fit).clip(least) ** -0.5
    return fit


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
    embeddings: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    embeddings.append(cast(Encoder, model.encoder).position)
    attentions: list[nn.Module] = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    return {
        "total": _count([model]),
        "trainable": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "embeddings": _count(embeddings),
        "attention": _count(attentions),
    }


def _count(modules: list[nn.Module]) -> int:
    """Parameters of `modules`, each counted once."""
    return sum({id(parameter): parameter.numel() for module in modules for parameter in module.parameters()}.values())
