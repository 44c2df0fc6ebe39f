"""What may not be in a sweep's configuration: API keys, tokens, passwords. The jobs begin from files, which hold it in clear."""

from __future__ import annotations

from typing import Any

from xcls.config.schema import UserError, flatten
from xcls.runs.record import without_secrets


def refuse_secrets(tree: dict[str, Any]) -> None:
    """Refuses a configuration that holds what looks like a secret, or is the value of one in the environment.

    submitit packs it into a file, Slurm's script has the launcher's part of it. Raises UserError that names the keys.
    """
    lines = {key: f"{key}={value}" for key, value in flatten(tree).items()}
    whole = "\n".join(lines.values())
    if without_secrets(whole) == whole:
        return
    wrong = [key for key, line in lines.items() if without_secrets(line) != line]
    raise UserError(
        f"{', '.join(wrong)}: this is an API key, a token or a password, or the value of a variable in the environment whose name "
        "says so. The files of a sweep would hold it. Leave it in the environment, which every job has: WANDB_API_KEY, HF_TOKEN."
    )
