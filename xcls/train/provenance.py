"""What a run was made with: versions, device, commit, and in `code.patch` the code that is not in that commit.

Best effort: without git, outside a repository or without a package the values are empty, without an error.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Iterable

import torch

from xcls.runs.record import PATCH, without_secrets, write_atomic
from xcls.train.run_logger import RunLogger

PACKAGES = ("numpy", "tokenizers", "datasets", "scikit-learn", "pandas", "xcls")
ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("conf", "xcls", "hydra_plugins", ":(glob)*.py", "Makefile", "pyproject.toml", ":(glob)*.lock")
LOCKS = {"GIT_OPTIONAL_LOCKS": "0"}  # git commands that only read take no lock
MOST_BYTES = 1_000_000  # of a patch
STYLE = "--no-color --no-ext-diff --no-textconv --no-renames --src-prefix=a/ --dst-prefix=b/"  # overrides git settings
DIFF = ("-c", "core.quotepath=false", "diff", "--binary", "--full-index", *STYLE.split())


@dataclass(frozen=True)
class Sources:
    """The code of the working tree: its commit, the patch from the commit to it, and files in neither of them."""

    commit: str | None = None
    patch: str = ""
    lacking: dict[str, str] = field(default_factory=dict)  # file -> why it is not in the patch

    @property
    def name(self) -> str | None:
        """The commit, with `-dirty` if the code differs from it; None outside a repository."""
        return self.commit and self.commit + ("-dirty" if self.patch or self.lacking else "")


def note_sources(logger: RunLogger, sources: Sources) -> None:
    """Writes the commit into the record, and `code.patch` next to it if the code differs from the commit."""
    logger.record.commit = sources.name
    path = logger.folder / PATCH
    path.unlink(missing_ok=True)
    if sources.patch:
        write_atomic(path, sources.patch)
    for file, why in sources.lacking.items():
        logger.warn(f"{file} is not in {PATCH}: {why}. Commit it, or reproduce.sh cannot repeat this run.")


def commit() -> str | None:
    """The commit of the source tree, with `-dirty` if the code differs from it; None outside a repository."""
    return find_sources(()).name


def find_sources(used: Iterable[Path], root: Path = ROOT) -> Sources:
    """The state of the source tree at `root`. `used`: files of the run's own code, inside or outside of `root`."""
    if not (root / ".git").exists():
        return Sources()
    inside, lacking = [], {}
    for path in map(Path.resolve, used):
        if path.is_relative_to(root):
            inside.append(path.relative_to(root).as_posix())
        else:
            lacking[str(path)] = "it lies outside the project"
    try:
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        places = [*SOURCES, *(f":(literal){name}" for name in inside)]
        parts = _split(_git(root, *DIFF, "HEAD", "--", *places))
        new = _new_files(root, inside)
        parts += [_git(root, *DIFF, "--no-index", "--", "/dev/null", name, good=(0, 1)) for name in new]
    except (OSError, subprocess.SubprocessError):
        return Sources()
    texts, size = [], 0
    for part in sorted(parts, key=len):
        name = _name(part)
        try:
            text = part.decode()
        except UnicodeDecodeError:
            lacking[name] = "it is not in UTF-8"
            continue
        size += len(part)
        if size > MOST_BYTES:
            lacking[name] = f"the patch would be larger than {MOST_BYTES:,} bytes"
        elif without_secrets(text) != text:
            lacking[name] = "it contains an API key, a token or a password of the environment"
        else:
            texts.append(text)
    return Sources(commit, "".join(sorted(texts)), lacking)


def _new_files(root: Path, inside: Iterable[str]) -> list[str]:
    """The files that git does not track: sources that it does not ignore, and those of `inside`, ignored or not."""
    asked = ("ls-files", "-z", "--others", "--exclude-standard", "--", *SOURCES)
    found = set(_git(root, *asked).decode(errors="replace").split("\0"))
    names = [f":(literal){name}" for name in inside]
    if names:
        found |= set(_git(root, "ls-files", "-z", "--others", "--", *names).decode(errors="replace").split("\0"))
    return sorted(name for name in found if name.endswith((".py", ".yaml", ".yml")))


def _split(patch: bytes) -> list[bytes]:
    """Splits a patch by file: only a file header begins with `diff --git `."""
    return [part for part in re.split(rb"^(?=diff --git )", patch, flags=re.MULTILINE) if part]


def _name(part: bytes) -> str:
    return part.split(b"\n", 1)[0].decode(errors="replace").rpartition(" b/")[2]


def _git(root: Path, *words: str, good: tuple[int, ...] = (0,)) -> bytes:
    """The output of one git command that changes nothing. Raises OSError, subprocess.SubprocessError."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, timeout=20, env=environment | LOCKS)
    if done.returncode not in good:
        raise subprocess.SubprocessError(done.stderr.decode(errors="replace"))
    return done.stdout


def versions(*more: str) -> dict[str, str | None]:
    """Versions of Python, torch, CUDA, the packages that influence results, and `more`; None if one is missing."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a plain string: checkpoints load with weights_only
        "cuda": torch.version.cuda,
    }
    for package in (*PACKAGES, *more):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def cpu_name() -> str:
    """The processor's name from /proc/cpuinfo, else from the platform."""
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def describe_device(device: torch.device) -> dict[str, Any]:
    """Kind, name, memory (MiB) and threads of `device`."""
    described: dict[str, Any] = {"kind": device.type, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {**described, "name": properties.name, "memory_MiB": properties.total_memory // 2**20}
    return {**described, "name": cpu_name()}
