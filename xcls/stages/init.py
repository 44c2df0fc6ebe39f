"""mode=init: writes `pretrain/<exp>/config.yaml`, ready to edit."""

from __future__ import annotations

from xcls.config.files import write_values
from xcls.config.schema import UserError, flatten
from xcls.runs.folder import check_case_collision
from xcls.runs.spec import file_values
from xcls.stages.spec import RunSpec


def init(spec: RunSpec) -> int:
    """Writes the file and returns the exit code. Raises UserError if the file exists or the data do not."""
    exp = spec.config.exp
    if not exp:
        raise UserError("exp: mode=init needs a name for the new folder: exp=<name>.")
    path = spec.runs / "pretrain" / exp / "config.yaml"
    check_case_collision(path.parent)
    if path.exists():
        raise UserError(f"{path} exists already. Edit it, remove it, or choose another exp=….")
    spec.source.fingerprint()  # so that a wrong path is reported now
    path.parent.mkdir(parents=True, exist_ok=True)
    then = f"python run.py mode=pretrain exp={exp}"
    write_values(path, file_values("pretrain", flatten(spec.tree), spec.choices), f"Edit, then: {then}")
    print(f"{path.relative_to(spec.runs)} is ready to edit. Then: {then}")
    return 0
