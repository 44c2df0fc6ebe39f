"""The identity of a run: its hash, name and folder, as plain functions of the configuration.

The hash covers everything that influences the result and nothing else, so the same command finds its run from any
folder or machine. It includes the code of the attention mechanism and of the position encoding.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from xcls.runs.code_hash import code_hash

CODED = ("attention", "position")  # parts of a configuration whose code is in the hash
STAGE_OF_MODE = {"pretrain": "pretraining", "finetune": "finetuning"}
# Keys of the data set that are in its fingerprint, or elsewhere in the hash
NOT_OF_ROWS = ("path", "extra", "source", "labels", "truncate")
ARCHITECTURE = ("attention", "position", "size", "tokenizer", "seq_len")  # fine-tuning takes it from pretraining
# Settings of a stage that do not change the result: when to save, and the batch size of evaluations.
NOT_SHAPING = (
    "checkpoint_every_steps",
    "checkpoint_every_epochs",
    "checkpoint_every_minutes",
    "keep",
    "eval_batch_size",
)


def code_of(config: dict[str, Any]) -> dict[str, str]:
    """The hashes of the code of `attention` and `position`, which influences the result; {} for a baseline."""
    if config["mode"] == "baseline":
        return {}
    return {part: code_hash(config[part]["_target_"]) for part in CODED}


def run_hash(
    config: dict[str, Any],
    *,
    data: str,
    dtype: str,
    vocabulary: str | None = None,
    parent: str | None = None,
    code: dict[str, str],
) -> str:
    """sha256 in hex of the part of a resolved configuration (nested dict) that influences the result of its mode.

    `data`: the data fingerprint; `dtype`: the resolved dtype; `vocabulary`: the checksum of a loaded vocabulary file;
    `parent`: the hash of the pretraining run, or None; `code`: the result of `code_of`.
    """
    mode, dataset = config["mode"], config["dataset"]
    rows = {key: value for key, value in dataset.items() if key not in NOT_OF_ROWS}
    part: dict[str, Any] = {"mode": mode, "seed": config["seed"], "data": data, "dataset": rows}
    if mode == "baseline":
        part["baseline"] = config["baseline"]
    else:
        unused = {"path"} if config["tokenizer"]["kind"] == "wordpiece" else {"path", "strip_accents"}
        part.update({key: config[key] for key in ARCHITECTURE})
        part["tokenizer"] = {key: value for key, value in config["tokenizer"].items() if key not in unused}
        stage = config[STAGE_OF_MODE[mode]]
        part["training"] = {key: value for key, value in stage.items() if key not in NOT_SHAPING}
        part.update(vocabulary=vocabulary, code=code, truncate=dataset["truncate"], dtype=dtype)
        own = {"masking": config["masking"]} if mode == "pretrain" else {"head": config["head"], "pretrain": parent}
        part.update(own)
    return hashlib.sha256(json.dumps(part, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def run_name(config: dict[str, Any], choices: dict[str, str], digest: str) -> str:
    """`<dataset>/<mode>-<attention>-<position>-<size>-n<seq_len>-s<seed>-<6 hex>`, or the baseline's short form."""
    if config["mode"] == "baseline":
        return f"{choices['dataset']}/tfidf_logreg-s{config['seed']}-{digest[:6]}"
    return (
        f"{choices['dataset']}/{config['mode']}-{choices['attention']}-{choices['position']}-{choices['size']}"
        f"-n{config['seq_len']}-s{config['seed']}-{digest[:6]}"
    )


def runs_root(project: Path) -> Path:
    """The folder of pretrain/, finetune/ and multirun/: `$XCLS_RUNS`, else the project (which may be read-only)."""
    named = os.environ.get("XCLS_RUNS")
    return Path(os.path.expanduser(named)).absolute() if named else project


def run_folder(config: dict[str, Any], choices: dict[str, str], digest: str, *, sweep: str | None, root: Path) -> Path:
    """The folder of a run: `multirun/<sweep>/<run name>` in a sweep, else `pretrain/<exp>` or `finetune/<exp>`.

    Without `exp` it is `multirun/baselines/<run name>` for a baseline, else `<mode>/<flat run name>`.
    """
    name = run_name(config, choices, digest)
    if sweep is not None:
        return root / "multirun" / sweep / name
    if config["mode"] == "baseline":
        return root / "multirun" / (config["exp"] or "baselines") / name
    return root / config["mode"] / (config["exp"] or name.replace("/", "-"))
