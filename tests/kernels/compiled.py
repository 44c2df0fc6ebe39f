"""Compiles Triton kernels for GPUs, which needs none: run with what to compile as JSON, in a process without Triton's
interpreter.

    python tests/kernels/compiled.py '{"module": …, "kernel": …, "capability": 80, "fixed": {…}, "types": {…},
    "spilled": 0}'

fixed: values of arguments; types: "*fp16" and the like of the others, i32 where not named. Fails where a thread has
more than `spilled` bytes of its registers in memory, or a program more shared memory than a card has.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHARED = {70: 96, 75: 64, 80: 163, 86: 99, 90: 227}  # KiB of a program


def compile_in_a_process(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was made of each case: {"ptx": the assembly}. Raises AssertionError."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TRITON_CACHE_DIR": folder, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        environment.pop("TRITON_INTERPRET", None)
        words = [sys.executable, __file__, json.dumps(cases)]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def made(case: dict[str, Any]) -> dict[str, Any]:
    """Compiles one case."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(case["module"]), case["kernel"])
    fixed = {name: value for name, value in case["fixed"].items() if name in kernel.arg_names}
    kinds = {name: "constexpr" if name in fixed else case["types"].get(name, "i32") for name in kernel.arg_names}
    even = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if kinds[name].startswith("*")}
    target = GPUTarget("cuda", case["capability"], 32)
    built = triton.compile(ASTSource(kernel, kinds, fixed, even), target=target, options=case.get("options", {}))
    Path("made.cubin").write_bytes(built.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", "made.cubin"], capture_output=True, text=True, check=True).stdout
    spilled = int(re.search(r"STACK:(\d+)", usage)[1])
    print(case["kernel"], case["capability"], re.search(r"REG:(\d+)", usage)[1], built.metadata.shared, spilled)
    assert built.metadata.shared <= 1024 * SHARED[case["capability"]] and spilled <= case.get("spilled", 0), case
    return {"kernel": case["kernel"], "tensor_cores": "mma" in built.asm["ptx"]}


if __name__ == "__main__":
    found = [made(case) for case in json.loads(sys.argv[1])]
    print(json.dumps(found))
