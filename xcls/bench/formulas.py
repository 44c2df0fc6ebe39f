"""Operations and bytes of what the bench measures, from the mechanisms' own formulas (`Attention.operations`)."""

from __future__ import annotations

from torch import nn

from xcls.attention.work import Shape, Work


def work(part: str, attention: nn.Module, shape: Shape) -> dict[str, Work]:
    """Work of inference and of training by formula; empty where there is no formula (a whole step, another package).

    part: core (the mechanism alone) or module (with its projections: q, k, v and output, 2 N E^2 each, thrice that in
    training).
    """
    formula = getattr(attention, "operations", None)
    found = formula(shape) if formula is not None and part in ("module", "core") else None
    if found is None:
        return {}
    inference, training = found
    if part == "module":
        width, tokens = shape.heads * shape.head_dim, shape.batch * shape.length
        count = 4 - attention.ties_qk - 2 * (not attention.reads_qk)
        once = Work(2.0 * tokens * width**2, float(shape.itemsize) * (2 * tokens * width + width**2)) * count
        inference, training = inference + once, training + once * 3
    return {"inference": inference, "training": training}
