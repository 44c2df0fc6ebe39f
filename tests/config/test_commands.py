"""The commands a user types, run for real on a tiny data set."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from tests.conftest import Project


def record(folder: Path) -> dict:
    return json.loads((folder / "record.json").read_text())


def ran(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert result.returncode == 0, result.stderr[-3000:] + result.stdout[-1000:]
    return result


def test_pretrain_finetune_eval_predict(project: Project) -> None:
    ran(project.run("mode=init", "exp=base", "attention=performer"))
    file = project.folder / "pretrain" / "base" / "config.yaml"
    values = yaml.safe_load(file.read_text())
    assert values["choices.attention"] == values["attention.name"] == "performer"
    file.write_text(file.read_text().replace("pretraining.lr: 0.001", "pretraining.lr: 0.002"))

    ran(project.run("mode=pretrain", "exp=base", small=False, fresh=True))  # the file alone decides, the edit included
    made = record(project.folder / "pretrain" / "base")
    assert made["status"] == "completed" and made["step"] == 3
    assert made["config"]["pretraining.lr"] == 0.002 and made["config"]["attention.name"] == "performer"

    words = ("exp=ft", "pretrain=base", "dataset.validation=0.2", "finetuning.max_steps=4", "wandb=disabled")
    result = ran(project.run("mode=finetune", *words, small=False, fresh=True))
    assert "classification head is new" in result.stderr
    folder = project.folder / "finetune" / "ft"
    tuned = record(folder)
    assert tuned["config"]["dataset.name"] == "files" and tuned["config"]["dataset.validation"] == 0.2  # one over it
    assert tuned["config"]["attention.name"] == tuned["choices"]["attention"] == "performer"
    assert tuned["pretrain"]["folder"] == "pretrain/base" and tuned["pretrain"]["hash"] == made["hash"]
    resolved = yaml.safe_load((folder / "resolved_config.yaml").read_text())
    assert resolved["resolved.pretrain.folder"] == "pretrain/base"
    assert not any(isinstance(value, dict) for value in resolved.values())
    files = ("ckpt_best.pt", "ckpt_last.pt", "metrics.csv", "events.jsonl", "predictions.parquet", "reproduce.sh")
    assert all((folder / name).is_file() for name in (*files, "head.safetensors"))

    ran(project.run("mode=eval", "exp=ft", small=False))
    assert record(folder)["metrics"]["eval.test"] == record(folder)["metrics"]["test"]

    (project.folder / "in.txt").write_text("a fine film\nawful\n")
    ran(project.run("mode=predict", "exp=ft", "input=in.txt", "output=out.csv", small=False))
    table = pd.read_csv(project.folder / "out.csv")
    assert len(table) == 2 and set(table["prediction"]) <= {"good", "bad"}
    assert (table[["p_bad", "p_good"]].sum(axis=1) - 1).abs().max() < 1e-5


def test_finetuning_refuses_another_architecture(project: Project) -> None:
    ran(project.run("mode=pretrain", "exp=base"))
    before = project.files()
    words = ("mode=finetune", "exp=ft", "pretrain=base", "attention=performer", "size.width=32", "seq_len=24")
    result = project.run(*words, small=False)
    wrong = [line.partition(":")[0] for line in result.stderr.splitlines()]
    assert result.returncode == 2 and "size.width=32" in wrong and not any("seq_len" in line for line in wrong)
    assert any("attention" in line for line in wrong) and project.files() == before


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not(project: Project) -> None:
    steps = ("finetuning.max_steps=60", "finetuning.eval_every_steps=20", "finetuning.checkpoint_every_steps=20")
    words = ("mode=finetune", *steps)
    ran(project.run(*words, "exp=whole"))
    job = project.begin(*words, "exp=cut", stop_by=signal.SIGTERM)
    job.communicate(timeout=120)
    cut, whole = project.folder / "finetune" / "cut", project.folder / "finetune" / "whole"
    assert job.returncode == 130 and record(cut)["status"] == "interrupted" and 0 < record(cut)["step"] < 60
    refused = project.run(*words, "exp=cut")
    assert refused.returncode == 2 and "resume=true" in refused.stderr
    ran(project.run(*words, "exp=cut", "resume=true"))
    kept = ["step", "epoch", "train_loss", "val_loss", "macro_f1", "lr"]
    curves = [pd.read_csv(folder / "metrics.csv")[kept] for folder in (cut, whole)]
    pd.testing.assert_frame_equal(*curves, check_exact=True)
    predictions = [pd.read_parquet(folder / "predictions.parquet") for folder in (cut, whole)]
    pd.testing.assert_frame_equal(*predictions, check_exact=True)


def test_an_exp_that_has_run_is_refused(project: Project) -> None:
    ran(project.run("mode=baseline", "exp=b"))
    again = project.run("mode=baseline", "exp=b")
    assert again.returncode == 2 and "exp=" in again.stderr
    assert "nothing to do" in ran(project.run("mode=baseline", "exp=b", "resume=true")).stdout


def test_a_file_over_the_defaults_and_the_command_line_over_the_file(project: Project) -> None:
    (project.folder / "my.yaml").write_text("seed: 7\npretraining:\n  lr: 0.5\nchoices.attention: sdpa\n")
    for exp, words, seed in (("a", [], 7), ("b", ["seed=8"], 8)):
        ran(project.run("mode=init", f"exp={exp}", "template=my.yaml", *words))
        values = yaml.safe_load((project.folder / "pretrain" / exp / "config.yaml").read_text())
        assert (values["seed"], values["pretraining.lr"]) == (seed, 0.5)
    (project.folder / "my.yaml").write_text("sede: 7\n")
    result = project.run("mode=init", "exp=c", "template=my.yaml")
    assert result.returncode == 2 and all(word in result.stderr for word in ("sede: ", "'seed'", "my.yaml"))


NVML = """
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(place): return place
def nvmlDeviceGetName(card): return "NVIDIA A100-SXM4-40GB"
def nvmlDeviceGetCudaComputeCapability(card): return 8, 0
"""


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch can use a GPU")
def test_a_gpu_that_torch_cannot_use_is_no_secret(project: Project) -> None:
    """A torch for CPUs beside an NVIDIA GPU, shown by a stand-in for NVML."""
    stand_in = project.folder / "cache" / "nvml" / "pynvml.py"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text(NVML)
    environment = {**project.environment, "PYTHONPATH": str(stand_in.parent)}
    environment.pop("CUDA_VISIBLE_DEVICES")
    command = project.command("mode=finetune", "exp=ft", "finetuning.max_steps=1", "hardware=auto")
    done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=120)
    warnings = record(project.folder / "finetune" / "ft")["warnings"]
    (told,) = [warning for warning in warnings if "NVIDIA A100-SXM4-40GB" in warning]
    assert "capability 8.0" in told and "pip install" in told and told in ran(done).stderr
