"""Whole source files as documents, from packages made for the test, and once (slow) from the installed ones."""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from xcls.config.schema import UserError
from xcls.data.packages import name_masker
from xcls.data.pysource import PACKAGES, Pysource, masked_source

LICENCE = "#!/usr/bin/env python\n# Copyright: the alpha_pkg developers\n\n# mypy: strict\n"


def module(seed: int, lines: int) -> str:
    draw = random.Random(seed)
    names = ["".join(draw.choices("abcdefgh", k=6)) for _ in range(12)]
    return "\n".join(
        f"    {draw.choice(names)} = {draw.choice(names)}({draw.choice(names)}, {draw.randrange(1000)})"
        for _ in range(lines)
    )


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two packages with forty long modules, two copies of one, a short one, one that is not UTF-8, and tests."""
    for number, package in enumerate(("alpha_pkg", "beta_pkg")):
        folder = tmp_path / "lib" / package
        (folder / "tests").mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('nothing may import this')")
        (folder / "short.py").write_text("x = 1\n")
        (folder / "latin.py").write_bytes(b"# \xe9\n" * 1000)
        (folder / "tests" / "test_a.py").write_text(module(9999, 60))
        for file in range(40):
            text = f"from {package}.core.sub import x\nimport {package} as a\n" + module(100 * number + file, 40 + file)
            (folder / f"m{file}.py").write_text(LICENCE + text)
        (folder / "copy.py").write_text(LICENCE + (folder / "m0.py").read_text() + "\n# a copy\n")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    return ["alpha_pkg", "beta_pkg"]


def test_documents_are_whole_masked_files_each_in_one_split(packages: list[str]) -> None:
    splits = Pysource(packages=packages, min_chars=1000).load()
    assert splits.classes == packages and packages[0] not in sys.modules
    parts = [splits.train, splits.validation, splits.test]
    ids, texts = ([value for rows in parts for value in rows[name]] for name in ("id", "text"))
    assert len(ids) == len(set(ids)) == len(set(texts)) == 80  # the copies are gone, one of each pair
    assert not any("tests/" in name or "short" in name or "latin" in name for name in ids)
    assert all(text.startswith("from LIB import x\nimport LIB as a\n    ") and "_pkg" not in text for text in texts)
    assert [len(rows) for rows in parts] == [60, 8, 12]
    for rows in parts:
        assert set(Counter(rows["label"]).values()) == {len(rows) // 2}
        assert all(name.startswith(packages[label]) for name, label in zip(rows["id"], rows["label"]))
    whole = texts[ids.index("beta_pkg/m39.py")]
    assert whole.endswith(module(139, 79)) and len(whole) > 2000


def test_a_class_has_at_most_so_many_files(packages: list[str]) -> None:
    splits = Pysource(packages=packages, min_chars=1000, per_class=20).load()
    labels = [label for rows in (splits.train, splits.validation, splits.test) for label in list(rows["label"])]
    assert set(Counter(labels).values()) <= {19, 20}  # a copy may be among the twenty
    longer = Pysource(packages=packages, min_chars=2000).load()
    assert 0 < len(longer.train) < 60 and min(map(len, list(longer.train["text"]))) >= 2000


def test_the_fingerprint_follows_the_options() -> None:
    options = [{}, {"min_chars": 1000}, {"per_class": 9}, {"packages": ["python", "numpy"]}]
    assert len({Pysource(**option).fingerprint() for option in options}) == 4


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


def test_an_option_that_allows_no_file_is_refused() -> None:
    with pytest.raises(UserError, match="per_class=0"):
        Pysource(per_class=0)


@pytest.mark.slow
def test_the_installed_packages_make_long_documents() -> None:
    splits = Pysource().load()
    parts = [splits.train, splits.validation, splits.test]
    texts = [text for rows in parts for text in rows["text"]]
    lengths = np.array([len(text.encode()) for text in texts])
    assert 1800 < len(texts) < 3300 and splits.classes == sorted(PACKAGES)
    assert lengths.min() >= 4096 and 12_000 < np.median(lengths) < 22_000 and (lengths >= 16_384).mean() > 0.4
    for rows in parts:
        counts = Counter(rows["label"])
        assert len(counts) == len(PACKAGES) and max(counts.values()) < 4 * min(counts.values())
    names = re.compile("numpy|torch|pandas|scipy|sklearn|wandb|sympy|networkx|fonttools|matplotlib", re.IGNORECASE)
    assert not any(names.search(text) for text in texts)
