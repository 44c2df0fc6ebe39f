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
from xcls.config.files import read_yaml
from xcls.config.schema import UserError
from xcls.data.encode import encode_cached
from xcls.data.tokenizer import make_tokenizer
from xcls.runs.folder import check_case_collision
from xcls.stages.spec import RunSpec
from xcls.train.cards import Card


def bench(spec: RunSpec) -> int:
    """mode=bench: time, memory, operations and error of mechanisms; `multirun/bench/<name>/`. Gives the exit code."""
    folder = spec.runs / "multirun" / "bench" / (spec.config.exp or spec.config.bench.name)
    check_case_collision(folder)
    spec.check_device()
    precision = spec.precision
    settings = spec.config.bench = settled(spec.config.bench, precision.dtype)
    check_dtypes(settings.dtypes, spec.find().cards if precision.device == "cuda" else ())
    nodes = {
        group: {path.stem: read_yaml(path) for path in sorted((spec.root / "conf" / group).glob("*.yaml"))}
        for group in ("attention", "position")
    }
    progress = os.environ.get("XCLS_PROGRESS") != "0"
    if settings.what == "training":
        _trainings(spec, nodes, folder, progress)
    elif settings.what == "growth":
        growth = plan_growth(spec.config, attentions=nodes["attention"], positions=nodes["position"])
        run_growth_bench(spec.config, growth, device=precision.device, folder=folder, root=spec.root, progress=progress)
    else:
        run_bench(
            settings,
            attentions=nodes["attention"],
            positions=nodes["position"],
            device=precision.device,
            folder=folder,
            progress=progress,
            threads=spec.config.hardware.threads,
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


def _trainings(spec: RunSpec, nodes: dict[str, dict[str, Any]], folder: Path, progress: bool) -> None:
    """bench=training: whole trainings on the run's own text, beside transformers'."""
    config = spec.config
    contenders = plan_training(config, attentions=nodes["attention"], positions=nodes["position"])
    prepared = spec.data()
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
        device=spec.precision.device,
        folder=folder,
        progress=progress,
        fingerprint=spec.fingerprint,
    )
