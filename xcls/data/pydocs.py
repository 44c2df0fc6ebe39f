"""The embedded data set: which library does this docstring come from?

Real text that every installation has: docstrings of eight Python packages, read with `ast` (nothing is imported). The
names of the libraries and their usual aliases are masked in the text, near-duplicates dropped, and whole module files
go to one split, so that no split sees a neighbour of another's text.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import platform
import re
import sysconfig
import warnings
from collections import Counter
from importlib import metadata
from inspect import cleandoc
from pathlib import Path
from typing import Iterator

from xcls.data.cache import build_once, cache_folder, digest
from xcls.data.near_duplicates import keep_first
from xcls.data.source import Splits, make_rows
from xcls.schema import UserError

VERSION = 1  # of this extractor; goes up when the rows it makes change
PACKAGES = ("matplotlib", "numpy", "pandas", "python", "scipy", "sklearn", "torch", "wandb")
MASK = "LIB"
SHARES = {"test": 0.15, "validation": 0.1}
FEWEST_WORDS = 10
# Folders of tests, and of copies of other people's packages.
_TESTS = "__pycache__ test tests testing _testing idlelib lib2to3 turtledemo"
_COPIES = "vendor _vendor _vendored _bundled externals extern array_api_compat array_api_extra ensurepip"
NOT_READ = frozenset(f"site-packages dist-packages {_TESTS} {_COPIES}".split())
# Calls by which numpy, scipy and torch document compiled functions.
ADD_DOC = frozenset(("add_docstr", "add_newdoc", "_add_docstr"))
_LIBRARIES = (
    r"torch|scipy|sklearn|scikit[-_ ]?learn|pandas|numpy|matplotlib|pyplot|wandb|weights\s*(?:&|and)\s*biases|w&b"
)
_NAMES = re.compile(rf"\w*(?:{_LIBRARIES})\w*", re.IGNORECASE)
_ALIASES = re.compile(r"\b(?:np|pd|plt|mpl|sp)\b")


def mask_names(text: str) -> str:
    """Writes LIB for each word that contains a library's name, and for the usual aliases (np, pd, plt, mpl, sp)."""
    return _ALIASES.sub(MASK, _NAMES.sub(MASK, text))


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """(line, docstring) of the module, classes and functions in Python source text, `add_docstr(…)` calls included."""
    open_nodes: list[ast.AST] = [ast.parse(source)]
    while open_nodes:
        node = open_nodes.pop()
        # Statements alone are walked (and the handlers and cases between them): expressions are most of a tree.
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
    """The text that a call of `add_docstr` and its like gives a compiled function."""
    if getattr(call.func, "attr", getattr(call.func, "id", "")) not in ADD_DOC:
        return None
    strings = [
        part.value
        for argument in call.args
        for part in ast.walk(argument)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    return cleandoc(max(strings, key=len)) if strings else None


def package_folder(package: str) -> Path:
    """Where the package's source lies, without importing it; `python` is the standard library. Raises UserError."""
    if package == "python":
        return Path(sysconfig.get_paths()["stdlib"])
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"dataset=pydocs reads the docstrings of '{package}', which is not installed. Run 'make setup', "
            "or name the packages to read in dataset.source.packages."
        )
    return Path(next(iter(found.submodule_search_locations)))


def package_version(package: str) -> str:
    """The installed version, from the package's metadata."""
    if package == "python":
        return platform.python_version()
    try:
        return metadata.version({"sklearn": "scikit-learn"}.get(package, package))
    except metadata.PackageNotFoundError:
        package_folder(package)  # says what to do where the package is missing altogether
        return "unknown"


def package_files(package: str) -> list[Path]:
    """The package's own Python files, sorted; no tests, no copies of other packages."""
    root = package_folder(package)
    return [file for file in sorted(root.rglob("*.py")) if not NOT_READ.intersection(file.relative_to(root).parts)]


