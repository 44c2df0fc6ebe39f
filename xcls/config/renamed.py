"""Old names in the files of finished runs, and their new names, so that those runs can still be used."""

from __future__ import annotations

from typing import Any

MODULES = {  # modules of xcls.attention; their classes kept their names
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
NAMES = {"performer_favor": "performer", "reformer_lsh": "reformer"}  # of attention.name
GONE = ("attention.block_size", "attention.block_above")  # they chose between two ways to compute the same result
ALWAYS = {"attention.norm_in_stabiliser": True}  # removed too: the code now always does what this value meant


def current(values: dict[str, Any]) -> dict[str, Any]:
    """The flat `values` of a run's file under today's names.

    A removed setting that would change the result is kept, so that the check of the settings refuses it.
    """
    name = values.get("attention.name")
    if isinstance(name, str) and name in NAMES:
        values = {**values, "attention.name": NAMES[name]}
    package, _, rest = str(values.get("attention._target_", "")).rpartition("xcls.attention.")
    module, _, attribute = rest.partition(".")
    if package or module not in MODULES:
        return values
    kept = {key: value for key, value in values.items() if key not in GONE and ALWAYS.get(key) is not value}
    return {**kept, "attention._target_": f"xcls.attention.{MODULES[module]}.{attribute}"}
