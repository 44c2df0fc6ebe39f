"""Checkpoints: complete or absent, with a checksum, and safe to load even from an unknown source.

torch.save writes a temporary file, its sha256 is added to `ckpt.sha256` in the same folder, then the file is renamed:
a crash at any point leaves no half-written checkpoint. A file contains tensors and plain types only and is read with
`weights_only=True`, which runs no code.
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

FORMAT = 3  # add 1 when this code cannot use older files: a key that it reads is new, renamed or has a new meaning
SUMS = "ckpt.sha256"  # lines of checksum and name, in the format of sha256sum
STEP_FILE = re.compile(r"ckpt_step(\d{8,})\.pt")
LAST, BEST = "ckpt_last.pt", "ckpt_best.pt"
BEFORE = "ckpt_best_before.pt"  # the previous best one: an older checkpoint may refer to it


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be used: its checksum or its form is wrong. The message names the file."""


class _Summed:
    """A file for torch.save that also computes the sha256 of its content.

    An error of a write is kept in `error`: if it were raised here, torch's C++ would turn a full disk into
    "file write failed".
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
            except BaseException as error:  # also a second Ctrl-C
                self.error = error
        return len(data)

    def flush(self) -> None:
        """torch.save needs this method; the file is flushed once, at the end."""


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path that replaces `path` at the end of the context, or is removed after an error."""
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
    """Writes a temporary file, syncs and renames it, so that `path` is complete or absent."""
    with _replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        _sync(file)


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes `checkpoint` (tensors and plain types) to `path`, which is then complete or absent.

    Raises OSError, with a remedy, if the disk refuses the file.
    """
    try:
        with _replacing(path) as temporary:
            with open(temporary, "wb") as file:
                summed = _Summed(file)
                torch.save({"format": FORMAT, **checkpoint}, cast(BinaryIO, summed))
                if summed.error is not None:
                    raise summed.error
                _sync(file)
            with open(path.with_name(SUMS), "ab") as sums:
                # Begins a new line, since a crash may have cut the last one
                sums.write(f"\n{summed.digest.hexdigest()}  {path.name}".encode())
                _sync(sums)
        with contextlib.suppress(OSError):  # so that the rename survives a power cut, if folders can be synced
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        what = f"{remedy(error, place=path.parent)}; resume=true then continues from the previous checkpoint"
        raise OSError(error.errno, f"{error.strerror or error}, while {path.name} was written. {what}") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU. Raises DamagedCheckpoint, or UserError if another version wrote it."""
    sums = path.with_name(SUMS)
    if not sums.is_file():
        raise UserError(
            f"{path}: {SUMS} is not in its folder: an older xcls wrote it, or it was copied without that file. "
            "Use the version that wrote it, or copy that file too."
        )
    if sha256(path) not in re.findall(
        r"^[0-9a-f]{64}", sums.read_text(encoding="ascii", errors="replace"), re.MULTILINE
    ):
        raise DamagedCheckpoint(f"{path} is damaged or cut short: its checksum does not match.")
    try:
        if not _is_archive(path):
            raise ValueError("it is not what torch.save writes")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file from an unknown source can raise anything
        if isinstance(error, OSError) or is_out_of_memory(error):
            raise  # lack of memory or a disk error does not mean damage
        what = " ".join(str(error).split())[:300]
        raise DamagedCheckpoint(f"{path} contains something other than tensors and plain types: {what}") from error
    version = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if version != FORMAT:
        raise UserError(
            f"{path} has format {version}, and this version of xcls reads {FORMAT}. Use the one that wrote it."
        )
    return checkpoint


def _is_archive(path: Path) -> bool:
    """Is it in the format of today's torch.save? Older formats and TorchScript can run code in torch before 2.6, even
    with `weights_only` (CVE-2025-32434)."""
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    return "data.pkl" in names and "constants.pkl" not in names


def _same_file(source: Path, target: Path) -> None:
    """Makes `target` a hard link to `source`, or a copy if the file system has no hard links."""
    with _replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())


