"""Docstrings and whole source files as documents, from packages made for the test and (slow) from installed ones."""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from xcls.config.schema import UserError
from xcls.data import pydocs
from xcls.data.near_duplicates import jaccard, keep_first, shingles
from xcls.data.packages import assign_files, name_masker
from xcls.data.pydocs import Pydocs, docstrings, mask_names
from xcls.data.pysource import PACKAGES, Pysource, masked_source
from xcls.data.source import Splits

LICENCE = "#!/usr/bin/env python\n# Copyright: the alpha_pkg developers\n\n# mypy: strict\n"

WORDS = "the of a matrix value returns index given shape object element sorted stable range while each between".split()


def sentence(seed: int) -> str:
    return " ".join(
        WORDS[(seed * 7 + step * (seed % 5 + 1)) % len(WORDS)] + ("" if step % 3 else str(seed)) for step in range(14)
    )


def code(seed: int, lines: int) -> str:
    draw = np.random.default_rng(seed)
    names = ["".join(draw.choice(list("abcdefgh"), 6)) for _ in range(12)]
    picked = draw.integers(0, 12, (lines, 3))
    return "".join(f"{names[a]} = {names[b]}({names[c]}, {a * b})\n" for a, b, c in picked.tolist())


def parts_of(splits: Splits) -> list:
    return [splits.train, splits.validation, splits.test]


def columns(splits: Splits) -> tuple[list, list, list]:
    """Texts, labels and ids of all parts."""
    return tuple([value for rows in parts_of(splits) for value in rows[name]] for name in ("text", "label", "id"))


def write_packages(library: Path, module: Callable[[str, int, int], str]) -> list[str]:
    """Two packages with thirty modules, a copy of one, one that is short, two that cannot be read, and tests."""
    for number, package in enumerate(("alpha_pkg", "beta_pkg")):
        folder = library / package
        (folder / "tests").mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('nothing may import this')")
        (folder / "template.py").write_text("def {name}(:")
        (folder / "latin.py").write_bytes(b"# \xe9\n" * 1000)
        (folder / "tests" / "test_a.py").write_text(module(package, 9, 99))
        for file in range(30):
            (folder / f"m{file}.py").write_text(module(package, number, file))
        (folder / "copy.py").write_text(LICENCE + module(package, number, 0) + "\n# a copy\n")
    return ["alpha_pkg", "beta_pkg"]


def documented(package: str, number: int, file: int) -> str:
    functions = "".join(f'def f{i}():\n    """{sentence(1000 * number + 10 * file + i)}"""\n' for i in range(4))
    return functions + f'def same():\n    """{sentence(5)}"""\ndef short():\n    """Too short."""\n'


def long(package: str, number: int, file: int) -> str:
    imports = f"from {package}.core.sub import x\nimport {package} as a\n"
    return LICENCE + imports + code(100 * number + file, 40 + file)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.syspath_prepend(tmp_path / "lib")
    return write_packages(tmp_path / "lib", documented)


@pytest.fixture
def long_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.syspath_prepend(tmp_path / "lib")
    return write_packages(tmp_path / "lib", long)


def test_docstrings_are_real_and_each_file_is_in_one_split(packages: list[str]) -> None:
    splits = Pydocs(packages=packages).load()
    assert splits.classes == packages and packages[0] not in sys.modules
    files = [{row_id.split(":")[0] for row_id in rows["id"]} for rows in parts_of(splits)]
    assert sum(map(len, files)) == len(set.union(*files))
    texts, labels, ids = columns(splits)
    assert len(texts) == len(set(texts)) > 200 and sentence(5) in texts and sentence(9990) not in texts
    assert all(len(text.split()) >= pydocs.FEWEST_WORDS for text in texts)
    assert all(row_id.startswith(packages[label]) for row_id, label in zip(ids, labels))
    assert 0.08 < len(splits.test) / len(texts) < 0.2 and 0.04 < len(splits.validation) / len(texts) < 0.15


