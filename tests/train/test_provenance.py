"""The record names a commit, and what a clone of it lacks lies beside: changed and new sources, no secrets."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from tests.samples import make_logger
from xcls.runs.record import read_record
from xcls.train import provenance
from xcls.train.provenance import find_sources, note_sources

TEXTS = {
    "xcls/attention/base.py": "x = 1\n",
    "conf/attention/sdpa.yaml": "name: sdpa\n",
    "run.py": "print('run')\n",
    "README.md": "words\n",
    ".gitignore": "/multirun/\nscratch.py\n",
}


def git(folder: Path, *words: str) -> str:
    named = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", *named, *words], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def write(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode("latin-1"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one commit of TEXTS."""
    folder = tmp_path / "tree"
    write(folder, TEXTS)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return folder


def test_a_clean_tree_is_its_commit_and_nothing_else(tree: Path) -> None:
    write(tree, {"multirun/sweep/record.json": "{}", "README.md": "other\n", "notes.txt": "", "scratch.py": "y = 2\n"})
    found = find_sources((), tree)
    assert (found.name, found.patch, found.lacking) == (git(tree, "rev-parse", "HEAD"), "", {})


def test_a_clone_with_the_patch_has_every_source_that_is_here(tree: Path, tmp_path: Path) -> None:
    here = {
        "xcls/attention/base.py": "x = 2\r\n",
        "xcls/attention/mine.py": "import scratch  # no newline at the end",
        "conf/attention/my one.yaml": "name: mine\n",
        "scratch.py": "y = 2\n",  # git ignores it, and the run uses it
    }
    write(tree, here)
    (tree / "conf" / "attention" / "sdpa.yaml").unlink()
    before = git(tree, "status", "--porcelain", "--ignored")
    logger = make_logger(tmp_path / "run")
    write(tmp_path, {"run/code.patch": "of an earlier process"})
    with logger:
        note_sources(logger, find_sources([tree / "scratch.py", tree / "xcls" / "attention" / "base.py"], tree))
    record, patch = read_record(tmp_path / "run"), (tmp_path / "run" / "code.patch").read_bytes()
    assert record.commit == git(tree, "rev-parse", "HEAD") + "-dirty" and record.warnings == []
    assert record.files["code.patch"] == hashlib.sha256(patch).hexdigest()
    assert git(tree, "status", "--porcelain", "--ignored") == before
    git(tmp_path, "clone", "-q", "tree", "clone")
    subprocess.run(["git", "apply"], cwd=tmp_path / "clone", input=patch, check=True)
    for name, text in here.items():
        assert (tmp_path / "clone" / name).read_bytes() == text.encode(), name
    assert not (tmp_path / "clone" / "conf" / "attention" / "sdpa.yaml").exists()


def test_what_is_not_kept_is_named_with_its_reason(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "correct-horse-battery")
    monkeypatch.setattr(provenance, "MOST_BYTES", 2_000)
    lacking = {
        "xcls/leak.py": "# correct-horse-battery\n",
        "xcls/old.py": "# caf\xe9\n",
        "xcls/big.py": "x = 1\n" * 1_000,
    }
    write(tree, {**lacking, "xcls/fine.py": "layer(pad_token=mask_token, key=key)\n"})
    write(tmp_path, {"outside.py": "z = 3\n"})
    found = find_sources([tmp_path / "outside.py"], tree)
    assert set(found.lacking) == {*lacking, str(tmp_path / "outside.py")}
    assert "2,000" in found.lacking["xcls/big.py"] and "UTF-8" in found.lacking["xcls/old.py"]
    assert "xcls/fine.py" in found.patch and "horse" not in found.patch
    with make_logger(tmp_path / "run") as logger:
        note_sources(logger, found)
    assert {warning.split()[0] for warning in read_record(tmp_path / "run").warnings} == set(found.lacking)


def test_without_git_nothing_is_known(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_sources((), tmp_path).name is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_sources((), tree).name is None
