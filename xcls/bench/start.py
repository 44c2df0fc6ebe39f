"""mode=bench, from a plan to its folder: which mechanisms there are, which text they train on, what measures them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Sequence

from xcls.bench.growth_plan import plan_growth
from xcls.bench.growth_run import run_growth_bench
from xcls.bench.plan import settled
from xcls.bench.run import run_bench
from xcls.bench.training_plan import StageText, plan_training
from xcls.bench.training_run import run_training_bench
from xcls.build import Plan
from xcls.config.files import read_yaml
from xcls.config.schema import UserError
from xcls.data.encode import encode_cached
from xcls.data.tokenizer import make_tokenizer
from xcls.stages.folder import refuse_twin
from xcls.train.cards import Card


def bench(plan: Plan) -> int:
    """mode=bench: time, memory, operations and error of mechanisms; `multirun/bench/<name>/`. Gives the exit code."""
    folder = plan.runs / "multirun" / "bench" / (plan.config.exp or plan.config.bench.name)
    refuse_twin(folder)
    plan.check_device()
    precision = plan.precision
    settings = plan.config.bench = settled(plan.config.bench, precision.dtype)
    check_dtypes(settings.dtypes, plan.find().cards if precision.device == "cuda" else ())
    nodes = {
        group: {path.stem: read_yaml(path) for path in sorted((plan.root / "conf" / group).glob("*.yaml"))}
        for group in ("attention", "position")
    }
    progress = os.environ.get("XCLS_PROGRESS") != "0"
    if settings.what == "training":
        _trainings(plan, nodes, folder, progress)
    elif settings.what == "growth":
        growth = plan_growth(plan.config, attentions=nodes["attention"], positions=nodes["position"])
        run_growth_bench(plan.config, growth, device=precision.device, folder=folder, root=plan.root, progress=progress)
    else:
        run_bench(
            settings,
            attentions=nodes["attention"],
            positions=nodes["position"],
            device=precision.device,
            folder=folder,
            progress=progress,
            threads=plan.config.hardware.threads,
        )
    return 0


def check_dtypes(dtypes: Sequence[str], cards: Sequence[Card]) -> None:
    """Refuses bf16 on a card that has none: its emulation says nothing about the mechanisms. Raises UserError."""
    without = next((card for card in cards if not card.bf16), None)
    if without is not None and "bf16" in dtypes:
        better = ",".join(dict.fromkeys("fp16" if dtype == "bf16" else dtype for dtype in dtypes))
        raise UserError(
            f"bench.dtypes: bf16: {without} has no bf16 in the silicon and emulates it. Set 'bench.dtypes=[{better}]'."
        )


def _trainings(plan: Plan, nodes: dict[str, dict[str, Any]], folder: Path, progress: bool) -> None:
    """bench=training: whole trainings on the run's own text, beside transformers'."""
    config = plan.config
    contenders = plan_training(config, attentions=nodes["attention"], positions=nodes["position"])
    prepared = plan.data()
    tokenizer = make_tokenizer(config.tokenizer, prepared.mlm_texts)
    how, texts = {"seq_len": config.seq_len, "truncate": config.dataset.truncate}, {}
    if "finetune" in config.bench.stages:
        encoded = encode_cached(prepared.train["text"], tokenizer, **how, what="train")
        texts["finetune"] = StageText(encoded, prepared.train.labels, len(prepared.classes))
    if "pretrain" in config.bench.stages:
        texts["pretrain"] = StageText(encode_cached(prepared.mlm_texts, tokenizer, **how, what="text for MLM"))
    run_training_bench(
        config,
        contenders,
        texts=texts,
        vocab_size=tokenizer.vocab_size,
        continues=tokenizer.continues,
        device=plan.precision.device,
        folder=folder,
        progress=progress,
        fingerprint=plan.fingerprint,
    )
