"""Long documents that every installation has: which library is this source file of?

Whole Python files of eleven packages that the suite depends on anyway, read without importing them, of 4,096 characters
or more. Half of them have at least 16,384 bytes, so with `tokenizer=bytes` long sequences are filled. The names of the
libraries and their usual aliases are masked, in imports with the path after them; comments before the first statement
(licence, authors, settings of tools) are left out; near-duplicates are dropped; a class has at most `per_class` files.

Files of one folder may go to different splits: some packages have only one or two folders, and their validation and
test text would then be unlike their training text.
"""

from __future__ import annotations

import re
from typing import Callable, Iterator

from xcls.config.schema import UserError
from xcls.data.packages import MASK, PackageSource, name_masker, name_order, package_files, package_folder
from xcls.data.reading import Reading

PACKAGES = "fontTools matplotlib networkx numpy pandas python scipy sklearn sympy torch wandb".split()
ALIASES = "nx"
_LEADING = re.compile(r"\A(?:[ \t]*(?:#[^\n]*)?\n)+")
_IMPORT = re.compile(rf"^([ \t>.]*(?:from|import)[ \t]+){MASK}[\w.]*", re.MULTILINE)


def masked_source(text: str, mask: Callable[[str], str]) -> str:
    """The text of a file without leading comments, with the libraries' names masked: `from LIB import x`."""
    return _IMPORT.sub(rf"\g<1>{MASK}", mask(_LEADING.sub("", text)))


class Pysource(PackageSource):
    """Source files of installed packages, one class each. `packages`: two or more; `python` is the standard library.

    Files of fewer than `min_chars` characters are left out. If a class has more than `per_class` files, that many are
    drawn by a hash of their names.
    """

    name, version, usual = "pysource", 1, PACKAGES

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
        super().__init__(path, text, label, packages, [min_chars, per_class])
        for name, value in (("min_chars", min_chars), ("per_class", per_class)):
            if value < 1:
                raise UserError(f"dataset.source.{name}={value}: at least 1 is needed.")
        self.min_chars, self.per_class = min_chars, per_class

    def reading(self) -> Reading:
        """Tables, lines, and folders of .txt files with one source file each, masked as in training."""
        mask = name_masker(self.packages, ALIASES)
        return Reading(
            ["text"], clean=lambda text: masked_source(text, mask), cleaning=f"names {' '.join(self.packages)}"
        )

    def documents(self, package: str) -> Iterator[tuple[str, str, str]]:
        """(module file, module file, masked text) of the chosen files."""
        root, clean, read = package_folder(package), self.reading().clean, 0
        # A file has at least as many bytes as characters.
        large = [file for file in package_files(package) if file.stat().st_size >= self.min_chars]
        for name in name_order([file.relative_to(root).as_posix() for file in large], package):
            try:
                text = clean((root / name).read_text("utf-8"))
            except (UnicodeDecodeError, OSError):
                continue  # samples in other encodings
            if len(text) >= self.min_chars:
                yield name, name, text
                read += 1
            if read == self.per_class:
                break
