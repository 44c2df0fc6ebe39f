"""The valid values of a configuration, checked without data or files. Standard library only."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from xcls.config.schema import Config, UserError, check_name, nearest


def limits(node: Any, prefix: str = "") -> list[str]:
    """One message for every value of `node` (a dataclass of the schema) outside the choices or limits of its field."""
    wrong = []
    for item in fields(node):
        key, value = prefix + item.name, getattr(node, item.name)
        if is_dataclass(value):
            wrong += limits(value, key + ".")
        elif "choices" in item.metadata and value not in item.metadata["choices"]:
            choices = item.metadata["choices"]
            wrong.append(f"{key}={value}: one of {', '.join(choices)} is needed.{nearest(str(value), choices)}")
        elif "low" in item.metadata and value is not None:
            low, high = item.metadata["low"], item.metadata["high"]
            if not ((low is None or value >= low) and (high is None or value <= high)):  # a NaN fails both comparisons
                span = f"at least {low}" if high is None else f"from {low} to {high}"
                wrong.append(f"{key}={value}: a value {span} is needed.")
    return wrong


def check(config: Config) -> None:
    """Refuses impossible values. Raises UserError with one line per fault."""
    wrong = limits(config)
    size = config.size
    if size.num_heads and size.width % size.num_heads:
        fitting = [h for h in range(1, min(size.width, 64) + 1) if size.width % h == 0]
        wrong.append(
            f"size.num_heads={size.num_heads}: it must divide the width {size.width}; "
            f"possible: {', '.join(map(str, fitting))}."
        )
    if config.masking.mask_share + config.masking.random_share > 1.0 + 1e-9:
        wrong.append("masking.mask_share + masking.random_share: the sum must be at most 1 (the rest stays unchanged).")
    for stage in ("pretraining", "finetuning"):
        training = getattr(config, stage)
        if training.max_steps is None and training.epochs is not None and training.epochs <= 0:
            wrong.append(f"{stage}.epochs={training.epochs}: more than 0 is needed, or set {stage}.max_steps.")
    if config.pretraining.select_by != "val_loss":
        wrong.append(f"pretraining.select_by={config.pretraining.select_by}: pretraining selects by val_loss alone.")
    if config.mode != "predict" and (config.text is not None or config.reading):
        wrong.append(
            "text: this is only for the new documents of mode=predict. To train on a column, set dataset.text."
        )
    if wrong:
        raise UserError("\n".join(wrong))
    for key in ("sweep",) if config.mode in ("eval", "predict") else ("exp", "sweep"):  # they become folder names
        if getattr(config, key) is not None:
            check_name(key, getattr(config, key))
