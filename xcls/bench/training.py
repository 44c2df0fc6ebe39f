"""bench=training in its process: a whole training, data loading included, that goes on for a segment when asked to.

All contenders wait in such processes, and train a segment of steps by turns. On a GPU each leaves the card between its
turns, but for CUDA's own context (some hundred MB).
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

ENDLESS = 10**9  # steps: the bench says when it is enough


def move(model: nn.Module, optimizer: torch.optim.Optimizer, device: str) -> None:
    """Moves a training to `device`: weights, gradients, buffers, and the optimizer's state, which follows its weights.

    The GPU that it leaves has no memory of it left, so that none holds what another needs.
    """
    model.to(device)
    optimizer.load_state_dict(optimizer.state_dict())  # puts the state where each weight is, as resuming does
    gc.collect()
    torch.cuda.empty_cache()


class Meter:
    """Answers with what a segment of `steps` optimizer steps took, and waits for the question after the next segment.

    One step more goes before those that are timed, but for the first segment: this training has waited while others
    ran, its caches are cold and the system may have taken its memory back.
    """

    def __init__(self, connection: Connection, *, device: str, steps: int, count: bool) -> None:
        """count: the operations of the first segment."""
        self.connection, self.device, self.segment = connection, device, steps
        self.wait_for_device = synchronizer(device)
        self.counting: Any = counter() if count else nullcontext()

    def start_memory(self) -> None:
        """From here on memory counts: call it when code and data are loaded, before the model is made."""
        self.gauge = MemoryGauge(torch.device(self.device))

    def watch(self, model: nn.Module) -> None:
        """Times the steps of the optimizer of `model`, whichever calls it, from now on."""
        self.model, self.leading = model, False
        register_optimizer_step_post_hook(lambda optimizer, args, settings: self._after_step(optimizer))
        self.counting.__enter__()
        self._start()

    def batch(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        """Counts the real tokens and computed positions of a batch, both [B, N], without waiting for the device."""
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
        """Answers, leaves a GPU to the others, and waits. Raises EOFError where nothing more is asked for."""
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
    """A task of worker.py: trains until nothing more is asked for; each answer is a segment.

    count: the operations of the first segment. Raises EOFError in the end.
    """
    config = contender.config
    if config.hardware.compile:
        allow_graphs()
    for name in ("sklearn.metrics", "torch._dynamo"):  # loaded by every run: none of the training's memory
        import_module(name)
    meter = Meter(connection, device=contender.device, steps=contender.steps, count=count)
    prepared = prepare(make_source(config), config.dataset)
    tokenizer = make_tokenizer(config.tokenizer, prepared.mlm_texts)
    trains = train if contender.origin == OURS else import_module("xcls.bench.bert").train
    with tempfile.TemporaryDirectory() as folder:
        trains(meter, contender, prepared, tokenizer, Path(folder))
    raise RuntimeError("the training came to an end by itself")


def endless(training: Training) -> Training:
    """The same without an end, evaluations and checkpoints."""
    never: dict[str, Any] = dict.fromkeys(("eval_every_steps", "eval_every_epochs", "checkpoint_every_minutes"))
    never |= dict.fromkeys(("checkpoint_every_steps", "checkpoint_every_epochs"))
    return replace(training, max_steps=ENDLESS, **never)


def train(meter: Meter, contender: Contender, prepared: Prepared, tokenizer: TextTokenizer, folder: Path) -> None:
    """The suite's own training, as a run has it, but for evaluations and checkpoints. `folder`: for what it writes."""
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
    """Has the meter watch `model`, which is called with ids and attention mask [B, N] first."""
    model.register_forward_pre_hook(lambda module, inputs: meter.batch(inputs[0], inputs[1]))
    meter.watch(model)
