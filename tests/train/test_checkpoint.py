"""Checkpoints: whole or absent, checked, safe, bounded."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any, Callable

import pytest
import torch

from tests.train.harness import Case, live
from xcls.config.schema import UserError
from xcls.runs.record import sha256
from xcls.train.checkpoint import (
    FORMAT,
    SUMS,
    Checkpoints,
    DamagedCheckpoint,
    find_checkpoint,
    load_for_use,
    read_checkpoint,
    write_checkpoint,
)

PAYLOAD = {"weights": torch.arange(1000.0), "step": 7}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "ckpt_step00000007.pt"
    write_checkpoint(path, PAYLOAD)
    found = read_checkpoint(path)
    assert torch.equal(found["weights"], PAYLOAD["weights"]) and found["step"] == 7 and found["format"] == FORMAT
    assert torch.equal(torch.load(path, weights_only=True)["weights"], PAYLOAD["weights"])  # an ordinary torch file
    assert sorted(item.name for item in tmp_path.iterdir()) == [SUMS, path.name]


def flip(content: bytes) -> bytes:
    """With one bit changed."""
    return content[:1500] + bytes([content[1500] ^ 1]) + content[1501:]


@pytest.mark.parametrize("damage", [flip, lambda content: content[:-1], lambda content: b""])
def test_damage_is_noticed(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    write_checkpoint(path, PAYLOAD)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedCheckpoint, match="x.pt is damaged"):
        read_checkpoint(path)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def as_zip(mark: Path) -> bytes:
    """A torch file."""
    torch.save({"format": 1, "model": Evil(mark)}, mark.with_name("zip"))
    return mark.with_name("zip").read_bytes()


def as_script(mark: Path) -> bytes:
    """TorchScript, which is code."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(mark.with_name("script")))
    return mark.with_name("script").read_bytes()


@pytest.mark.parametrize("form", [as_zip, as_script])
def test_a_stranger_s_checkpoint_runs_no_code(form: Any, tmp_path: Path) -> None:
    mark = tmp_path / "owned"
    (tmp_path / "x.pt").write_bytes(form(mark))
    (tmp_path / SUMS).write_text(sha256(tmp_path / "x.pt"))  # a stranger can sum as well
    with pytest.raises(DamagedCheckpoint, match="something other than tensors"):
        read_checkpoint(tmp_path / "x.pt")
    with pytest.raises(UserError, match="something other than tensors"):
        load_for_use(tmp_path, "x.pt")
    assert not mark.exists()


def test_a_full_disk_leaves_the_older_ones_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(folder=tmp_path, keep=2)
    checkpoints.save(1, PAYLOAD, best=True)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device, while ckpt_step00000002.pt was written. Make room"):
        checkpoints.save(2, PAYLOAD, best=True)
    assert sorted(path.name for path in tmp_path.glob("*.pt*")) == [
        "ckpt_best.pt",
        "ckpt_last.pt",
        "ckpt_step00000001.pt",
    ]
    assert not list(tmp_path.glob(".*"))
    assert checkpoints.newest(print)["step"] == 7


