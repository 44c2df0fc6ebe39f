"""mode=finetune: a classifier on a pretrained encoder, or from scratch, with one final evaluation on test."""

from __future__ import annotations

from typing import Any, Callable

from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from xcls.config.schema import Hardware, Training
from xcls.data.batching import ClassBatches
from xcls.data.tokenizer import TextTokenizer
from xcls.model.heads import TextClassifier
from xcls.runs.record import MORE_TRAINING, Record
from xcls.stages.predictions import prediction_table, write_predictions
from xcls.stages.setup import checkpoint_metadata, load_resume_checkpoint, setup_device
from xcls.stages.texts import ClassificationData, Labelled, note_data
from xcls.train.amp import Amp
from xcls.train.checkpoint import fit, load_for_use, write_bytes
from xcls.train.loop import Loop
from xcls.train.metrics import Scores, guess_told, scores, softmax
from xcls.train.precision import Precision
from xcls.train.randomness import seed_everything
from xcls.train.run_logger import RunLogger
from xcls.train.scoring import Inference, classify, latency, no_poll
from xcls.train.stream import Batch, Stream, width_multiple


def classification_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The sum of the cross-entropies of the examples, scalar fp32."""
    logits = model(batch["input_ids"], batch["attention_mask"])
    return F.cross_entropy(logits.float(), batch["labels"], reduction="sum")


def start_from(model: TextClassifier, parent: dict[str, Any], classes: list[str], logger: RunLogger) -> None:
    """Loads the encoder of a parent's checkpoint, and its head where it is a classifier of the same shape.

    A head that stays new is one warning: from MLM there is none, else both shapes are named.
    """
    weights, name = parent["model"], parent["run"]
    fit(lambda: model.encoder.load_state_dict(_part(weights, "encoder.")), f"The checkpoint of {name}")
    if parent["stage"] == "pretrain":
        logger.warn(f"The classification head is new: {name} was pretrained by MLM and has none.")
        return
    head = _part(weights, "head.")
    theirs, ours = tuple(head["linear.weight"].shape), tuple(model.head.linear.weight.shape)
    if theirs != ours:
        logger.warn(f"The classification head is new: that of {name} has the shape {theirs}, this one {ours}.")
        return
    fit(lambda: model.head.load_state_dict(head), f"The checkpoint of {name}")
    if parent["classes"] != classes:
        logger.warn(f"The head of {name} is kept, but its classes were {parent['classes']}, now {classes}.")


def _part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}


def batches(model: TextClassifier, rows: Labelled, *, compiled: bool) -> ClassBatches:
    """What makes padded batches of `rows` for `model`."""
    multiple = width_multiple(model.encoder.seq_len, compiled=compiled)
    return ClassBatches(encoded=rows.encoded, labels=rows.labels, multiple=multiple)


def score_split(
    model: TextClassifier, rows: Labelled, *, size: int, amp: Amp, poll: Callable[[], None] = no_poll
) -> Inference:
    """Logits of one split, `size` rows at once; `poll` runs between batches and may raise to stop."""
    maker = batches(model, rows, compiled=amp.hardware.compile)
    return classify(model, maker, rows.encoded.lengths, batch_size=size, amp=amp, poll=poll)


def finetune(
    *,
    model: TextClassifier,
    data: ClassificationData,
    tokenizer: TextTokenizer,
    training: Training,
    hardware: Hardware,
    precision: Precision,
    seed: int,
    logger: RunLogger,
    resume: bool,
    parent: dict[str, Any] | None = None,
) -> Record:
    """Trains `model`, then evaluates its best checkpoint once on test. Call it within `with logger:`.

    `parent` is the checkpoint to start from (`load_for_use`), None for a start from scratch; the model must have its
    architecture and `tokenizer` be its tokenizer. Raises Interrupted, BadNumbers, OutOfMemory, UserError.
    """
    seed_everything(seed)
    amp = setup_device(model, hardware=hardware, precision=precision, logger=logger)
    note_data(logger, data)
    payload = load_resume_checkpoint(logger, resume=resume, keep=training.keep)
    if payload is None and parent is not None:
        start_from(model, parent, data.classes, logger)
    stream = Stream(
        maker=batches(model, data.train, compiled=hardware.compile),
        lengths=data.train.encoded.lengths,
        batch_size=training.batch_size,
        seed=seed,
        group_by_length=training.group_by_length,
        ids=data.train.ids,
    )
    guesses: list[bool] = []  # evaluations that are no better: one may be early, two in a row are worth a warning

    def evaluate(poll: Callable[[], None]) -> Scores:
        result = score_split(model, data.validation, size=training.eval_batch_size, amp=amp, poll=poll)
        found, record = scores(data.validation.labels, softmax(result.logits)), logger.record
        told = guess_told(found, len(data.classes)) if record.step > training.warmup * record.steps else ""
        guesses.append(bool(told))
        if guesses[-2:] == [True, True] and guesses[-3:] != [True, True, True]:
            logger.warn(f"The model has learned nothing by step {record.step}: {told}. {MORE_TRAINING}")
        return {"val_loss": found.pop("loss"), **found}

    Loop(
        model=model,
        loss=classification_loss,
        stream=stream,
        evaluate=evaluate,
        training=training,
        amp=amp,
        logger=logger,
        extras=checkpoint_metadata(logger, stage="finetune", tokenizer=tokenizer.to_json(), classes=data.classes),
    ).run(payload)
    _final(model, data, size=training.eval_batch_size, amp=amp, logger=logger)
    return logger.record


def _final(model: TextClassifier, data: ClassificationData, *, size: int, amp: Amp, logger: RunLogger) -> None:
    """The best checkpoint on validation and, once, on test: scores, predictions, head, speed of inference."""
    best = load_for_use(logger.folder, "best")
    model.load_state_dict(best["model"])
    record, tables = logger.record, []
    for name in ("validation", "test"):
        rows = data.split(name)
        result = score_split(model, rows, size=size, amp=amp)
        probabilities = softmax(result.logits)
        record.metrics[name] = scores(rows.labels, probabilities)
        tables.append(prediction_table(name, rows.ids, rows.labels, probabilities, data.classes))
    maker = batches(model, data.test, compiled=amp.hardware.compile)
    record.costs.update(result.costs(), tokenize_ms_per_example=data.tokenize_ms)
    record.costs.update(latency(model, maker, data.test.encoded.lengths, amp=amp))
    write_predictions(logger.folder / "predictions.parquet", tables)
    told = guess_told(record.metrics["validation"], len(data.classes))
    if told:
        logger.warn(f"This run learned nothing: on validation {told}. {MORE_TRAINING}")
    head = {name: tensor.cpu().contiguous() for name, tensor in model.head.state_dict().items()}
    write_bytes(logger.folder / "head.safetensors", save(head))
    logger.event("test", {"checkpoint_step": best["progress"]["step"], **record.metrics["test"]})
    logger.save()
