"""Checkpoints: whole or absent, with a checksum, and safe to load from a stranger.

A file is what torch.save writes. It is written beside its place, synced and renamed; before that its sha256 is added to
`ckpt.sha256` in the same folder, so that a crash between the two harms nothing. A file holds tensors and plain types
only and is read with `weights_only=True`, which runs no code.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, cast

import torch

from xcls.config.schema import UserError
from xcls.runs.disk import remedy
from xcls.runs.paths import at
from xcls.runs.record import sha256
from xcls.train.faults import is_out_of_memory

FORMAT = 3  # what is written and can be read
SUMS = "ckpt.sha256"  # lines of checksums and names, as sha256sum has them
STEP_FILE = re.compile(r"ckpt_step(\d{8,})\.pt")
LAST, BEST = "ckpt_last.pt", "ckpt_best.pt"
BEFORE = "ckpt_best_before.pt"  # the best one before the best: what an older checkpoint means by it


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be used: its checksum or its form is wrong. The message names the file."""


class _Summed:
    """What torch.save writes into: a file, and the sha256 of what went there.

    Whatever a write raises is kept for afterwards: torch's C++ would make "file write failed" of a full disk.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: BaseException | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Writes all of `data`, or nothing after the first error."""
        if self.error is None:
            try:
                self.file.write(data)
                self.digest.update(data)
            except BaseException as error:  # a second Ctrl-C too
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Asked for by torch.save; the file is flushed once, at its end."""


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` at the end of the context, or is removed on an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file beside its place, syncs and renames it: whole or absent."""
    with _replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        _sync(file)


