"""What the path to the first training step does not load: it would take seconds before anything happens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Project

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
NEEDLESS = ("matplotlib", "datasets", "transformers", "wandb", "pyarrow.dataset", "pyarrow.parquet", "huggingface_hub")
PATH = """
import json, sys
import xcls.stages.training, xcls.stages.finetune
from xcls.data.files import Files
from xcls.data.splits import prepare
from xcls.data.tokenizer import make_tokenizer
from xcls.config.schema import Dataset, Tokenizer
from xcls.stages.texts import classification_data
prepared = prepare(Files(path="rows.csv"), Dataset())
tokenizer = make_tokenizer(Tokenizer(vocab_size=120), prepared.mlm_texts)
classification_data(prepared, tokenizer, seq_len=24, truncate="head")
print(json.dumps(sorted(sys.modules)))
"""


def test_the_path_to_the_first_step_loads_nothing_needless(project: Project) -> None:
    out = subprocess.run(
        [sys.executable, "-c", PATH], cwd=project.folder, env=project.environment, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    loaded = set(json.loads(out.stdout))
    assert "torch" in loaded and not loaded & set(NEEDLESS)


@pytest.mark.parametrize("word", ["--help", "--cfg=job"])
def test_questions_load_nothing_heavy(word: str) -> None:
    code = f"""
import runpy, sys
sys.argv = ["run.py", *{word!r}.split("=")]
try:
    runpy.run_path("run.py", run_name="__main__")
except SystemExit:
    pass
print("LOADED", [name for name in ("torch", "pandas", "sklearn", "numpy", "pyarrow", "scipy") if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0 and out.stdout.rstrip().endswith("LOADED []"), out.stdout[-300:] + out.stderr[-2000:]
