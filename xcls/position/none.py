"""No position encoding: attention sees a bag of tokens. A control for the other encodings."""

from __future__ import annotations

from xcls.position.base import Position


class NoPosition(Position):
    """Leaves embeddings, queries, keys and logits as they are."""