def write_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    """Writes `payload` (tensors and plain types) to `path`: synced, then renamed, so that it is whole or absent.

    Raises OSError, with what to do, where the disk does not take it.
    """
    try:
        with _replacing(path) as temporary:
            with open(temporary, "wb") as file:
                summed = _Summed(file)
                torch.save({"format": FORMAT, **payload}, cast(BinaryIO, summed))
                if summed.error is not None:
                    raise summed.error
                _sync(file)
            with open(path.with_name(SUMS), "ab") as sums:
                sums.write(f"\n{summed.digest.hexdigest()}  {path.name}".encode())  # after a line that a crash cut off
                _sync(sums)
        with contextlib.suppress(OSError):  # the rename outlives a power cut, where a folder can be synced
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        what = f"{remedy(error, place=path.parent)}; resume=true then goes on from the checkpoint before it"
        raise OSError(error.errno, f"{error.strerror or error}, while {path.name} was written. {what}") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU. Raises DamagedCheckpoint, or UserError for one of another version."""
    sums = path.with_name(SUMS)
    if not sums.is_file():
        raise UserError(
            f"{path}: there is no {SUMS} beside it: it is of an older version of xcls, or a copy without its checksum. "
            "Use the version that wrote it, or copy that file too."
        )
    if sha256(path) not in re.findall(
        r"^[0-9a-f]{64}", sums.read_text(encoding="ascii", errors="replace"), re.MULTILINE
    ):
        raise DamagedCheckpoint(f"{path} is damaged or cut short: its checksum does not match.")
    try:
        if not _is_archive(path):
            raise ValueError("it is not what torch.save writes")
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a stranger's file can raise anything
        if isinstance(error, OSError) or is_out_of_memory(error):
            raise  # what memory or the disk refuse is no damage
        what = " ".join(str(error).split())[:300]
        raise DamagedCheckpoint(f"{path} holds something else than tensors and plain types: {what}") from error
    version = payload.get("format") if isinstance(payload, dict) else None
    if version != FORMAT:
        raise UserError(
            f"{path} has format {version}, and this version of xcls reads {FORMAT}. Use the one that wrote it."
        )
    return payload


def _is_archive(path: Path) -> bool:
    """Is it what torch.save writes today? Older forms and TorchScript can run code in torch before 2.6, whatever
    `weights_only` says (CVE-2025-32434)."""
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    return "data.pkl" in names and "constants.pkl" not in names


def _same_file(source: Path, target: Path) -> None:
    """Makes `target` another name of `source`, at once; a copy where the file system has no hard links."""
    with _replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())


class Checkpoints:
    """The checkpoints of one run: `ckpt_step00001234.pt`, the newest `keep` of them, and under names of their own the
    last, the best and the best before it. With hard links a name costs no space.
    """

    def __init__(self, *, folder: Path, keep: int) -> None:
        self.folder = Path(folder)
        self.keep = keep
        for leftover in self.folder.glob(".ckpt_*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)

    def save(self, step: int, payload: dict[str, Any], *, best: bool) -> Path:
        """Writes the checkpoint of `step`, names it, drops the oldest. Returns its path."""
        path = self._file(step)
        write_checkpoint(path, payload)
        self.name(step, best=best)
        for old in self.steps()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def name(self, step: int, *, best: bool) -> None:
        """Names the checkpoint of `step` the last, and the best. Once more on resume: a kill may have
        come before the names."""
        path, best_path = self._file(step), self.folder / BEST
        if best and not (best_path.exists() and filecmp.cmp(best_path, path, shallow=False)):
            if best_path.exists():
                _same_file(best_path, self.folder / BEFORE)
            _same_file(path, best_path)
        _same_file(path, self.folder / LAST)

    def steps(self) -> list[Path]:
        """The step files, the newest first."""
        found = [path for path in self.folder.glob("ckpt_step*.pt") if STEP_FILE.fullmatch(path.name)]
        return sorted(found, key=_step_of, reverse=True)

    def newest(self, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest checkpoint that is whole and whose best step is still there; None where there is none.

        Each one that cannot be used is named in a warning and renamed to `<name>.damaged`, so that it counts no more.
        """
        for path in [*self.steps(), *(self.folder / name for name in (LAST, BEST, BEFORE))]:
            payload = self._read(path, warn)
            if payload is None:
                continue
            progress = payload.get("progress", {})
            best = progress.get("best_step")
            if best is not None and best != progress["step"] and not self._find_best(best, warn):
                warn(f"{path} is left aside: the checkpoint of its best step, {best}, is gone.")
                _set_aside(path)
                continue
            if "step" in progress and not self._file(progress["step"]).exists():
                _same_file(path, self._file(progress["step"]))
            return payload
        return None

    def _file(self, step: int) -> Path:
        return self.folder / f"ckpt_step{step:08d}.pt"

    def _read(self, path: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """Its content; None where it is not there, or damaged, which is a warning."""
        try:
            return read_checkpoint(path) if path.exists() else None
        except DamagedCheckpoint as error:
            _set_aside(path)
            warn(f"{error} The one before is used, if there is one.")
            return None

    def _find_best(self, step: int, warn: Callable[[str], None]) -> bool:
        """Finds the checkpoint of the best step under one of its names and names it the best again."""
        for path in (self.folder / BEST, self._file(step), self.folder / BEFORE):
            payload = self._read(path, warn)
            if payload is not None and payload["progress"]["step"] == step:
                if path.name != BEST:
                    _same_file(path, self.folder / BEST)
                return True
        return False


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("ckpt_step"))


def _set_aside(path: Path) -> None:
    path.replace(path.with_name(path.name + ".damaged"))


def find_checkpoint(folder: Path, name: str) -> Path:
    """The file that `checkpoint=` names in a run's folder: best, last, or a file. Raises UserError."""
    folder = Path(folder)
    known = {"best": folder / BEST, "last": folder / LAST}
    for path in (known.get(name), folder / at(name), at(name)):
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


def fit(load: Callable[[], Any], what: str) -> None:
    """Runs `load`, which puts a checkpoint's state in place. Raises UserError where it does not fit."""
    try:
        load()
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        remedy = "Use the version that wrote it"
        raise UserError(f"{what} does not fit this version of xcls: {reason}\n{remedy}.") from error
