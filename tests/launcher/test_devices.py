"""Which devices there are under which names, and who may have which."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hydra_plugins.xcls_launcher import _devices
from hydra_plugins.xcls_launcher._desk import _planned
from hydra_plugins.xcls_launcher._devices import check_leases, lease_name, parse_listing, take, visible_devices
from hydra_plugins.xcls_launcher.gpu_server import check_hardware
from hydra_plugins.xcls_launcher.sweep import Job
from xcls.config.schema import UserError
from xcls.runs.spec import JobSpec
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
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_devices, "listed", lambda: FOUND)
    monkeypatch.setenv("XCLS_LEASES", str(tmp_path / "leases"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_the_listing_of_nvidia_smi() -> None:
    assert parse_listing(LISTING) == FOUND
    assert parse_listing("No devices were found\n") == ()


@pytest.mark.parametrize(
    ("configured", "callers", "names"),
    [
        (None, None, [name for _, name in FOUND]),
        (None, "4,GPU-2222, MIG-3333,4", ["4", "GPU-2222", "MIG-3333"]),
        (None, "", []),
        (None, "-1", []),
        (None, "NoDevFiles", []),
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


def test_all_names_of_a_device_are_one_lease() -> None:
    assert lease_name("0") == lease_name("GPU-11111111-aaaa") == lease_name("GPU-111") == "GPU-11111111-aaaa"
    assert lease_name("MIG-4444") == "MIG-44444444-dddd" and lease_name("a") == "a" and lease_name("7") == "7"
    held = take("0", 1)
    assert held is not None and take("GPU-11111111-aaaa", 1) is None
    held.let_go()
    free = take("GPU-11111111-aaaa", 1)
    assert free is not None
    free.let_go()


def test_a_device_is_shared_or_somebodys_alone() -> None:
    shared = [take("a", 2), take("a", 2)]
    assert None not in shared and take("a", 2) is None and take("a", 1) is None
    for lease in shared:
        lease.let_go()
    alone = take("a", 1)
    assert alone is not None and take("a", 2) is None and take("a", 1) is None
    other = take("b", 1)
    assert other is not None
    other.let_go()
    alone.let_go()
    assert take("a", 3) is not None


def test_others_may_use_the_folder_and_its_files(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        lease = take("MIG-GPU-x/1/0", 1)
    finally:
        os.umask(before)
    assert lease is not None
    assert (tmp_path / "leases").stat().st_mode & 0o7777 == 0o1777
    assert [path.stat().st_mode & 0o444 for path in (tmp_path / "leases").iterdir()] == [0o444]
    lease.let_go()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_named(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refused(descriptor: int, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(UserError, match="XCLS_LEASES"):
        check_leases()


def test_a_folder_of_leases_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "leases").touch()
    with pytest.raises(UserError, match=str(tmp_path / "leases")):
        check_leases()
    (tmp_path / "leases").unlink()
    assert check_leases() is None and take("0", 1) is not None


def planned(*precisions: tuple[str, str, str, bool], state: str = "waiting") -> Any:
    """A sweep with a job for each (device, dtype, why, whether it is a warning)."""
    outlines = [
        JobSpec("finetune", precision=Precision(device, dtype, why, warn)) for device, dtype, why, warn in precisions
    ]
    jobs = [
        Job(
            number=number,
            overrides=[],
            folder="",
            kind="finetune",
            needs=[],
            hash="h",
            gpu=outline.precision.device == "cuda",
            state=state,
            outline=outline,
        )
        for number, outline in enumerate(outlines)
    ]
    jobs.append(Job(number=len(jobs), overrides=[], folder="", kind="baseline", needs=[], outline=JobSpec("baseline")))
    return SimpleNamespace(jobs=jobs)


def test_a_sweep_on_a_card_that_cannot_do_it_is_refused_before_any_job(monkeypatch: pytest.MonkeyPatch) -> None:
    t4 = Cards("2.13.0", (Card("Tesla T4", (7, 5)),), ("sm_75",))
    monkeypatch.setattr(cards, "of_jobs", lambda: t4)
    with pytest.raises(UserError, match="hardware.dtype=bf16: Tesla T4"):
        check_hardware(planned(("cuda", "fp16", "", False), ("cuda", "bf16", "", False)))
    check_hardware(planned(("cuda", "bf16", "", False), state="skipped"))
    check_hardware(planned(("cuda", "fp16", "", False), ("cpu", "bf16", "", False)))


def test_a_sweep_says_once_what_auto_has_chosen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cards, "of_jobs", lambda: pytest.fail("a CPU needs no GPU to be asked for"))
    check_hardware(planned(*[("cpu", "fp32", "hardware=auto: cpu (fp32): a GPU is here", True)] * 3))
    assert capsys.readouterr().err == "WARNING: hardware=auto: cpu (fp32): a GPU is here\n"


def test_a_job_is_told_with_which_dtype_it_was_planned() -> None:
    """On a machine of a T4 and an A100 the A100 alone would choose bf16, which is another run."""
    gpu, cpu, baseline = planned(("cuda", "fp16", "", False), ("cpu", "bf16", "", False)).jobs
    assert _planned(gpu) == {"XCLS_HASH": "h", "XCLS_PRECISION": "cuda fp16"}
    assert _planned(cpu)["XCLS_PRECISION"] == _planned(baseline)["XCLS_PRECISION"] == ""
