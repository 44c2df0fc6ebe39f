"""Installed Python packages as text: their files, their versions, and the masking of their names.

Nothing is imported. `python` stands for the standard library. Shared by the data sets in which a class is a package.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import re
import sysconfig
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Callable, Iterator, Sequence

from xcls.config.schema import UserError
from xcls.data.cache import build_once, cache_folder, digest
from xcls.data.near_duplicates import keep_first
from xcls.data.rows import make_rows, read_rows
from xcls.data.source import Splits

MASK = "LIB"
SHARES = {"test": 0.15, "validation": 0.1}
# Folders of tests, and of copies of other people's packages.
_TESTS = "__pycache__ test tests testing _testing idlelib lib2to3 turtledemo"
_COPIES = "vendor _vendor _vendored _bundled externals extern array_api_compat array_api_extra ensurepip"
NOT_READ = frozenset(f"site-packages dist-packages {_TESTS} {_COPIES}".split())
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # where the two names differ
_LIBRARIES = (
    r"torch|scipy|sklearn|scikit[-_ ]?learn|pandas|numpy|matplotlib|pyplot|wandb|weights\s*(?:&|and)\s*biases|w&b"
)
_ALIASES = "np pd plt mpl sp"
_SHORT = 5  # a shorter name is masked only where it is a whole word: "pil" is in "compiled"


def name_masker(packages: Sequence[str] = (), aliases: str = "") -> Callable[[str], str]:
    """A function that replaces each word with a library's name in it, and the usual aliases (np, pd, …), by LIB.

    `packages`: further names (`python` is not masked); `aliases`: further aliases, separated by spaces.
    """
    more = [re.escape(name) for name in packages if name != "python" and not re.fullmatch(_LIBRARIES, name)]
    long = [name for name in more if len(name) >= _SHORT]
    whole = [*f"{_ALIASES} {aliases}".split(), *(name for name in more if len(name) < _SHORT)]
    # \b at the start: without it, a long word would be read again from each of its letters.
    names = re.compile(rf"\b\w*(?:{'|'.join([_LIBRARIES, *long])})\w*", re.IGNORECASE)
    shorts = re.compile(rf"\b(?:{'|'.join(whole)})\b")
    return lambda text: shorts.sub(MASK, names.sub(MASK, text))


def package_folder(package: str) -> Path:
    """The folder of the package's source, without importing it; `python` is the standard library. Raises UserError."""
    if package == "python":
        return Path(sysconfig.get_paths()["stdlib"])
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"this data set reads the source of '{package}', which is not installed. Run 'make setup', "
            "or list the packages to read in dataset.source.packages."
        )
    return Path(next(iter(found.submodule_search_locations)))


def package_version(package: str) -> str:
    """The installed version, from the package's metadata."""
    if package == "python":
        return platform.python_version()
    try:
        return metadata.version(_DISTRIBUTIONS.get(package, package))
    except metadata.PackageNotFoundError:
        package_folder(package)  # raises a helpful UserError if the package is missing
        return "unknown"


def package_files(package: str) -> list[Path]:
    """The package's own Python files, sorted, without tests and copies of other packages."""
    root = package_folder(package)
    return [file for file in sorted(root.rglob("*.py")) if not NOT_READ.intersection(file.relative_to(root).parts)]


def name_order(names: Sequence[str], package: str) -> list[str]:
    """Module files in a pseudo-random order, by a hash of their names."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{package}/{name}".encode()).digest())


def assign_files(counts: dict[str, int], package: str) -> dict[str, str]:
    """The split of each module file, given its number of documents.

    In `name_order`, each file goes to test or else to validation as long as its documents fit into the share of that
    split, and else to train. A file with more than a fifth of a split (and more than eight documents) goes to train.
    """
    total = sum(counts.values())
    room = {split: share * total for split, share in SHARES.items()}
    splits = {}
    for file in name_order(list(counts), package):
        fitting = [split for split in room if counts[file] <= min(room[split], max(0.2 * SHARES[split] * total, 8))]
        splits[file] = fitting[0] if fitting else "train"
        if fitting:
            room[fitting[0]] -= counts[file]
    return splits


class PackageSource:
    """A data set in which each installed package is a class.

    A subclass sets `name`, `version` (raise it when its rows change) and the `usual` packages, and defines `documents`
    and `reading`.
    """

    name: str
    version: int
    usual: Sequence[str]

    def __init__(
        self, path: str | None, text: str, label: str, packages: Sequence[str] | None, options: Sequence[int] = ()
    ) -> None:
        if path is not None or text != "text" or label != "label":
            raise UserError(
                f"dataset={self.name} reads the installed packages: dataset.path, text and label do not apply. "
                "For your own files: dataset=files dataset.path=<file or folder>."
            )
        self.packages = sorted(set(packages or self.usual))
        if len(self.packages) < 2:
            raise UserError("dataset.source.packages: name two packages or more; each is a class.")
        self.options = options  # of the fingerprint

    def documents(self, package: str) -> Iterator[tuple[str, str, str]]:
        """(module file, name in the package, masked text) of each document."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A hash of the packages' versions, Python's, the options and the extractor's version."""
        versions = [[package, package_version(package)] for package in self.packages]
        return digest([self.version, versions, *self.options])

    def load(self) -> Splits:
        """Reads the rows from the cache; the first time it makes them, in up to a minute."""
        place = cache_folder() / self.name / self.fingerprint()[:16]
        folder = build_once(place, self._build, what=f"the data set {self.name}")
        train, validation, test = (read_rows(folder / split) for split in ("train", "validation", "test"))
        return Splits(train=train, validation=validation, test=test, classes=self.packages)

    def _build(self, folder: Path) -> None:
        """Writes the rows of each split, without near-duplicates, with all documents of a file in one split."""
        from tqdm import tqdm

        bar = tqdm(self.packages, desc=f"{self.name}: reading packages", unit="package")
        found = [(package, *document) for package in bar for document in self.documents(package)]
        texts = tqdm([text for *_, text in found], desc=f"{self.name}: dropping near-duplicates", mininterval=1.0)
        kept = [found[place] for place in keep_first(texts)]
        splits = {}
        for package in self.packages:
            counts = Counter(file for own, file, _, _ in kept if own == package)
            splits[package] = assign_files(counts, package)
        for split in ("train", "validation", "test"):
            rows = [row for row in kept if splits[row[0]][row[1]] == split]
            make_rows(
                text=[text for _, _, _, text in rows],
                label=[self.packages.index(package) for package, _, _, _ in rows],
                id=[f"{package}/{name}" for package, _, name, _ in rows],
                folder=folder / split,
            )
