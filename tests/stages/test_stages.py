"""The stages one after another, as a user runs them: pretrain, fine-tune, evaluate, predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.samples import (
    CPU,
    HARDWARE,
    TinyTokenizer,
    make_classifier,
    make_data,
    make_language_data,
    make_logger,
    make_mlm,
    make_training,
)
from xcls.config.schema import Masking, UserError
from xcls.data.batching import MaskedBatches
from xcls.data.encode import encode
from xcls.data.masking import IGNORED
from xcls.data.tokenizer import ByteTokenizer
from xcls.runs.record import Record, read_record
from xcls.stages.finetune import finetune
from xcls.stages.pretrain import pretrain, with_chosen_tokens
from xcls.train.checkpoint import load_for_use, read_checkpoint
from xcls.train.metrics import scores
from xcls.train.session import Session


def run_finetune(
    folder: Path,
    *,
    parent: dict[str, Any] | None = None,
    classes: int = 3,
    attention: str = "performer",
    tokenizer: Any = None,
    **changes: Any,
) -> Record:
    data, tokenizer = make_data(), tokenizer or TinyTokenizer()
    data.classes = ["a", "b", "c", "d"][:classes]
    model = make_classifier(attention, classes=classes, dropout=0.1, vocab_size=tokenizer.vocab_size)
    with make_logger(folder) as logger:
        session = Session(tokenizer, make_training(**changes), HARDWARE, CPU, 0, logger)
        return finetune(model=model, data=data, session=session, parent=parent)


def run_pretrain(folder: Path, **changes: Any) -> Record:
    training = make_training(select_by="val_loss", **changes)
    with make_logger(folder, mode="pretrain") as logger:
        session = Session(TinyTokenizer(), training, HARDWARE, CPU, 0, logger)
        return pretrain(
            model=make_mlm("performer", seed=7), data=make_language_data(), masking=Masking(), session=session
        )


def test_pretraining_lowers_the_validation_loss(tmp_path: Path) -> None:
    record = run_pretrain(tmp_path, epochs=12.0, lr=1e-2, eval_every_steps=15)
    losses = pd.read_csv(tmp_path / "metrics.csv")["val_loss"]
    assert losses.iloc[-1] < losses.iloc[0] - 0.2
    assert record.metrics["validation"] == {"val_loss": losses.min()}
    payload = read_checkpoint(tmp_path / "ckpt_best.pt")
    assert payload["stage"] == "pretrain" and json.loads(payload["tokenizer"])["kind"] == "bytes"


def test_finetuning_starts_from_the_encoder_with_a_new_head(tmp_path: Path) -> None:
    run_pretrain(tmp_path / "pre", max_steps=2)
    parent = load_for_use(tmp_path / "pre", "best")
    record = run_finetune(tmp_path / "ft", parent=parent, max_steps=1, lr=1e-12)
    assert sum("head is new" in text for text in record.warnings) == 1
    weights = read_checkpoint(tmp_path / "ft" / "ckpt_last.pt")["model"]
    encoder = {name: tensor for name, tensor in parent["model"].items() if name.startswith("encoder.")}
    assert set(encoder) == {name for name in weights if name.startswith("encoder.")}
    for name, tensor in encoder.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-9, rtol=0)
    scratch = make_classifier("performer", dropout=0.1).state_dict()
    assert not torch.equal(scratch["encoder.token_embedding.weight"], weights["encoder.token_embedding.weight"])


def test_a_fitting_head_is_kept_and_another_is_new(tmp_path: Path) -> None:
    run_finetune(tmp_path / "one", max_steps=3)
    parent = load_for_use(tmp_path / "one", "best")
    kept = run_finetune(tmp_path / "two", parent=parent, max_steps=1, lr=1e-12)
    weight = read_checkpoint(tmp_path / "two" / "ckpt_last.pt")["model"]["head.linear.weight"]
    torch.testing.assert_close(weight, parent["model"]["head.linear.weight"], atol=1e-9, rtol=0)
    assert kept.warnings == []
    other = run_finetune(tmp_path / "three", parent=parent, classes=4, max_steps=1)
    assert "(3, 16)" in other.warnings[0] and "(4, 16)" in other.warnings[0]
    renamed = {**parent, "classes": ["x", "y", "z"]}
    assert "['x', 'y', 'z']" in run_finetune(tmp_path / "four", parent=renamed, max_steps=1).warnings[0]


def test_the_final_evaluation_and_its_files(tmp_path: Path) -> None:
    record = run_finetune(tmp_path, epochs=6.0)
    frame = pd.read_parquet(tmp_path / "predictions.parquet")
    assert list(frame.columns) == ["split", "id", "label", "prediction", "p_a", "p_b", "p_c"]
    data = make_data()
    for split in ("validation", "test"):
        part = frame[frame["split"] == split]
        rows = data.split(split)
        assert list(part["id"]) == rows.ids
        assert list(part["label"]) == [data.classes[label] for label in rows.labels]
        assert scores(rows.labels, part[["p_a", "p_b", "p_c"]].to_numpy()) == record.metrics[split]
    best = pd.read_csv(tmp_path / "metrics.csv", float_precision="round_trip").set_index("step").loc[record.best_step]
    assert best["macro_f1"] == record.metrics["validation"]["macro_f1"]
    assert best["val_loss"] == record.metrics["validation"]["loss"]
    head = load_file(tmp_path / "head.safetensors")
    weights = read_checkpoint(tmp_path / "ckpt_best.pt")["model"]
    assert {f"head.{name}" for name in head} == {name for name in weights if name.startswith("head.")}
    assert torch.equal(head["linear.weight"], weights["head.linear.weight"])
    assert record.costs["inference_examples_per_s"] > 0 and record.costs["latency_ms"] > 0
    events = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum('"event": "test"' in line for line in events) == 1
    assert set(read_record(tmp_path).files) == {"metrics.csv", "predictions.parquet"}


def masks_of(collator: MaskedBatches) -> int:
    return int((collator.build(np.arange(len(collator.encoded)), 0)["labels"] != IGNORED).sum())


@pytest.mark.parametrize("fresh", [True, False])
def test_validation_masks_choose_a_token_at_least(fresh: bool) -> None:
    texts = encode(["a", "b"], ByteTokenizer(), seq_len=8)
    few = MaskedBatches(encoded=texts, masking=Masking(fresh=fresh), seed=0, vocab_size=261)
    assert (
        masks_of(few) == 0 and masks_of(with_chosen_tokens(few, batch_size=1)) > 0
    )  # at first none, which gave a loss of 0/0
    many = MaskedBatches(
        encoded=encode(["some more words"] * 20, ByteTokenizer(), seq_len=20),
        masking=Masking(fresh=fresh),
        seed=0,
        vocab_size=261,
    )
    assert with_chosen_tokens(many, batch_size=4) == many
    blank = MaskedBatches(encoded=encode([""], ByteTokenizer(), seq_len=8), masking=Masking(), seed=0, vocab_size=261)
    with pytest.raises(UserError, match="masking.probability"):
        with_chosen_tokens(blank, batch_size=1)


def test_a_run_that_learns_nothing_is_named_so_while_it_trains_and_in_the_end(tmp_path: Path) -> None:
    """A learning rate of next to nothing, and labels that the text does not tell."""
    record = run_finetune(tmp_path, max_steps=12, eval_every_steps=2, lr=1e-9, classes=4)
    assert record.metrics["validation"]["macro_f1"] <= 0.25
    told = [text for text in record.warnings if "learned nothing" in text]
    assert len(told) == 2 and "by step 4" in told[0]
