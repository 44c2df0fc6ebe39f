"""The clock within a training: it lets a segment of steps pass when told to, and tells what the segment took.

A segment ends with a step of the optimizer, for whoever calls it: the same clock for every training.
"""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from typing import Any, Callable, TextIO

import torch
from torch import Tensor, nn

from xcls.bench.machine import counter, matmul_rate, synchronizer
from xcls.bench.training_parking import Parking
from xcls.train.cost import MemoryGauge

COUNT, WARM, TIME, PARTS, PEAK = "count", "warm", "time", "parts", "peak"  # what a training is told to do next
DATA, FORWARD, BACKWARD, OPTIMIZER, REST = "data", "forward", "backward", "optimizer", "rest"
Emit = Callable[[str, dict[str, Any]], None]


class Enough(Exception):
    """The training has been told to stop."""


class Meter:
    """Between segments it waits for the next word on `words` and stops the clock; within one it counts tokens.

    Parts of a step are timed only in a segment of its own, since a GPU must be waited for at each of them.
    """

    def __init__(self, *, words: TextIO, emit: Emit, device: str, dtype: str) -> None:
        self.words, self.emit, self.device, self.dtype = words, emit, device, dtype
        self.wait_for_device = synchronizer(device)
        self.word = WARM
        self.parking: Parking | None = None
        self.start_memory()

    def start_memory(self) -> None:
        """From here on, memory counts: call it when the code is loaded, before the model is made."""
        self.gauge = MemoryGauge(torch.device(self.device))

    def begin(self) -> None:
        """Waits for the word, then starts the clock of a segment. Raises Enough when there are no more words."""
        while True:
            line = self.words.readline()
            if not line:
                raise Enough
            self.word = json.loads(line)["word"]
            if self.word != PEAK:
                break
            rate = matmul_rate(self.dtype, self.device)
            self._leave()
            self.emit("peak", {"flops_per_s": rate})
        if self.parking is not None:
            self.parking.come_back()
        self.counting = counter() if self.word == COUNT else nullcontext()
        self.leading = self.word in (TIME, PARTS)
        self._start_clock()
        self.counting.__enter__()

    def _start_clock(self) -> None:
        self.real: list[Tensor | int] = []
        self.computed = self.steps = 0
        self.parts: dict[str, float] = {}
        self.open: str | None = None
        self.wait_for_device()
        self.enter(REST)
        self.began = time.perf_counter()

    def _leave(self) -> None:
        """Frees the device for the other trainings, before these are told to go on."""
        if self.parking is not None:
            self.parking.leave()

    def end(self) -> None:
        """A segment is over: tells what it took, and waits for the next."""
        self.counting.__exit__(None, None, None)
        self.wait_for_device()
        seconds = time.perf_counter() - self.began
        self.enter(None)
        self.gauge.pause()  # keeps the peak
        self._leave()
        gpu, resident = self.gauge.peaks["max_gpu_mem_MiB"], self.gauge.peaks["rss_growth_MiB"]
        self.emit(
            "segment",
            {
                "word": self.word,
                "seconds": seconds,
                "steps": self.steps,
                "tokens": int(sum(self.real)),
                "computed": self.computed,
                "parts": self.parts,
                "memory_MiB": gpu if self.device == "cuda" else resident,
                "flops": self.counting.get_total_flops() if self.word == COUNT else None,
            },
        )
        self.begin()

    def batch(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        """Counts the real tokens and computed positions of a batch, both [B, N], without waiting for the device."""
        self.real.append(input_ids.numel() if attention_mask is None else attention_mask.sum())
        self.computed += input_ids.numel()

    def enter(self, part: str | None) -> None:
        """From here on, time belongs to `part`."""
        if self.word != PARTS:
            return
        self.wait_for_device()
        now = time.perf_counter()
        if self.open is not None:
            self.parts[self.open] = self.parts.get(self.open, 0.0) + now - self.entered
        self.open, self.entered = part, now

    def watch(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Makes a segment of every so many steps of `optimizer`, and times them. Between them `model` leaves a GPU.

        One step more goes before those that are timed: this training has waited while others ran, its caches are cold and
        the system may have taken its memory back.
        """
        if self.device != "cpu":
            self.parking = Parking(model, optimizer)

        def after() -> None:
            if self.leading:
                self.leading = False
                self._start_clock()
                return
            self.enter(REST)
            self.steps += 1
            if self.steps == steps:
                self.end()

        optimizer.register_step_pre_hook(lambda _, args, settings: self.enter(OPTIMIZER))
        optimizer.register_step_post_hook(lambda _, args, settings: after())
