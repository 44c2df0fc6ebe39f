"""mode=eval and mode=predict, from a plan to an exit code: the modes that read a finished run."""

from __future__ import annotations

import sys
from pathlib import Path

from xcls.build import Plan, make_classifier, make_reading
from xcls.config.schema import UserError
from xcls.data.tokenizer import from_json
from xcls.runs.paths import at, is_stream
from xcls.stages.evaluate import evaluate
from xcls.stages.folder import changed_code, read_or_refuse
from xcls.stages.predict import predict
from xcls.stages.setting import check_classes
from xcls.stages.texts import classification_data
from xcls.train.checkpoint import load_for_use


def evaluate_run(plan: Plan) -> int:
    """mode=eval: the named checkpoint on `split`, into the run's own record. Gives the exit code; raises UserError."""
    folder, config = plan.parent, plan.config
    assert folder is not None
    record = read_or_refuse(folder)
    if record.data.get("fingerprint") != plan.fingerprint:
        raise UserError(
            f"The data are not those of {folder}: fingerprint {plan.fingerprint[:12]}, its own "
            f"{str(record.data.get('fingerprint'))[:12]}. Set dataset.path to the data it was trained on."
        )
    changed = changed_code(record, plan.code)
    if changed:
        raise UserError(
            f"{folder} was trained with other code of {changed} than there is now; its record must not mix the two. "
            f"Check out its commit ({record.commit}), or train again."
        )
    checkpoint = load_for_use(folder, config.checkpoint)
    tokenizer = from_json(checkpoint["tokenizer"])
    data = classification_data(plan.data(), tokenizer, seq_len=config.seq_len, truncate=config.dataset.truncate)
    check_classes(folder, checkpoint["classes"], data.classes)
    model = make_classifier(config, vocab_size=tokenizer.vocab_size, classes=checkpoint["classes"])
    scores = evaluate(
        model=model,
        checkpoint=checkpoint,
        rows=data.split(config.split),
        split=config.split,
        folder=folder,
        eval_batch_size=config.finetuning.eval_batch_size,
        hardware=config.hardware,
        precision=plan.precision,
        wandb=config.wandb,
    )
    print(
        f"{folder.name}, {config.checkpoint} checkpoint, {config.split}: "
        + ", ".join(f"{name} {value:.4f}" for name, value in scores.items() if value is not None)
    )
    return 0


def predict_documents(plan: Plan) -> int:
    """mode=predict: classes and probabilities for the documents of a file. Gives the exit code; raises UserError."""
    folder, config = plan.parent, plan.config
    assert folder is not None
    if not config.input:
        raise UserError(
            "input: name the file with the documents: input=reviews.txt (one a line), .csv or .jsonl; - is standard input."
        )
    source = at(config.input)
    output = (
        at(config.output)
        if config.output
        else Path("-")
        if is_stream(source)
        else source.with_name(source.stem + ".predictions.csv")
    )
    record = read_or_refuse(folder)
    if record.status != "completed":
        print(
            f"WARNING: {folder} is {record.status} at step {record.step}: its {config.checkpoint} checkpoint is that of a part of the training.",
            file=sys.stderr,
        )
    changed = changed_code(record, plan.code)
    if changed:
        print(f"WARNING: {folder} was trained with other code of {changed} than there is now.", file=sys.stderr)
    checkpoint = load_for_use(folder, config.checkpoint)
    tokenizer = from_json(checkpoint["tokenizer"])
    count = predict(
        model=make_classifier(config, vocab_size=tokenizer.vocab_size, classes=checkpoint["classes"]),
        checkpoint=checkpoint,
        source=source,
        output=output,
        reading=make_reading(config),
        table=config.text is not None,
        seq_len=config.seq_len,
        truncate=config.dataset.truncate,
        eval_batch_size=config.finetuning.eval_batch_size,
        hardware=config.hardware,
        precision=plan.precision,
    )
    print(f"{count} documents: {output}", file=sys.stderr if is_stream(output) else sys.stdout)
    return 0