def test_a_kill_between_any_two_calls_leaves_something_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that changes the folder, in turn, is the last one made."""

    def dying(real: Any, left: list[None]) -> Any:
        def call(*given: Any) -> Any:
            if not left:
                raise KeyboardInterrupt
            left.pop()
            return real(*given)

        return call

    for calls in range(40):
        folder, left = tmp_path / str(calls), [None] * calls
        folder.mkdir()
        checkpoints = Checkpoints(folder=folder, keep=1)
        checkpoints.save(1, {"at": 1}, best=True)
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            for name in ("replace", "link", "unlink", "fsync"):
                patch.setattr(os, name, dying(getattr(os, name), left))
            checkpoints.save(2, {"at": 2}, best=True)
        assert Checkpoints(folder=folder, keep=1).newest(pytest.fail)["at"] in (1, 2)
        assert read_checkpoint(folder / "ckpt_best.pt")["at"] in (1, 2) and not list(folder.glob(".*"))
        if left:
            break
    assert 4 <= calls < 39, "a save never came to its end"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only there one sees what is synced")
def test_a_power_cut_finds_every_write_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is on the disk before it has its name, and the name before an older checkpoint goes."""
    checkpoints, made = Checkpoints(folder=tmp_path, keep=1), []
    checkpoints.save(1, PAYLOAD, best=True)

    def noted(name: str, real: Any) -> Any:
        def call(where: Any, *given: Any, **named: Any) -> Any:
            target = os.readlink(f"/proc/self/fd/{where}") if name == "fsync" else given[0] if given else where
            made.append((name, Path(target).name))
            return real(where, *given, **named)

        return call

    for owner, name in ((os, "fsync"), (os, "replace"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, noted(name, getattr(owner, name)))
    checkpoints.save(2, PAYLOAD, best=False)
    new, old = "ckpt_step00000002.pt", "ckpt_step00000001.pt"
    wanted = [("fsync", f".{new}.{os.getpid()}.tmp"), ("fsync", SUMS), ("replace", new), ("fsync", tmp_path.name)]
    assert [call for call in made if call in [*wanted, ("unlink", old)]] == [*wanted, ("unlink", old)]


def test_damaged_ones_are_named_and_set_aside(tmp_path: Path) -> None:
    checkpoints = Checkpoints(folder=tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, {"at": step}, best=step == 1)
    for step in (2, 3):
        (tmp_path / f"ckpt_step{step:08d}.pt").write_bytes(b"rubbish")
    said: list[str] = []
    assert checkpoints.newest(said.append)["at"] == 1
    assert [text.split()[0].rsplit("/", 1)[1] for text in said] == ["ckpt_step00000003.pt", "ckpt_step00000002.pt"]
    assert Checkpoints(folder=tmp_path, keep=1).steps() == [tmp_path / "ckpt_step00000001.pt"]


def test_checkpoints_are_found_by_name(tmp_path: Path) -> None:
    Checkpoints(folder=tmp_path, keep=1).save(5, {"at": 5}, best=True)
    for name in ("best", "last", "ckpt_step00000005.pt", str(tmp_path / "ckpt_best.pt")):
        assert load_for_use(tmp_path, name)["at"] == 5
    with pytest.raises(UserError, match="checkpoint=bset.*It has: ckpt_best.pt, ckpt_last.pt, ckpt_step00000005.pt"):
        find_checkpoint(tmp_path, "bset")
    (tmp_path / "ckpt_best.pt").write_bytes(b"x" * 500)
    with pytest.raises(UserError, match="damaged"):
        load_for_use(tmp_path, "best")


def test_a_run_s_checkpoint_is_complete_and_plain(tmp_path: Path) -> None:
    live(tmp_path, Case("finetune", "sdpa"), max_steps=2)
    payload = read_checkpoint(tmp_path / "ckpt_last.pt")
    wanted = {"format", "model", "optimizer", "scheduler", "scaler", "tokenizer", "random", "data", "config"}
    assert wanted | {"progress", "faults", "wandb_id", "rows", "classes", "hash", "stage"} <= set(payload)
    assert payload["data"] == {"epoch": 0, "step_in_epoch": 2, "seed": 0}


def test_a_checkpoint_without_its_checksum_says_what_to_do(tmp_path: Path) -> None:
    """One of an older version, or a copy of one file: a resume must not take it for damaged and set it aside."""
    Checkpoints(folder=tmp_path, keep=1).save(5, {"at": 5}, best=True)
    (tmp_path / SUMS).unlink()
    with pytest.raises(UserError, match=SUMS):
        Checkpoints(folder=tmp_path, keep=1).newest(pytest.fail)
    assert not list(tmp_path.glob("*.damaged"))