def test_the_same_packages_give_the_same_rows_and_are_read_once(
    packages: list[str], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Pydocs(packages=packages).load()
    shutil.move(own_cache / "pydocs", own_cache / "before")
    assert columns(Pydocs(packages=packages[::-1]).load()) == columns(first)
    monkeypatch.setattr(pydocs, "package_files", lambda _: pytest.fail("read again"))
    assert len(Pydocs(packages=packages).load().train) == len(first.train)


def test_the_fingerprint_follows_the_versions(packages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = Pydocs(packages=packages).fingerprint()
    assert first != Pydocs(packages=[packages[0], "python"]).fingerprint()
    monkeypatch.setattr("xcls.data.packages.package_version", lambda package: "2.0")
    assert Pydocs(packages=packages).fingerprint() != first
    options = [{}, {"min_chars": 1000}, {"per_class": 9}, {"packages": ["python", "numpy"]}]
    assert len({Pysource(**option).fingerprint() for option in options}) == 4


def test_source_files_are_whole_and_masked_and_each_in_one_split(long_packages: list[str]) -> None:
    splits = Pysource(packages=long_packages, min_chars=1000).load()
    assert splits.classes == long_packages and long_packages[0] not in sys.modules
    texts, labels, ids = columns(splits)
    assert len(ids) == len(set(ids)) == len(set(texts)) == 60  # the copies are gone, one of each pair
    assert not any("tests/" in name or "latin" in name or "template" in name for name in ids)
    assert all(text.startswith("from LIB import x\nimport LIB as a\n") and "_pkg" not in text for text in texts)
    assert all(name.startswith(long_packages[label]) for name, label in zip(ids, labels))
    assert [len(rows) for rows in parts_of(splits)] == [46, 6, 8]
    assert all(set(Counter(rows["label"]).values()) == {len(rows) // 2} for rows in parts_of(splits))
    assert texts[ids.index("beta_pkg/m29.py")].endswith(code(129, 69))


def test_a_class_has_at_most_so_many_files_and_none_is_short(long_packages: list[str]) -> None:
    labels = columns(Pysource(packages=long_packages, min_chars=1000, per_class=20).load())[1]
    assert set(Counter(labels).values()) <= {19, 20}  # a copy may be among the twenty
    texts = columns(Pysource(packages=long_packages, min_chars=1800).load())[0]
    assert 0 < len(texts) < 60 and min(map(len, texts)) >= 1800


def test_docstrings_are_found_wherever_they_stand() -> None:
    source = (
        '"""Module."""\nif True:\n    class A:\n        """Class.\n\n        More.\n        """\n'
        '        async def f(self):\n            """Method."""\n'
        'add_docstr(g, """Added {x}.""".format(**common))\nh = _add_docstr(x, r"""Assigned.""")\n"no doc"\n'
    )
    expected = {"Added {x}.", "Assigned.", "Class.\n\nMore.", "Method.", "Module."}
    assert {text for _, text in docstrings(source)} == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import numpy as np; np.array", "import LIB as LIB; LIB.array"),
        ("PyTorch's from_numpy and torch.nn, torchvision", "LIB's LIB and LIB.nn, LIB"),
        ("scikit-learn, sklearn.svm, SciPy, Pandas (pd.DataFrame)", "LIB, LIB.svm, LIB, LIB (LIB.DataFrame)"),
        ("plt.plot of matplotlib.pyplot, Weights & Biases, W&B", "LIB.plot of LIB.LIB, LIB, LIB"),
        ("input, rapid, sparse, a torus, ndarray", "input, rapid, sparse, a torus, ndarray"),
    ],
)
def test_names_are_masked(text: str, expected: str) -> None:
    assert mask_names(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Authors: the SciPy developers\n# SPDX\n\nimport numpy as np\n", "import LIB as LIB\n"),
        ("from sklearn.utils.validation import check\n", "from LIB import check\n"),
        ("    from ..networkx import a  # nx\n", "    from ..LIB import a  # LIB\n"),
        (">>> import torch.nn.functional as F\n", ">>> import LIB as F\n"),
        ("x = torch.nn.relu\nfrom os import path\n", "x = LIB.nn.relu\nfrom os import path\n"),
        ('"""Doc."""\n# comment\nsympy.S\n', '"""Doc."""\n# comment\nLIB.S\n'),
        ("python, compiled, a PIL image, fonttools\n", "python, compiled, a LIB image, LIB\n"),
    ],
)
def test_names_and_licences_are_taken_out(text: str, expected: str) -> None:
    assert masked_source(text, name_masker([*PACKAGES, "PIL"], "nx")) == expected


def test_a_large_file_stays_in_train() -> None:
    splits = assign_files({"large.py": 500, **{f"m{i}.py": 5 for i in range(100)}}, "x")
    counts = Counter(splits.values())
    assert splits["large.py"] == "train" and counts["test"] == 30 and counts["validation"] == 20


def test_near_duplicates_are_dropped_and_others_kept() -> None:
    base = " ".join(f"word{i}" for i in range(60))
    near = base.replace("word30", "other")
    half = " ".join(f"word{i}" for i in range(30)) + " " + " ".join(f"else{i}" for i in range(30))
    assert keep_first([base, near, base.upper() + "!", half, "", "?!"]) == [0, 3]
    assert jaccard(shingles(base, 3), shingles(near, 3)) == pytest.approx(55 / 61)


@pytest.mark.parametrize(
    ("source", "options", "named"),
    [
        (Pydocs, {"packages": ["no_such_package", "python"]}, "no_such_package"),
        (Pydocs, {"packages": ["no.such.package", "python"]}, "no.such.package"),
        (Pydocs, {"packages": ["python"]}, "dataset.source.packages"),
        (Pydocs, {"path": "mine.csv"}, "dataset=files"),
        (Pysource, {"per_class": 0}, "per_class=0"),
    ],
)
def test_what_cannot_be_read_is_said(source: type, options: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        source(**options).fingerprint()


@pytest.mark.slow
def test_the_installed_packages_make_a_data_set() -> None:
    splits = Pydocs().load()
    parts = parts_of(splits)
    total = sum(map(len, parts))
    assert 20_000 < total < 45_000 and splits.classes == list(pydocs.PACKAGES)
    assert 0.12 < len(splits.test) / total < 0.16 and 0.08 < len(splits.validation) / total < 0.11
    for rows in parts:
        assert min(Counter(rows["label"]).values()) > 100
        assert not re.search("numpy|torch|pandas|scipy|wandb", " ".join(rows["text"]).lower())


@pytest.mark.slow
def test_the_installed_packages_make_long_documents() -> None:
    splits = Pysource().load()
    texts = columns(splits)[0]
    lengths = np.array([len(text.encode()) for text in texts])
    assert 1800 < len(texts) < 3300 and splits.classes == sorted(PACKAGES)
    assert lengths.min() >= 4096 and 12_000 < np.median(lengths) < 22_000 and (lengths >= 16_384).mean() > 0.4
    for rows in parts_of(splits):
        counts = Counter(rows["label"])
        assert len(counts) == len(PACKAGES) and max(counts.values()) < 4 * min(counts.values())
    names = re.compile("numpy|torch|pandas|scipy|sklearn|wandb|sympy|networkx|fonttools|matplotlib", re.IGNORECASE)
    assert not any(names.search(text) for text in texts)
