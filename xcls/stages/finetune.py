"""mode=finetune: a classifier on a pretrained encoder, or from scratch, with one final evaluation on test."""

from __future__ import annotations

from typing import Any, Callable

from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from xcls.data.batching import ClassBatches
from xcls.model.heads import TextClassifier
from xcls.runs.record import MORE_TRAINING, Record
from xcls.stages.predictions import Predicted, note_scores, write_predictions
from xcls.stages.texts import ClassificationData, Labelled
from xcls.train.checkpoint import fit, load_for_use, write_bytes
from xcls.train.loop import Loop
from xcls.train.metrics import Scores, guess_message, scores, softmax
from xcls.train.run_logger import RunLogger
from xcls.train.scoring import classify, latency
from xcls.train.session import Session
from xcls.train.stream import Batch


def classification_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The sum of the cross-entropies of the examples, scalar fp32."""
    logits = model(batch["input_ids"], batch["attention_mask"])
    return F.cross_entropy(logits.float(), batch["labels"], reduction="sum")


def start_from(model: TextClassifier, parent: dict[str, Any], classes: list[str], logger: RunLogger) -> None:
    """Loads the encoder of the parent's checkpoint, and its head if that is a classifier of the same shape.

    If the head is not loaded, warns once: an MLM checkpoint has no classification head; otherwise the shapes differ.
    """
    weights, name = parent["model"], parent["run"]
    fit(lambda: model.encoder.load_state_dict(_part(weights, "encoder.")), f"The checkpoint of {name}")
    if parent["stage"] == "pretrain":
        logger.warn(f"The classification head is new: {name} was pretrained with MLM and has none.")
        return
    head = _part(weights, "head.")
    theirs, ours = tuple(head["linear.weight"].shape), tuple(model.head.linear.weight.shape)
    if theirs != ours:
        logger.warn(f"The classification head is new: the one of {name} has shape {theirs}, this model needs {ours}.")
        return
    fit(lambda: model.head.load_state_dict(head), f"The checkpoint of {name}")
    if parent["classes"] != classes:
        logger.warn(f"The head of {name} is loaded, but its classes were {parent['classes']}; now they are {classes}.")


def _part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin with `prefix`; the prefix is removed."""
    return {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}


def batches(rows: Labelled, multiple: int) -> ClassBatches:
    """The collator for `rows`, with batch widths rounded up to a multiple of `multiple`."""
    return ClassBatches(encoded=rows.encoded, labels=rows.labels, multiple=multiple)


def finetune(
    *, model: TextClassifier, data: ClassificationData, session: Session, parent: dict[str, Any] | None = None
) -> Record:
    """Trains `model`, then evaluates its best checkpoint once on test. Call it within `with logger:`.

    `parent`: the checkpoint to start from (`load_for_use`), None for training from scratch. The model must have its
    architecture, and the session its tokenizer. Raises Interrupted, BadNumbers, OutOfMemory, UserError.
    """
    training, logger, record = session.training, session.logger, session.logger.record
    checkpoint = session.begin(model, tokens=data.report, warnings=data.warnings)
    if checkpoint is None and parent is not None:
        start_from(model, parent, data.classes, logger)
    multiple = session.width_multiple(model.encoder.seq_len)
    held_out, size = batches(data.validation, multiple), training.eval_batch_size
    guesses: list[bool] = []  # whether each evaluation was no better than guessing; two in a row give a warning

    def evaluate(poll: Callable[[], None]) -> Scores:
        result = classify(model, held_out, batch_size=size, amp=session.amp, poll=poll)
        found = scores(data.validation.labels, softmax(result.logits))
        reason = guess_message(found, len(data.classes)) if record.step > training.warmup * record.steps else ""
        guesses.append(bool(reason))
        if guesses[-2:] == [True, True] and guesses[-3:] != [True, True, True]:
            logger.warn(f"The model has learned nothing by step {record.step}: {reason}. {MORE_TRAINING}")
        return {"val_loss": found.pop("loss"), **found}

    collator = batches(data.train, multiple)
    Loop(
        session,
        model,
        loss=classification_loss,
        collator=collator,
        evaluate=evaluate,
        ids=data.train.ids,
        classes=data.classes,
    ).run(checkpoint)
    _evaluate_best(model, data, session, multiple)
    return record


def _evaluate_best(model: TextClassifier, data: ClassificationData, session: Session, multiple: int) -> None:
    """Evaluates the best checkpoint on validation and, once, on test: scores, predictions, head, inference speed."""
    logger, record, amp = session.logger, session.logger.record, session.amp
    best = load_for_use(logger.folder, "best")
    model.load_state_dict(best["model"])
    found = {}
    for name in ("validation", "test"):
        rows = data.split(name)
        collator = batches(rows, multiple)
        result = classify(model, collator, batch_size=session.training.eval_batch_size, amp=amp)
        found[name] = Predicted(rows.ids, rows.labels, softmax(result.logits))
    reason = note_scores(logger, found)
    if reason:
        logger.warn(f"This run learned nothing: on validation {reason}. {MORE_TRAINING}")
    record.costs.update(result.costs(), tokenize_ms_per_example=data.tokenize_ms)
    record.costs.update(latency(model, collator, amp=amp))
    write_predictions(logger, found, data.classes)
    head = {name: tensor.cpu().contiguous() for name, tensor in model.head.state_dict().items()}
    write_bytes(logger.folder / "head.safetensors", save(head))
    logger.event("test", {"checkpoint_step": best["progress"]["step"], **record.metrics["test"]})
    logger.save()
