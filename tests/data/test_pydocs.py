"""The embedded data set, from packages made for the test, and once (slow) from the installed ones."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from xcls.config.schema import UserError
from xcls.data import pydocs
from xcls.data.near_duplicates import jaccard, keep_first, shingles
from xcls.data.pydocs import Pydocs, assign_files, docstrings, mask_names

WORDS = "the of a matrix value returns index given shape object element sorted stable range while each between".split()


def sentence(seed: int) -> str:
    return " ".join(
        WORDS[(seed * 7 + step * (seed % 5 + 1)) % len(WORDS)] + ("" if step % 3 else str(seed)) for step in range(14)
    )


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two packages with thirty modules of four docstrings, some of them copies, a broken file, and tests."""
    for number, package in enumerate(("alpha_pkg", "beta_pkg")):
        folder = tmp_path / "lib" / package
        (folder / "tests").mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('nothing may import this')")
        (folder / "template.py").write_text("def {name}(:")
        (folder / "tests" / "test_a.py").write_text(f'"""{sentence(9999)}"""')
        for module in range(30):
            functions = "".join(
                f'def f{i}():\n    """{sentence(1000 * number + 10 * module + i)}"""\n' for i in range(4)
            )
            (folder / f"m{module}.py").write_text(
                functions + 'def same():\n    """' + sentence(5) + '"""\ndef short():\n    """Too short."""\n'
            )
    monkeypatch.syspath_prepend(tmp_path / "lib")
    return ["alpha_pkg", "beta_pkg"]


def test_documents_are_real_and_each_file_is_in_one_split(packages: list[str]) -> None:
    splits = Pydocs(packages=packages).load()
    assert splits.classes == packages and packages[0] not in sys.modules
    parts = [splits.train, splits.validation, splits.test]
    files = [{row_id.split(":")[0] for row_id in rows["id"]} for rows in parts]
    assert sum(map(len, files)) == len(set.union(*files))
    texts, labels, ids = ([value for rows in parts for value in rows[name]] for name in ("text", "label", "id"))
    assert len(texts) == len(set(texts)) > 200 and sentence(5) in texts and sentence(9999) not in texts
    assert all(len(text.split()) >= pydocs.FEWEST_WORDS for text in texts)
    assert all(row_id.startswith(packages[label]) for row_id, label in zip(ids, labels))
    assert 0.08 < len(splits.test) / len(texts) < 0.2 and 0.04 < len(splits.validation) / len(texts) < 0.15


def test_the_same_packages_give_the_same_rows_and_are_read_once(
    packages: list[str], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Pydocs(packages=packages).load()
    built = next((own_cache / "pydocs").glob("*.parquet"))
    content = built.read_bytes()
    built.unlink()
    assert list(Pydocs(packages=packages[::-1]).load().train["id"]) == list(first.train["id"])
    assert built.read_bytes() == content
    monkeypatch.setattr(pydocs, "package_files", lambda _: pytest.fail("read again"))
    assert len(Pydocs(packages=packages).load().train) == len(first.train)


def test_the_fingerprint_follows_the_versions(packages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = Pydocs(packages=packages).fingerprint()
    assert first != Pydocs(packages=[packages[0], "python"]).fingerprint()
    monkeypatch.setattr(pydocs, "package_version", lambda package: "2.0")
    assert Pydocs(packages=packages).fingerprint() != first


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
    ("options", "named"),
    [
        ({"packages": ["no_such_package", "python"]}, "no_such_package"),
        ({"packages": ["no.such.package", "python"]}, "no.such.package"),
        ({"packages": ["python"]}, "dataset.source.packages"),
        ({"path": "mine.csv"}, "dataset=files"),
    ],
)
def test_what_cannot_be_read_is_said(options: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        Pydocs(**options).fingerprint()


@pytest.mark.slow
def test_the_installed_packages_make_a_data_set() -> None:
    splits = Pydocs().load()
    parts = [splits.train, splits.validation, splits.test]
    total = sum(map(len, parts))
    assert 20_000 < total < 45_000 and splits.classes == list(pydocs.PACKAGES)
    assert 0.12 < len(splits.test) / total < 0.16 and 0.08 < len(splits.validation) / total < 0.11
    for rows in parts:
        assert min(Counter(rows["label"]).values()) > 100
        assert not re.search("numpy|torch|pandas|scipy|wandb", " ".join(rows["text"]).lower())
