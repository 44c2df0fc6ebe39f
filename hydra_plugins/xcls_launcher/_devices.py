"""Which devices this server has, and who holds which: leases that every sweep of every user on the host can see.

A lease is a `flock` on a file per device. The launcher takes it and hands it to the job's guard (_guard.py), which holds it
until nothing of the job is left, so a launcher or a job that is killed gives its device back. `flock` and not `lockf`,
because it stays with the open file when it is handed on; no process of the job ever inherits it (Popen closes it), so a
DataLoader worker that outlives its job keeps nothing.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Sequence

from xcls.config.schema import UserError

CPU = "cpu"
FOLDER = "/tmp/xcls-leases"  # one for the host, whoever computes; TMPDIR may differ between users
NONE = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that hide every GPU


def visible_devices(configured: Sequence[str] | None) -> list[str]:
    """The names for CUDA_VISIBLE_DEVICES: as configured, else the caller's own, else every GPU (or MIG instance) there is.

    Index, UUID and MIG names are handed on as they are; GPUs that we list ourselves go by UUID.
    """
    if configured is not None:
        return list(dict.fromkeys(str(name).strip() for name in configured))
    callers = os.environ.get("CUDA_VISIBLE_DEVICES")
    if callers is not None:
        return (
            []
            if callers.strip() in NONE
            else list(dict.fromkeys(name.strip() for name in callers.split(",") if name.strip()))
        )
    return [name for _, name in listed()]


@lru_cache(maxsize=1)
def listed() -> tuple[tuple[str, str], ...]:
    """(index of the GPU, UUID) as `nvidia-smi -L` tells; a GPU that is cut into MIG instances is listed as these."""
    try:
        text = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_listing(text)


def parse_listing(text: str) -> tuple[tuple[str, str], ...]:
    """(index of the GPU, UUID) of each line of `nvidia-smi -L`.

    `GPU 0: NVIDIA A100 (UUID: GPU-5d5b…)` and below it, on a GPU in MIG mode, `  MIG 1g.5gb Device 0: (UUID: MIG-c6d4…)`.
    """
    found: list[tuple[str, str]] = []
    index = ""
    for line in text.splitlines():
        if gpu := re.match(r"GPU (\d+):.*\(UUID: (GPU-[^)]+)\)", line):
            index = gpu.group(1)
            found.append((index, gpu.group(2)))
        elif instance := re.match(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)", line):
            if found[-1][1].startswith("GPU-"):  # instances stand for their GPU, which cannot be used by itself
                found.pop()
            found.append((index, instance.group(1)))
    return tuple(found)


def lease_name(device: str) -> str:
    """One name per physical device: an index or a shortened UUID becomes the whole UUID where nvidia-smi knows it.

    An index counts as nvidia-smi counts, which the launcher sees to with CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    for index, name in listed():
        if device == index or len(device) > 4 and name.startswith(device):
            return name
    return device


@dataclass(frozen=True)
class Lease:
    """A place on a device for one job: the descriptors that hold it."""

    device: str
    descriptors: tuple[int, ...]

    def let_go(self) -> None:
        """Closes our descriptors. The lease is free unless a guard has inherited them."""
        for descriptor in self.descriptors:
            os.close(descriptor)


def take(device: str, places: int) -> Lease | None:
    """A lease on one of `places` places of `device`, or None where all are taken.

    With one place the device is the job's alone: it waits for jobs that share it, and these for it.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "_", lease_name(device))
    whole = _lock(name, fcntl.LOCK_EX if places == 1 else fcntl.LOCK_SH)
    if whole is None or places == 1:
        return None if whole is None else Lease(device, (whole,))
    for place in range(places):
        part = _lock(f"{name}.{place}", fcntl.LOCK_EX)
        if part is not None:
            return Lease(device, (whole, part))
    os.close(whole)
    return None


def check_leases() -> None:
    """Raises UserError where leases cannot be had: the folder cannot be written, or its disk knows no locks."""
    descriptor = _lock("check", fcntl.LOCK_SH)
    if descriptor is not None:
        os.close(descriptor)


def _lock(name: str, kind: int) -> int | None:
    """As `_flock` in the folder of the leases. Raises UserError where that cannot work."""
    folder = Path(os.environ.get("XCLS_LEASES") or FOLDER)
    try:
        return _flock(folder, name, kind)
    except OSError as error:
        raise UserError(
            f"{folder}: no place for the locks on this machine's devices ({error.strerror}). Set XCLS_LEASES to a folder on a local disk "
            "that every user of the devices can write."
        ) from error


def _flock(folder: Path, name: str, kind: int) -> int | None:
    """A descriptor that holds the lock of this name, or None where it is taken. Any user may lock a file of another."""
    try:
        folder.mkdir(parents=True)
        folder.chmod(0o1777)  # like /tmp; mkdir's mode is cut by the umask
    except FileExistsError:
        pass
    try:  # whoever was first made the file; O_CREAT on a file of another user is refused in such a folder
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.fchmod(descriptor, 0o644)
    except FileExistsError:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return descriptor
    except BlockingIOError:
        os.close(descriptor)
        return None
