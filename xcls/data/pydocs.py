"""The embedded data set: which library does this docstring come from?

Real text that every installation has: docstrings of eight Python packages, read with `ast` (nothing is imported). The
names of the libraries and their usual aliases are masked, and near-duplicates are dropped. All docstrings of a module
file go to one split, so that no split has neighbours of the text of another.
"""

from __future__ import annotations

import ast
import warnings
from inspect import cleandoc
from pathlib import Path
from typing import Iterator

from xcls.data.packages import PackageSource, name_masker, package_files, package_folder
from xcls.data.reading import Reading

PACKAGES = ("matplotlib", "numpy", "pandas", "python", "scipy", "sklearn", "torch", "wandb")
FEWEST_WORDS = 10
# Calls by which numpy, scipy and torch document compiled functions.
ADD_DOC = frozenset(("add_docstr", "add_newdoc", "_add_docstr"))
mask_names = name_masker()


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """(line, docstring) of the module, classes and functions in Python source text, `add_docstr(…)` calls included."""
    open_nodes: list[ast.AST] = [ast.parse(source)]
    while open_nodes:
        node = open_nodes.pop()
        # Only statements, handlers and cases are walked: most nodes of a tree are expressions.
        open_nodes += [
            child for child in ast.iter_child_nodes(node) if not isinstance(child, (ast.expr, ast.expr_context))
        ]
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 0), text
        elif isinstance(node, (ast.Expr, ast.Assign)) and isinstance(node.value, ast.Call):
            text = _added_docstring(node.value)
            if text:
                yield node.lineno, text


def _added_docstring(call: ast.Call) -> str | None:
    """The docstring in a call of `add_docstr` or a similar function, which documents a compiled function."""
    if getattr(call.func, "attr", getattr(call.func, "id", "")) not in ADD_DOC:
        return None
    strings = [
        part.value
        for argument in call.args
        for part in ast.walk(argument)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    return cleandoc(max(strings, key=len)) if strings else None


def read_docstrings(file: Path) -> list[tuple[int, str]]:
    """(line, masked docstring) of every docstring of `FEWEST_WORDS` words or more; none if the file does not parse."""
    try:
        with warnings.catch_warnings():  # invalid escapes in other people's strings
            warnings.simplefilter("ignore")
            found = sorted(docstrings(file.read_text("utf-8")))
    except (SyntaxError, UnicodeDecodeError, RecursionError, ValueError):
        return []  # templates and samples that this version of Python cannot parse
    return [(line, mask_names(text)) for line, text in found if len(text.split()) >= FEWEST_WORDS]


class Pydocs(PackageSource):
    """Docstrings of installed packages, one class each. `packages`: two or more; `python` is the standard library."""

    name, version, usual = "pydocs", 1, PACKAGES

    def __init__(
        self, *, path: str | None = None, text: str = "text", label: str = "label", packages: list[str] | None = None
    ) -> None:
        super().__init__(path, text, label, packages)

    def reading(self) -> Reading:
        """Tables and lines, with the names of the libraries masked."""
        return Reading(["text"], clean=mask_names, cleaning="names")

    def documents(self, package: str) -> Iterator[tuple[str, str, str]]:
        """(module file, file and line, masked docstring) of each docstring."""
        root = package_folder(package)
        for module in package_files(package):
            file = module.relative_to(root).as_posix()
            yield from ((file, f"{file}:{line}", text) for line, text in read_docstrings(module))