class Checkpoints:
    """The checkpoints of one run: the newest `keep` files `ckpt_step00001234.pt`, and links to the last, the best and
    the previous best one. A hard link takes no space.
    """

    def __init__(self, *, folder: Path, keep: int) -> None:
        self.folder = Path(folder)
        self.keep = keep
        for leftover in self.folder.glob(".ckpt_*.tmp"):  # from a process that was killed while it wrote
            leftover.unlink(missing_ok=True)

    def save(self, step: int, checkpoint: dict[str, Any], *, best: bool) -> Path:
        """Writes the checkpoint of `step`, links it as last (and best), deletes the oldest. Returns its path."""
        path = self._file(step)
        write_checkpoint(path, checkpoint)
        self.name(step, best=best)
        for old in self.steps()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def name(self, step: int, *, best: bool) -> None:
        """Links the checkpoint of `step` as the last, and as the best if `best`. Called again on resume, since a kill
        may have come before the links were made."""
        path, best_path = self._file(step), self.folder / BEST
        if best and not (best_path.exists() and filecmp.cmp(best_path, path, shallow=False)):
            if best_path.exists():
                _same_file(best_path, self.folder / BEFORE)
            _same_file(path, best_path)
        _same_file(path, self.folder / LAST)

    def steps(self) -> list[Path]:
        """The step files, newest first."""
        found = [path for path in self.folder.glob("ckpt_step*.pt") if STEP_FILE.fullmatch(path.name)]
        return sorted(found, key=_step_of, reverse=True)

    def newest(self, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest undamaged checkpoint whose best step still has a checkpoint; None if there is none.

        Each unusable one is named in a warning and renamed to `<name>.damaged`, so that it is not tried again.
        """
        for path in [*self.steps(), *(self.folder / name for name in (LAST, BEST, BEFORE))]:
            checkpoint = self._read(path, warn)
            if checkpoint is None:
                continue
            progress = checkpoint.get("progress", {})
            best = progress.get("best_step")
            if best is not None and best != progress["step"] and not self._find_best(best, warn):
                warn(f"{path} is not used: the checkpoint of its best step, {best}, is gone.")
                _set_aside(path)
                continue
            if "step" in progress and not self._file(progress["step"]).exists():
                _same_file(path, self._file(progress["step"]))
            return checkpoint
        return None

    def _file(self, step: int) -> Path:
        return self.folder / f"ckpt_step{step:08d}.pt"

    def _read(self, path: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """The content of `path`; None if it is absent, or (with a warning) damaged."""
        try:
            return read_checkpoint(path) if path.exists() else None
        except DamagedCheckpoint as error:
            _set_aside(path)
            warn(f"{error} The previous checkpoint is used, if there is one.")
            return None

    def _find_best(self, step: int, warn: Callable[[str], None]) -> bool:
        """Finds the checkpoint of the best step under one of its names and links it as the best again."""
        for path in (self.folder / BEST, self._file(step), self.folder / BEFORE):
            checkpoint = self._read(path, warn)
            if checkpoint is not None and checkpoint["progress"]["step"] == step:
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
    raise UserError(f"checkpoint={name}: no such checkpoint in {folder}. It has: {present}.")


def load_for_use(folder: Path, name: str) -> dict[str, Any]:
    """Reads the checkpoint `name` (best, last or a file) of a run, to start from or evaluate it. Raises UserError."""
    path = find_checkpoint(folder, name)
    try:
        return read_checkpoint(path)
    except DamagedCheckpoint as error:
        raise UserError(f"{error}\nName another one with checkpoint=….") from error


def fit(load: Callable[[], Any], what: str) -> None:
    """Runs `load`, which loads the state of a checkpoint. Raises UserError if it does not fit."""
    try:
        load()
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        remedy = "Use the version that wrote it"
        raise UserError(f"{what} does not fit this version of xcls: {reason}\n{remedy}.") from error