def read_docstrings(file: Path) -> list[tuple[int, str]]:
    """(line, masked docstring) of every docstring of `FEWEST_WORDS` words or more; none if the file does not parse."""
    try:
        with warnings.catch_warnings():  # invalid escapes in other people's strings
            warnings.simplefilter("ignore")
            found = sorted(docstrings(file.read_text("utf-8")))
    except (SyntaxError, UnicodeDecodeError, RecursionError, ValueError):
        return []  # templates and samples that are no Python of this version
    return [(line, mask_names(text)) for line, text in found if len(text.split()) >= FEWEST_WORDS]


def assign_files(counts: dict[str, int], package: str) -> dict[str, str]:
    """A split for each module file: files come in an order drawn from their names; each goes to test, else to
    validation, while its documents fit into that split's share, else to train. So does a file that would be more than a
    fifth of a split (and more than eight documents)."""
    total = sum(counts.values())
    room = {split: share * total for split, share in SHARES.items()}
    splits = {}
    for file in sorted(counts, key=lambda name: hashlib.sha256(f"{package}/{name}".encode()).digest()):
        fitting = [split for split in room if counts[file] <= min(room[split], max(0.2 * SHARES[split] * total, 8))]
        splits[file] = fitting[0] if fitting else "train"
        if fitting:
            room[fitting[0]] -= counts[file]
    return splits


class Pydocs:
    """Docstrings of installed packages, a class each. `packages`: two or more, `python` being the standard library."""

    def __init__(
        self, *, path: str | None = None, text: str = "text", label: str = "label", packages: list[str] | None = None
    ) -> None:
        if path is not None or text != "text" or label != "label":
            raise UserError(
                "dataset=pydocs reads the installed packages: dataset.path, text and label do not apply. "
                "For your own files: dataset=files dataset.path=<file or folder>."
            )
        self.packages = sorted(set(packages or PACKAGES))
        if len(self.packages) < 2:
            raise UserError("dataset.source.packages: two packages or more are needed, a class each.")

    def fingerprint(self) -> str:
        """A hash of the packages' versions, Python's, and the extractor's."""
        return digest([VERSION, [[package, package_version(package)] for package in self.packages]])

    def load(self) -> Splits:
        """Reads the cached rows; the first time (under a minute) makes them."""
        import pyarrow.parquet as parquet

        file = cache_folder() / "pydocs" / f"{self.fingerprint()[:16]}.parquet"
        table = parquet.read_table(build_once(file, self._build, what="the data set pydocs")).to_pydict()
        rows: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
        for position, split in enumerate(table["split"]):
            rows[split].append(position)
        made = {
            split: make_rows(**{column: [table[column][i] for i in chosen] for column in ("text", "label", "id")})
            for split, chosen in rows.items()
        }
        return Splits(train=made["train"], validation=made["validation"], test=made["test"], classes=self.packages)

    def _build(self, file: Path) -> None:
        """Writes the parquet file with the columns split, text, label, id."""
        import pyarrow as pa
        import pyarrow.parquet as parquet
        from tqdm import tqdm

        files = [
            (label, package, module) for label, package in enumerate(self.packages) for module in package_files(package)
        ]
        found = [
            (label, module.relative_to(package_folder(package)).as_posix(), line, text)
            for label, package, module in tqdm(files, desc="pydocs: reading docstrings", unit="file", mininterval=1.0)
            for line, text in read_docstrings(module)
        ]
        texts = tqdm([row[3] for row in found], desc="pydocs: dropping near-duplicates", unit="text", mininterval=1.0)
        kept = [found[i] for i in keep_first(texts)]
        rows = []
        for label, package in enumerate(self.packages):
            splits = assign_files(Counter(module for own, module, _, _ in kept if own == label), package)
            rows += [
                {"split": splits[module], "text": text, "label": label, "id": f"{package}/{module}:{line}"}
                for own, module, line, text in kept
                if own == label
            ]
        parquet.write_table(pa.Table.from_pylist(rows), file)
