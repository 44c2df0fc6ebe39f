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
MANY = 25  # steps of one shape: from here on their median is their usual time
SLOW = 1.25  # a step above SLOW x the usual time of its shape was disturbed; undisturbed steps vary less
ROUNDS, SAMPLE = 50, 5000  # iterations of the fit; steps it uses at most


class StepClock:
    """Seconds and tokens of the training steps alone: no evaluation, no checkpoint, no compilation, no downtime.

    A step that takes more than SLOW times the usual time of its shape (`usual_seconds`) was disturbed, by a stall or by
    another program, and counts with the usual time; `excluded_steps` and `excluded_s` are their number and the seconds
    removed. The first step of a process (lazy initialisation) and every step that compiled a graph count in `set_aside`
    only. A resumed run keeps the times of its earlier steps.
    """

    def __init__(self) -> None:
        self.seconds = self.set_aside = 0.0  # seconds of the steps that count, as measured; of the others
        self.tokens = self.padded_tokens = 0
        self._taken = array("d")  # for each step: computed positions, 1 if it drew new random features, seconds
        self._began = 0.0
        self._graphs = -1  # no step yet in this process

    @property
    def steps(self) -> int:
        """Number of steps that count."""
        return len(self._taken) // 3

    @property
    def speed(self) -> float | None:
        """Real tokens per second as measured, disturbed steps included; None before the first step."""
        return self.tokens / self.seconds if self.seconds > 0 else None

    def start(self) -> None:
        """A step begins."""
        self._began = time.perf_counter()

    def stop(self, *, tokens: int, padded_tokens: int, redrew: bool = False) -> None:
        """Ends the step. tokens: real tokens; padded_tokens: with padding. The device must have finished the step.

        `redrew`: the step drew new random features, and is compared only with steps that did so too.
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

        Also what these do not include: set_aside_s, excluded_s (seconds), excluded_steps.
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
        """The whole state, for a checkpoint: 24 bytes per step."""
        taken = torch.from_numpy(np.array(self._taken).reshape(-1, 3))
        return {"taken": taken, "tokens": self.tokens, "padded_tokens": self.padded_tokens, "set_aside": self.set_aside}

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> StepClock:
        """The clock that a checkpoint has saved."""
        clock = cls()
        clock.tokens, clock.padded_tokens, clock.set_aside = saved["tokens"], saved["padded_tokens"], saved["set_aside"]
        clock._taken = array("d", saved["taken"].flatten().tolist())
        clock.seconds = math.fsum(clock._taken[2::3])
        return clock


def usual_seconds(taken: np.ndarray) -> np.ndarray:
    """The usual time of each step, seconds [S], from `taken` [S, 3]: computed positions, drew new features, seconds.

    It is the median over the steps of the same shape if there are at least MANY, else the value of a curve that is
    fitted over all shapes.
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
    """Non-negative weights [T] of `terms` [S, T] with the smallest sum of absolute differences to `values` [S].

    Robust against a few outliers. Method: iteratively reweighted least squares.
    """
    least = 1e-6 * float(values.mean()) if len(values) else 1.0
    fit, weights = np.zeros(terms.shape[1]), np.ones_like(values)
    for _ in range(ROUNDS):
        # T + 1 rows instead of S, with the same sum of squares
        root = np.asarray(np.linalg.qr(np.column_stack([terms, values]) * weights[:, None], mode="r"))
        fit = nnls(root[:, :-1], root[:, -1])[0]
        weights = np.abs(values - terms @ fit).clip(least) ** -0.5
    return fit


def compiled_graphs() -> int:
    """Number of graphs that torch.compile has made in this process; 0 if it was not used."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])


class MemoryGauge:
    """Peak memory of training, in MiB, without the memory of evaluations and checkpoints.

    `max_rss_MiB` is the highest resident memory of the process during training; `rss_growth_MiB` is the difference to
    the memory in use just before the process's first step. A resumed run keeps the higher of its peaks. `ru_maxrss`
    never falls, so on Linux the kernel's high-water mark is reset instead; other systems use `ru_maxrss`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = _resident() or _highest()
        self.peaks: dict[str, float | None] = {"max_gpu_mem_MiB": None, "max_rss_MiB": 0.0, "rss_growth_MiB": 0.0}
        self.resume()

    def resume(self) -> None:
        """Training continues: forgets the peaks so far."""
        _forget_highest()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def pause(self) -> None:
        """Training stops for an evaluation or a checkpoint: keeps its peak so far."""
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
