"""How much of the text was left out because it is longer than seq_len, as the records have it."""

from __future__ import annotations

from typing import Any, Iterable

from xcls.record import Record
from xcls.report.measures import number

LEAST = 0.005  # a smaller share of the tokens is not worth a remark


def cut_shares(record: Record, split: str = "train") -> dict[str, float | None]:
    """`tokens_cut_share` and `documents_cut_share` of a split; None where the record has none (a baseline cuts nothing)."""
    node: Any = record.data
    for name in ("tokens", split):
        node = node.get(name) if isinstance(node, dict) else None
    return {name: number(node.get(name)) if isinstance(node, dict) else None for name in ("tokens_cut_share", "documents_cut_share")}


def cut_note(records: Iterable[Record]) -> str | None:
    """A sentence on the largest share of the training tokens that was left out at each length; None where it is little."""
    found: dict[tuple[int, str], float] = {}
    for record in records:
        share = cut_shares(record)["tokens_cut_share"]
        if record.mode == "finetune" and share is not None:
            key = (record.seq_len, str(record.config.get("dataset.truncate", "head")))
            found[key] = max(found.get(key, 0.0), share)
    told = [f"{share:.0%} at {length:,} ({way} kept)" for (length, way), share in sorted(found.items()) if share >= LEAST]
    if not told:
        return None
    return f"Texts longer than seq_len are cut: of the training tokens {', '.join(told)} are left out. The baseline reads all of them."
