"""The code of a `_target_`: its files, found without importing anything, and a hash of that code.

Comments, docstrings and layout do not change the hash. It is the same in every version of Python.
Standard library only.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Iterator

OURS = ("xcls.attention", "xcls.position")  # the parts of this package that belong to a mechanism
INSTALLED = ("site-packages", "dist-packages")
SKIPPED = {"ctx", "kind", "type_comment", "type_ignores"}  # fields that do not change what the code does


def module_file(module: str) -> Path | None:
    """The source file of `module`; None if there is none. Imports neither the module nor its packages."""
    parts, spec, places = module.split("."), None, None
    for number, part in enumerate(parts, start=1):
        if not part.isidentifier() or number > 1 and places is None:
            return None
        spec = PathFinder.find_spec(".".join(parts[:number]), places)
        places = spec.submodule_search_locations if spec else None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def code_files(target: str) -> dict[str, Path]:
    """Module name -> file: the module of `target` (`package.module.Class`) and, recursively, the code that it imports.

    From this package it follows only OURS; from other packages, only modules that are neither installed nor part of
    Python. Raises SyntaxError if a file is not valid Python. It does not see imports by a computed name.
    """
    found: dict[str, Path] = {}
    waiting = [target.rpartition(".")[0]]
    own = waiting[0].partition(".")[0]
    while waiting:
        module = waiting.pop()
        path = None if module in found or not _is_followed(module) else module_file(module)
        if path is None or (set(path.parts) & set(INSTALLED) and module.partition(".")[0] not in (own, "xcls")):
            continue
        found[module] = path
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        waiting += [module.rpartition(".")[0], *_imported(_read(path)[1], package)]
    return dict(sorted(found.items()))


def code_hash(target: str) -> str:
    """sha256 in hex of the code of `target`. Raises SyntaxError."""
    parts = [f"{module} {_read(path)[0]}\n" for module, path in code_files(target).items()]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _is_followed(module: str) -> bool:
    head = module.partition(".")[0]
    if head == "xcls":
        return any(f"{module}.".startswith(f"{part}.") for part in OURS)
    return bool(head) and head not in sys.stdlib_module_names


def _imported(names: tuple[tuple[int, str], ...], package: str) -> Iterator[str]:
    """Absolute module names of `names` (level, name) as `package` imports them."""
    for level, name in names:
        base = package.rsplit(".", level - 1)[0] + "." if level else ""
        yield (base + name).rstrip(".")


def _read(path: Path) -> tuple[str, tuple[tuple[int, str], ...]]:
    """The hash of one file, and its imports as (level, name)."""
    state = path.stat()
    return _parsed(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _parsed(path: Path, changed: int, size: int) -> tuple[str, tuple[tuple[int, str], ...]]:
    tree = ast.parse(path.read_bytes(), filename=str(path))
    names: dict[tuple[int, str], None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({(0, alias.name): None for alias in node.names})
        elif isinstance(node, ast.ImportFrom):  # the imported name may be a module of the package
            base = node.module or ""
            names.update({(node.level, f"{base}.{alias.name}".lstrip(".")): None for alias in node.names})
            names[node.level, base] = None
    words: list[str] = []
    _spell(tree, words)
    return hashlib.sha256("\0".join(words).encode()).hexdigest(), tuple(names)


def _spell(value: object, words: list[str]) -> None:
    """Appends words that are equal for equal code; `ast.dump` differs between versions of Python.

    Skips empty fields, because newer versions of Python have more of them, and docstrings (constants as statements).
    """
    if isinstance(value, ast.AST):
        words.append(type(value).__name__)
        for name in value._fields:
            item = getattr(value, name, None)
            if isinstance(value, ast.JoinedStr):  # Python 3.12 adds empty texts to some f-strings
                item = [part for part in value.values if getattr(part, "value", None) != ""]
            if item == [] or name in SKIPPED or item is None and not isinstance(value, ast.Constant):
                continue
            words.append(name)
            _spell(item, words)
        words.append(")")
    elif isinstance(value, list):
        for item in value:
            if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)):
                _spell(item, words)
        words.append("]")
    else:
        words.append(ascii(value))
