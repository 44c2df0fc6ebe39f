"""Installed Python packages as text: where their files lie, which version they have, and their names taken out.

Nothing is imported. `python` stands for the standard library. Data sets made of packages, a class each, share this.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import re
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Sequence

import numpy as np

from xcls.config.schema import UserError
from xcls.data.cache import build_once, cache_folder
from xcls.data.rows import rows_of
from xcls.data.source import Splits

if TYPE_CHECKING:
    import pyarrow

MASK = "LIB"
SHARES = {"test": 0.15, "validation": 0.1}
# Folders of tests, and of copies of other people's packages.
_TESTS = "__pycache__ test tests testing _testing idlelib lib2to3 turtledemo"
_COPIES = "vendor _vendor _vendored _bundled externals extern array_api_compat array_api_extra ensurepip"
NOT_READ = frozenset(f"site-packages dist-packages {_TESTS} {_COPIES}".split())
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # where it is not the package's own name
_LIBRARIES = (
    r"torch|scipy|sklearn|scikit[-_ ]?learn|pandas|numpy|matplotlib|pyplot|wandb|weights\s*(?:&|and)\s*biases|w&b"
)
_ALIASES = "np pd plt mpl sp"
_SHORT = 5  # a name of fewer letters is masked where it is a whole word alone: "pil" is in "compiled"


def name_masker(packages: Sequence[str] = (), aliases: str = "") -> Callable[[str], str]:
    """A function that writes LIB for each word that contains a library's name, and for the usual aliases (np, pd, plt,
    mpl, sp). `packages` are more names (`python` is left alone), `aliases` more aliases between spaces."""
    more = [re.escape(name) for name in packages if name != "python" and not re.fullmatch(_LIBRARIES, name)]
    long = [name for name in more if len(name) >= _SHORT]
    whole = [*f"{_ALIASES} {aliases}".split(), *(name for name in more if len(name) < _SHORT)]
    # From the start of a word on: found from anywhere within, a long word would be read once for each of its letters.
    names = re.compile(rf"\b\w*(?:{'|'.join([_LIBRARIES, *long])})\w*", re.IGNORECASE)
    shorts = re.compile(rf"\b(?:{'|'.join(whole)})\b")
    return lambda text: shorts.sub(MASK, names.sub(MASK, text))


def package_folder(package: str) -> Path:
    """Where the package's source lies, without importing it; `python` is the standard library. Raises UserError."""
    if package == "python":
        return Path(sysconfig.get_paths()["stdlib"])
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"this data set reads the source of '{package}', which is not installed. Run 'make setup', "
            "or name the packages to read in dataset.source.packages."
        )
    return Path(next(iter(found.submodule_search_locations)))


def package_version(package: str) -> str:
    """The installed version, from the package's metadata."""
    if package == "python":
        return platform.python_version()
    try:
        return metadata.version(_DISTRIBUTIONS.get(package, package))
    except metadata.PackageNotFoundError:
        package_folder(package)  # says what to do where the package is missing altogether
        return "unknown"


def package_files(package: str) -> list[Path]:
    """The package's own Python files, sorted; no tests, no copies of other packages."""
    root = package_folder(package)
    return [file for file in sorted(root.rglob("*.py")) if not NOT_READ.intersection(file.relative_to(root).parts)]


def name_order(names: Sequence[str], package: str) -> list[str]:
    """Module files in an order that is drawn from their names."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{package}/{name}".encode()).digest())


def assign_files(counts: dict[str, int], package: str) -> dict[str, str]:
    """A split for each module file: files come in an order drawn from their names; each goes to test, else to
    validation, while its documents fit into that split's share, else to train. So does a file that would be more than a
    fifth of a split (and more than eight documents)."""
    total = sum(counts.values())
    room = {split: share * total for split, share in SHARES.items()}
    splits = {}
    for file in name_order(list(counts), package):
        fitting = [split for split in room if counts[file] <= min(room[split], max(0.2 * SHARES[split] * total, 8))]
        splits[file] = fitting[0] if fitting else "train"
        if fitting:
            room[fitting[0]] -= counts[file]
    return splits


def chosen_packages(
    name: str, path: str | None, text: Any, label: str, packages: Sequence[str] | None, usual: Sequence[str]
) -> list[str]:
    """The packages to read, sorted: those given, else the usual ones. Raises UserError for settings that do not
    apply.
    """
    if path is not None or text != "text" or label != "label":
        raise UserError(
            f"dataset={name} reads the installed packages: dataset.path, text and label do not apply. "
            "For your own files: dataset=files dataset.path=<file or folder>."
        )
    chosen = sorted(set(packages or usual))
    if len(chosen) < 2:
        raise UserError("dataset.source.packages: two packages or more are needed, a class each.")
    return chosen


def cached_rows(name: str, fingerprint: str, build: Callable[[], list[dict[str, Any]]], classes: list[str]) -> Splits:
    """The splits from the cache, where the first to come puts the rows {split, text, label, id} that `build` makes."""
    import pyarrow.parquet as parquet

    def write(file: Path) -> None:
        import pyarrow as pa

        parquet.write_table(pa.Table.from_pylist(build()), file)

    file = build_once(cache_folder() / name / f"{fingerprint[:16]}.parquet", write, what=f"the data set {name}")
    return _splits(parquet.ParquetFile(file).read(), classes)


def _splits(table: pyarrow.Table, classes: list[str]) -> Splits:
    names, rows = np.asarray(table.column("split").to_pylist()), rows_of(table)
    made = {split: rows.select(np.flatnonzero(names == split)) for split in ("train", "validation", "test")}
    return Splits(train=made["train"], validation=made["validation"], test=made["test"], classes=classes)
