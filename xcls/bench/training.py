"""One training of bench=training, in its own process: with data loading, one segment of steps per request.

Every contender has such a process; they train in turns, one segment each. On a GPU a contender moves to the CPU between
its turns; only the CUDA context stays on the card (some hundred MB).
"""

from __future__ import annotations

import gc
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from xcls.bench.cases import OURS
from xcls.bench.machine import counter, peak_memory, synchronizer
from xcls.bench.plan import Contender
from xcls.build import make_classifier, make_language_model, make_source
from xcls.config.schema import Training, Wandb
from xcls.data.splits import Prepared, prepare
from xcls.data.tokenizer import TextTokenizer, make_tokenizer
from xcls.runs.record import Record
from xcls.stages.finetune import finetune
from xcls.stages.pretrain import pretrain
from xcls.stages.texts import classification_data, language_data
from xcls.train.amp import allow_graphs
from xcls.train.cost import MemoryGauge
from xcls.train.precision import Precision
from xcls.train.run_logger import RunLogger
from xcls.train.session import Session

ENDLESS = 10**9  # steps: the bench ends the training


def move(model: nn.Module, optimizer: torch.optim.Optimizer, device: str) -> None:
    """Moves a training to `device`: weights, gradients, buffers and optimizer state.

    It frees all its memory on the old device, so that the next contender can use it.
    """
    model.to(device)
    optimizer.load_state_dict(optimizer.state_dict())  # moves the state to the device of each weight, as resuming does
    gc.collect()
    torch.cuda.empty_cache()


class Meter:
    """Measures a segment of `steps` optimizer steps, sends the answer, and waits for the next request.

    Before each segment but the first there is one untimed step: while other trainings ran, caches became cold and the
    system may have reclaimed memory.
    """

    def __init__(self, connection: Connection, *, device: str, steps: int, count: bool) -> None:
        """count: count the operations of the first segment?"""
        self.connection, self.device, self.segment = connection, device, steps
        self.wait_for_device = synchronizer(device)
        self.counting: Any = counter() if count else nullcontext()

    def start_memory(self) -> None:
        """Starts measuring memory. Call it when code and data are loaded, before the model is built."""
        self.gauge = MemoryGauge(torch.device(self.device))

    def watch(self, model: nn.Module) -> None:
        """From now on, times the optimizer steps of `model`, whatever code calls them."""
        self.model, self.leading = model, False
        register_optimizer_step_post_hook(lambda optimizer, args, settings: self._after_step(optimizer))
        self.counting.__enter__()
        self._start()

    def batch(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        """Counts real tokens and computed positions of a batch without waiting for the device; arguments [B, N]."""
        self.real.append(input_ids.numel() if attention_mask is None else attention_mask.sum())
        self.computed += input_ids.numel()

    def _start(self) -> None:
        self.real: list[Tensor | int] = []
        self.computed = self.steps = 0
        self.wait_for_device()
        self.began = time.perf_counter()

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.leading:
            self.leading = False
            self._start()
            return
        self.steps += 1
        if self.steps == self.segment:
            self._end(optimizer)

    def _end(self, optimizer: torch.optim.Optimizer) -> None:
        """Sends the answer, frees the GPU, and waits for the next request. Raises EOFError if there is none."""
        self.counting.__exit__(None, None, None)
        self.wait_for_device()
        seconds = time.perf_counter() - self.began
        self.gauge.pause()  # keeps the peak
        if self.device != "cpu":
            move(self.model, optimizer, "cpu")
        count = getattr(self.counting, "get_total_flops", lambda: None)
        answer = {
            "seconds": seconds,
            "steps": self.steps,
            "tokens": int(sum(self.real)),
            "computed": self.computed,
            "memory_MiB": peak_memory(self.gauge),
            "flops": count(),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }
        self.connection.send(("answer", answer))
        self.connection.recv()
        if self.device != "cpu":
            move(self.model, optimizer, self.device)
        self.counting, self.leading = nullcontext(), True
        self.counting.__enter__()
        self._start()


def measure_training(connection: Connection, *, contender: Contender, count: bool) -> None:
    """A task of worker.py: trains as long as segments are requested; sends one answer per segment.

    count: count the operations of the first segment? Raises EOFError at the end.
    """
    config = contender.config
    if config.hardware.compile:
        allow_graphs()
    for name in (
        "sklearn.metrics",
        "torch._dynamo",
    ):  # every run loads them: they must not count as memory of the training
        import_module(name)
    meter = Meter(connection, device=contender.device, steps=contender.steps, count=count)
    prepared = prepare(make_source(config), config.dataset)
    tokenizer = make_tokenizer(config.tokenizer, prepared.mlm_texts)
    trains = train if contender.origin == OURS else import_module("xcls.bench.bert").train
    with tempfile.TemporaryDirectory() as folder:
        trains(meter, contender, prepared, tokenizer, Path(folder))
    raise RuntimeError("the training ended before the bench did")


def endless(training: Training) -> Training:
    """The same settings without an end, evaluations and checkpoints."""
    never: dict[str, Any] = dict.fromkeys(("eval_every_steps", "eval_every_epochs", "checkpoint_every_minutes"))
    never |= dict.fromkeys(("checkpoint_every_steps", "checkpoint_every_epochs"))
    return replace(training, max_steps=ENDLESS, **never)


def train(meter: Meter, contender: Contender, prepared: Prepared, tokenizer: TextTokenizer, folder: Path) -> None:
    """Our own training, as in a run but without evaluations and checkpoints. `folder`: for its files."""
    config, training = contender.config, endless(contender.training)
    record = Record(run="bench", mode="bench", status="running", hash="", seed=config.seed, seq_len=config.seq_len)
    how: dict[str, Any] = {"seq_len": config.seq_len, "truncate": config.dataset.truncate}
    with RunLogger(folder=folder, record=record, wandb=Wandb(mode="disabled")) as logger:
        precision = Precision(contender.device, contender.dtype)
        session = Session(tokenizer, training, config.hardware, precision, config.seed, logger)
        if contender.stage == "finetune":
            data = classification_data(prepared, tokenizer, **how)
            meter.start_memory()
            model = make_classifier(config, vocab_size=tokenizer.vocab_size, classes=prepared.classes)
            count_batches(meter, model)
            finetune(model=model, data=data, session=session)
        else:
            text = language_data(prepared, tokenizer, **how)
            meter.start_memory()
            learner = make_language_model(config, vocab_size=tokenizer.vocab_size)
            count_batches(meter, learner)
            pretrain(model=learner, data=text, masking=config.masking, session=session)


def count_batches(meter: Meter, model: nn.Module) -> None:
    """Lets the meter watch `model` and its batches; its first two arguments are ids and attention mask [B, N]."""
    model.register_forward_pre_hook(lambda module, inputs: meter.batch(inputs[0], inputs[1]))
    meter.watch(model)
