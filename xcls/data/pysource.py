"""Long documents that every installation has: which library is this source file of?

Whole Python files of eleven packages that the suite depends on anyway, nothing imported, 4,096 characters or more: half
of them fill 16,384 bytes, so with `tokenizer=bytes` they are as long as `seq_len` says. The names of the libraries and
their usual aliases are masked, and the path behind one in an import; comments before the first statement (licence,
authors, settings of tools) are left out; near-duplicates are dropped, and a class has at most `per_class` files.

A file is in one split. Folders are not kept together: the files of some packages lie in one folder or two, whose class
would then have nothing like its training text in validation and test.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable, Iterator

from xcls.config.schema import UserError
from xcls.data.cache import digest
from xcls.data.near_duplicates import keep_first
from xcls.data.packages import (
    MASK,
    assign_files,
    cached_rows,
    chosen_packages,
    name_masker,
    name_order,
    package_files,
    package_folder,
    package_version,
)
from xcls.data.reading import Reading
from xcls.data.source import Splits

VERSION = 1  # of this extractor; goes up when the rows it makes change
PACKAGES = (
    "fontTools",
    "matplotlib",
    "networkx",
    "numpy",
    "pandas",
    "python",
    "scipy",
    "sklearn",
    "sympy",
    "torch",
    "wandb",
)
ALIASES = "nx"
_LEADING = re.compile(r"\A(?:[ \t]*(?:#[^\n]*)?\n)+")
_IMPORT = re.compile(rf"^([ \t>.]*(?:from|import)[ \t]+){MASK}[\w.]*", re.MULTILINE)


def masked_source(text: str, mask: Callable[[str], str]) -> str:
    """A file's text without its leading comments and without the libraries' names: `from LIB import x`."""
    return _IMPORT.sub(rf"\g<1>{MASK}", mask(_LEADING.sub("", text)))


class Pysource:
    """Source files of installed packages, a class each. `packages`: two or more, `python` being the standard library.

    Files of fewer than `min_chars` characters are left out. Of more than `per_class` an even part is drawn by name.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        text: str = "text",
        label: str = "label",
        packages: list[str] | None = None,
        min_chars: int = 4096,
        per_class: int = 300,
    ) -> None:
        self.packages = chosen_packages("pysource", path, text, label, packages, PACKAGES)
        for name, value in (("min_chars", min_chars), ("per_class", per_class)):
            if value < 1:
                raise UserError(f"dataset.source.{name}={value}: at least 1 is needed.")
        self.min_chars, self.per_class = min_chars, per_class

    def reading(self) -> Reading:
        """Tables and lines, and folders of .txt files with a source file each, masked as in training."""
        mask = name_masker(self.packages, ALIASES)
        return Reading(
            ["text"], clean=lambda text: masked_source(text, mask), cleaning=f"names {' '.join(self.packages)}"
        )

    def fingerprint(self) -> str:
        """A hash of the packages' versions, Python's, the options and the extractor's version."""
        versions = [[package, package_version(package)] for package in self.packages]
        return digest([VERSION, versions, self.min_chars, self.per_class])

    def load(self) -> Splits:
        """Reads the cached rows; the first time (half a minute) makes them."""
        return cached_rows("pysource", self.fingerprint(), self._build, self.packages)

    def _build(self) -> list[dict[str, Any]]:
        """The rows, with split, text, label and id."""
        from tqdm import tqdm

        clean = self.reading().clean
        bar = tqdm(self.packages, desc="pysource: reading source files", unit="package", mininterval=1.0)
        found = [(package, name, text) for package in bar for name, text in self._read(package, clean)]
        texts = tqdm(
            [text for _, _, text in found], desc="pysource: dropping near-duplicates", unit="file", mininterval=1.0
        )
        kept = [found[i] for i in keep_first(texts)]
        rows = []
        for label, package in enumerate(self.packages):
            own = {name: text for part, name, text in kept if part == package}
            splits = assign_files(dict.fromkeys(own, 1), package)
            rows += [
                {"split": splits[name], "text": text, "label": label, "id": f"{package}/{name}"}
                for name, text in own.items()
            ]
        return rows

    def _read(self, package: str, clean: Callable[[str], str]) -> Iterator[tuple[str, str]]:
        """(name, masked text) of the files that are chosen."""
        root, read = package_folder(package), 0
        files = {
            file.relative_to(root).as_posix(): file for file in package_files(package) if _large(file, self.min_chars)
        }
        for name in name_order(list(files), package):
            try:
                text = clean(files[name].read_text("utf-8"))
            except (UnicodeDecodeError, OSError):
                continue  # samples in other encodings
            if len(text) >= self.min_chars:
                yield name, text
                read += 1
            if read == self.per_class:
                break


def _large(file: Path, chars: int) -> bool:
    """Whether the file could have so many characters: it has as many bytes."""
    return file.stat().st_size >= chars
