"""Names in the files of finished runs that are called otherwise now, so that those runs can still be used. Standard library only."""

from __future__ import annotations

from typing import Any

ATTENTION = {  # modules of xcls.attention; their classes kept their names
    "mean": "mean",
    "performer": "favor",
    "performer_band": "favor_band",
    "performer_hyperbolic": "favor_hyperbolic",
    "performer_oprf": "favor_oprf",
    "performer_relu": "favor_relu",
    "performer_sderf": "favor_sderf",
    "reformer": "lsh",
    "reformer_learned": "lsh_learned",
    "reformer_local": "lsh_local",
    "reformer_shared": "lsh_shared",
    "sdpa": "softmax",
    "sdpa_fused": "softmax",
}
GONE = ("attention.block_size", "attention.block_above")  # they chose between two ways of computing the same
ALWAYS = {"attention.norm_in_stabiliser": True}  # gone too: what these had is how it is done now


def current(values: dict[str, Any]) -> dict[str, Any]:
    """The flat `values` of a run's file under today's names. A setting that is gone and would change the result stays, for the
    check of the settings to refuse it.
    """
    package, _, rest = str(values.get("attention._target_", "")).rpartition("xcls.attention.")
    module, _, name = rest.partition(".")
    if package or module not in ATTENTION:
        return values
    kept = {key: value for key, value in values.items() if key not in GONE and ALWAYS.get(key) is not value}
    return {**kept, "attention._target_": f"xcls.attention.{ATTENTION[module]}.{name}"}
