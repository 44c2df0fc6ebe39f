"""Which devices there are under which names, who may have which, and GPUs that cannot do what the jobs are to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hydra_plugins.xcls_launcher import _devices
from hydra_plugins.xcls_launcher._devices import parse_listing, take, visible_devices
from hydra_plugins.xcls_launcher.gpu_server import GpuServerLauncher
from xcls.config.schema import UserError
from xcls.train import cards
from xcls.train.cards import Card, Cards
from xcls.train.precision import Precision

LISTING = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11111111-aaaa)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-22222222-bbbb)
  MIG 3g.20gb     Device  0: (UUID: MIG-33333333-cccc)
  MIG 1g.5gb      Device  1: (UUID: MIG-44444444-dddd)
GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-55555555-eeee)
"""
FOUND = (("0", "GPU-11111111-aaaa"), ("1", "MIG-33333333-cccc"), ("1", "MIG-44444444-dddd"), ("2", "GPU-55555555-eeee"))


@pytest.fixture(autouse=True)
def leases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(_devices, "listed", lambda: FOUND)
    monkeypatch.setenv("XCLS_LEASES", str(tmp_path / "leases"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "leases"


def test_the_listing_of_nvidia_smi() -> None:
    assert parse_listing(LISTING) == FOUND and parse_listing("No devices were found\n") == ()


@pytest.mark.parametrize(
    ("configured", "callers", "names"),
    [
        (None, None, [name for _, name in FOUND]),
        (None, "4,GPU-2222, MIG-3333,4", ["4", "GPU-2222", "MIG-3333"]),
        (None, "", []),
        (None, "-1", []),
        (["a", "b"], "0", ["a", "b"]),
        ([], "0", []),
    ],
)
def test_visible_devices(
    monkeypatch: pytest.MonkeyPatch, configured: list[str] | None, callers: str | None, names: list[str]
) -> None:
    if callers is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", callers)
    assert visible_devices(configured) == names


@pytest.mark.parametrize(("one", "other"), [("0", "GPU-11111111-aaaa"), ("GPU-111", "0"), ("MIG-4444", FOUND[2][1])])
def test_all_names_of_a_device_are_one_lease(one: str, other: str) -> None:
    held = take(one, 1)
    assert held is not None and take(other, 1) is None and take("a", 1) is not None
    held.release()
    assert take(other, 1) is not None


def test_a_device_is_shared_or_somebodys_alone() -> None:
    shared = [lease for lease in (take("a", 2), take("a", 2)) if lease is not None]
    assert len(shared) == 2 and take("a", 2) is None and take("a", 1) is None
    for lease in shared:
        lease.release()
    alone = take("a", 1)
    assert alone is not None and take("a", 2) is None and take("a", 1) is None
    alone.release()
    assert take("a", 3) is not None


def test_others_may_use_the_folder_and_its_files(leases: Path) -> None:
    before = os.umask(0o077)
    try:
        assert take("MIG-GPU-x/1/0", 1) is not None
    finally:
        os.umask(before)
    assert leases.stat().st_mode & 0o7777 == 0o1777
    assert [path.stat().st_mode & 0o444 for path in leases.iterdir()] == [0o444]


@pytest.mark.parametrize("fault", ["no locks", "a file"])
def test_a_folder_without_locks_is_named(monkeypatch: pytest.MonkeyPatch, leases: Path, fault: str) -> None:
    def refused(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if fault == "a file":
        leases.touch()
    else:
        monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(UserError, match="XCLS_LEASES") as caught:
        take("check", 2)
    assert str(leases) in str(caught.value)


def planned(*precisions: Precision | None, state: str = "waiting") -> Any:
    """A sweep with a job for each precision."""
    return SimpleNamespace(jobs=[SimpleNamespace(state=state, spec=SimpleNamespace(precision=p)) for p in precisions])


def test_what_the_gpus_cannot_do_is_refused_before_any_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cards, "of_jobs", lambda: Cards("2.13.0", (Card("Tesla T4", (7, 5)),), ("sm_75",)))
    launcher, bf16 = GpuServerLauncher(), Precision("cuda", "bf16")
    with pytest.raises(UserError, match="hardware.dtype=bf16: Tesla T4"):
        launcher.check_jobs(planned(Precision("cuda", "fp16"), bf16))
    launcher.check_jobs(planned(bf16, state="skipped"))
    launcher.check_jobs(planned(Precision("cuda", "fp16"), Precision("cpu", "bf16"), None))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(cards, "of_jobs", lambda: pytest.fail("a CPU needs no GPU to be asked for"))
    launcher.check_jobs(planned(*[Precision("cpu", "fp32", "hardware=auto: cpu (fp32)", True)] * 3))
    assert capsys.readouterr().err == "WARNING: hardware=auto: cpu (fp32)\n"  # once
