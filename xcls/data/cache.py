"""The cache folder, and builds that several jobs share: the first job builds, the others wait and read.

The cache can be deleted at any time; what is needed is built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Callable

from filelock import FileLock, Timeout

from xcls.config.schema import UserError
from xcls.runs.disk import is_full


def cache_folder() -> Path:
    """`$XCLS_CACHE`, else `~/.cache/xcls`. Raises UserError if the user has no home folder."""
    try:
        return Path(os.environ.get("XCLS_CACHE") or "~/.cache/xcls").expanduser()
    except RuntimeError as error:
        raise UserError(
            "HOME is not set, and this user has no home folder. Set XCLS_CACHE to a folder for cached files."
        ) from error


def digest(parts: Any) -> str:
    """sha256 in hex of plain values (str, int, bool, None, lists and dicts of them), the same on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def build_once(path: Path, build: Callable[[Path], None], *, what: str) -> Path:
    """Makes `path` (a file or a folder) by `build(temporary path)` unless it is there, under a lock between processes.

    The result appears by one rename, so that no process reads an incomplete one; the lock ends with its process. Raises
    UserError when the folder cannot be written, or the input cannot be read.
    """
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(path.name + ".lock"))
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            print(f"xcls: waiting for another process that is building {what}", file=sys.stderr, flush=True)
            lock.acquire()
        try:
            if not path.exists():
                _build(path, build)
        finally:
            lock.release()
    except OSError as error:
        remedy = "Make room on that disk" if is_full(error) else "Check that it can be read and written"
        place = error.filename or path.parent
        raise UserError(
            f"{place}: {error.strerror or error}, while building {what}. {remedy}, or set XCLS_CACHE to another folder."
        ) from error
    return path


def _build(path: Path, build: Callable[[Path], None]) -> None:
    """Builds beside `path` and renames, with the lock held; first removes the remains of a killed process."""
    temporary = path.with_name(f"{path.name}.part")
    _remove(temporary)
    try:
        build(temporary)
        for file in [temporary, *temporary.rglob("*")]:  # before the rename, or a power cut may leave half
            if file.is_file():
                with open(file, "rb") as stream:
                    os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
