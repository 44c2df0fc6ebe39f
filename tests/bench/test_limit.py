"""Memory that does not fit is refused: a row with its sizes, and no process is killed for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from xcls.bench.limit import free_bytes, refusal

KIB, MIB = 1024, 2**20


def system(root: Path, *, free: int, group: dict[str, str] | None = None) -> Path:
    """A /proc and a /sys in a folder: bytes free on the machine, and the files of one control group."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal:  99999999 kB\nMemAvailable:   {free // KIB} kB\n")
    (root / "proc/self/cgroup").write_text("0::/user/job\n")
    folder = root / "sys/fs/cgroup/user/job"
    folder.mkdir(parents=True)
    for name, text in (group or {}).items():
        (folder.parent / name).write_text(text)
    return root


def test_free_is_the_least_of_the_machine_and_the_control_groups(tmp_path: Path) -> None:
    assert free_bytes(system(tmp_path / "none", free=64 * MIB)) == 64 * MIB
    files = {"memory.max": f"{40 * MIB}\n", "memory.current": f"{30 * MIB}\n"}
    files["memory.stat"] = f"anon 7\ninactive_file {5 * MIB}\n"
    assert free_bytes(system(tmp_path / "group", free=64 * MIB, group=files)) == 15 * MIB
    assert free_bytes(system(tmp_path / "max", free=64 * MIB, group={**files, "memory.max": "max\n"})) == 64 * MIB
    assert free_bytes(tmp_path / "no such system") is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is free and refuses more")
def test_too_large_a_tensor_is_refused_with_its_sizes() -> None:
    code = (
        "import torch; from xcls.bench import limit\n"
        "limit.SHARE = 0.0; limit.limit_memory()\n"
        "try:\n    torch.empty(2**33, dtype=torch.uint8)\n"
        "except RuntimeError as error:\n    print(limit.refusal(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "MiB held and 8,192 MiB more asked for, " in done.stdout, done.stderr
    assert done.stdout.startswith("out of memory: ") and done.stdout.endswith(" MiB allowed\n")


def test_another_error_is_no_refusal() -> None:
    assert refusal(RuntimeError("no such kernel")) is None
    assert refusal(MemoryError()).startswith("out of memory: ")
