"""Checkpoints: whole or absent, with a checksum, and safe to load from a stranger.

A file is an ordinary `torch.save` archive whose zip comment holds the sha256 of the rest, so that file and checksum can
never disagree by a crash between two writes. It is written beside its place, synced and renamed. It holds tensors and
plain types only and is read with `weights_only=True`, which runs no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any, Callable

import torch

from xcls.schema import UserError

FORMAT = 1
MARK = b"sha256:"
COMMENT = len(MARK) + 64
STEP_FILE = re.compile(r"ckpt_step(\d{8,})\.pt")


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be used: its checksum or its form is wrong. The message names the file."""


def write_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    """Writes `payload` (tensors and plain types) to `path`: synced, then renamed, so that it is whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save({"format": FORMAT, **payload}, temporary)
        with open(temporary, "r+b") as file:
            digest = hashlib.sha256()
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
            file.seek(-2, os.SEEK_END)  # the length of the zip comment, 0 so far
            file.write(COMMENT.to_bytes(2, "little") + MARK + digest.hexdigest().encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU. Raises DamagedCheckpoint, or UserError for one of a newer format."""
    if not _sound(path):
        raise DamagedCheckpoint(f"{path} is damaged or cut short: its checksum does not match.")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError) as error:  # not what memory or the disk refuse: that is no damage
        raise DamagedCheckpoint(f"{path} holds something else than tensors and plain types: {error}") from error
    version = payload.get("format") if isinstance(payload, dict) else None
    if not isinstance(version, int):
        raise DamagedCheckpoint(f"{path} is not a checkpoint of xcls: it names no format.")
    if version > FORMAT:
        raise UserError(f"{path} has format {version}; this version of xcls reads up to {FORMAT}. Use a newer one.")
    return payload


def _sound(path: Path) -> bool:
    """Does the checksum in the comment fit the rest of the file?"""
    digest, left = hashlib.sha256(), path.stat().st_size - COMMENT - 2
    if left < 22:
        return False
    with open(path, "rb") as file:
        while left:
            block = file.read(min(left, 1 << 20))
            if not block:
                return False
            digest.update(block)
            left -= len(block)
        tail = file.read()
    digest.update(b"\0\0")  # the length of the comment, as it was when the sum was made
    return tail == COMMENT.to_bytes(2, "little") + MARK + digest.hexdigest().encode()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file beside its place, syncs and renames it: whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` outlive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _same_file(source: Path, target: Path) -> None:
    """Makes `target` another name of `source`, at once; a copy where the file system has no hard links."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


class Checkpoints:
    """The checkpoints of one run: `ckpt_step00001234.pt` (the newest `keep`), `ckpt_last.pt`, `ckpt_best.pt`."""

    def __init__(self, *, folder: Path, keep: int) -> None:
        self.folder = Path(folder)
        self.keep = keep
        for leftover in self.folder.glob(".ckpt_*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)

    def save(self, step: int, payload: dict[str, Any], *, best: bool) -> Path:
        """Writes the checkpoint of `step`, points `last` (and `best`) to it, drops the oldest. Returns its path."""
        path = self.folder / f"ckpt_step{step:08d}.pt"
        write_checkpoint(path, payload)
        if best:
            _same_file(path, self.folder / "ckpt_best.pt")
        _same_file(path, self.folder / "ckpt_last.pt")
        for old in self.steps()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def steps(self) -> list[Path]:
        """The step files, the newest first."""
        found = [path for path in self.folder.glob("ckpt_step*.pt") if STEP_FILE.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(STEP_FILE.fullmatch(path.name).group(1)), reverse=True)

    def newest(self, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest checkpoint that is whole; None where there is none.

        Each damaged one is named in a warning and renamed to `<name>.damaged`, so that it counts no more.
        """
        for path in [*self.steps(), self.folder / "ckpt_last.pt", self.folder / "ckpt_best.pt"]:
            if not path.exists():
                continue
            try:
                return read_checkpoint(path)
            except DamagedCheckpoint as error:
                path.replace(path.with_name(path.name + ".damaged"))
                warn(f"{error} The one before is used, if there is one.")
        return None


def find_checkpoint(folder: Path, name: str) -> Path:
    """The file that `checkpoint=` names in a run's folder: best, last, or a file. Raises UserError."""
    folder = Path(folder)
    known = {"best": folder / "ckpt_best.pt", "last": folder / "ckpt_last.pt"}
    for path in (known.get(name), folder / name, Path(name)):
        if path is not None and path.is_file():
            return path
    present = ", ".join(sorted(path.name for path in folder.glob("ckpt_*.pt"))) or "none"
    raise UserError(f"checkpoint={name}: no such checkpoint in {folder}. There: {present}.")


def load_for_use(folder: Path, name: str) -> dict[str, Any]:
    """Reads the checkpoint `name` (best, last, a file) of a run, to start from it or evaluate it. Raises UserError."""
    path = find_checkpoint(folder, name)
    try:
        return read_checkpoint(path)
    except DamagedCheckpoint as error:
        raise UserError(f"{error}\nName another one with checkpoint=….") from error
