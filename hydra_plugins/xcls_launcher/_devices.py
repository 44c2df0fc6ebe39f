"""The devices of this machine, and leases on them that the sweeps of all users respect.

A lease is a `flock` on one file per device. The launcher takes it and the job's process inherits it, so it is free
again when both have ended, even if one was killed.
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
FOLDER = "/tmp/xcls-leases"  # the same for all users, unlike TMPDIR
NONE = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that hide every GPU


def visible_devices(configured: Sequence[str] | None) -> list[str]:
    """The names for CUDA_VISIBLE_DEVICES: as configured, else from the environment, else every GPU (or MIG instance).

    Given names (index, UUID, MIG) are not changed; GPUs found here are named by UUID.
    """
    callers = os.environ.get("CUDA_VISIBLE_DEVICES")
    if configured is None and callers is None:
        return [name for _, name in listed()]
    if configured is None:
        configured = [] if str(callers).strip() in NONE else str(callers).split(",")
    return list(dict.fromkeys(name.strip() for name in map(str, configured) if name.strip()))


@lru_cache(maxsize=1)
def listed() -> tuple[tuple[str, str], ...]:
    """(index, UUID) of each GPU from `nvidia-smi -L`; for a GPU in MIG mode those of its instances."""
    try:
        text = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_listing(text)


def parse_listing(text: str) -> tuple[tuple[str, str], ...]:
    """(index of the GPU, UUID) of each line of `nvidia-smi -L`.

    `GPU 0: NVIDIA A100 (UUID: GPU-5d5b…)` and below it, for a GPU in MIG mode, `  MIG 1g.5gb Device 0: (UUID: MIG-…)`.
    """
    found: list[tuple[str, str]] = []
    index = ""
    for line in text.splitlines():
        if gpu := re.match(r"GPU (\d+):.*\(UUID: (GPU-[^)]+)\)", line):
            index = gpu.group(1)
            found.append((index, gpu.group(2)))
        elif instance := re.match(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)", line):
            if found[-1][1].startswith("GPU-"):  # a GPU with instances cannot be used as a whole
                found.pop()
            found.append((index, instance.group(1)))
    return tuple(found)


def lease_name(device: str) -> str:
    """One name per physical device: an index or a shortened UUID becomes the whole UUID where nvidia-smi knows it.

    An index counts as nvidia-smi counts; the launcher sets CUDA_DEVICE_ORDER=PCI_BUS_ID for that.
    """
    for index, name in listed():
        if device == index or len(device) > 4 and name.startswith(device):
            return name
    return device


@dataclass(frozen=True)
class Lease:
    """A place on a device for one job, with the file descriptors that hold its locks."""

    device: str
    descriptors: tuple[int, ...] = ()

    def release(self) -> None:
        """Closes the descriptors of this process. The lease is free unless a job has inherited them."""
        for descriptor in self.descriptors:
            os.close(descriptor)


def take(device: str, places: int) -> Lease | None:
    """A lease on one of `places` places of `device`, or None if all are taken.

    With one place the job has the device alone: it waits for jobs that share the device, and they wait for it.
    Raises UserError if the folder of the leases cannot be used.
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


def _lock(name: str, kind: int) -> int | None:
    """A descriptor that holds the lock `name`, or None if it is taken. A user may lock the files of other users."""
    folder = Path(os.environ.get("XCLS_LEASES") or FOLDER)
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            folder.chmod(0o1777)  # like /tmp; the umask reduces the mode of mkdir
        try:  # O_CREAT on a file of another user is refused in such a folder
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
    except OSError as error:
        raise UserError(
            f"{folder}: the locks for this machine's devices cannot be stored there ({error.strerror}). "
            "Set XCLS_LEASES to a folder on a local disk that every user of the devices can write to."
        ) from error
