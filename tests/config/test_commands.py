"""The commands a user types, run for real on a tiny data set."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from hydra_plugins.xcls_launcher._sweep import SweepLauncher
from tests.conftest import SMALL, Project
from tests.entry import entered


def record(folder: Path) -> dict:
    return json.loads((folder / "record.json").read_text())


def ran(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert result.returncode == 0, result.stderr[-3000:] + result.stdout[-1000:]
    return result


def test_pretrain_finetune_eval_predict(project: Project) -> None:
    ran(project.run("mode=init", "exp=base", "attention=performer"))
    file = project.folder / "pretrain" / "base" / "config.yaml"
    values = yaml.safe_load(file.read_text())
    assert values["choices.attention"] == "performer" and values["attention.name"] == "performer"
    file.write_text(file.read_text().replace("pretraining.lr: 0.001", "pretraining.lr: 0.002"))

    ran(project.run("mode=pretrain", "exp=base", small=False, fresh=True))  # the file alone decides, the edit included
    made = record(project.folder / "pretrain" / "base")
    assert made["status"] == "completed" and made["step"] == 3
    assert made["config"]["pretraining.lr"] == 0.002 and made["config"]["attention.name"] == "performer"

    result = ran(
        project.run(
            "mode=finetune",
            "exp=ft",
            "pretrain=base",
            "dataset.validation=0.2",
            "finetuning.max_steps=4",
            "wandb=disabled",
            small=False,
            fresh=True,
        )
    )
    assert "classification head is new" in result.stderr
    folder = project.folder / "finetune" / "ft"
    tuned = record(folder)
    assert (
        tuned["config"]["dataset.name"] == "files" and tuned["config"]["dataset.validation"] == 0.2
    )  # inherited, one value over it
    assert tuned["config"]["attention.name"] == "performer" and tuned["choices"]["attention"] == "performer"
    assert tuned["pretrain"]["folder"] == "pretrain/base" and tuned["pretrain"]["hash"] == made["hash"]
    resolved = yaml.safe_load((folder / "resolved_config.yaml").read_text())
    assert resolved["resolved.pretrain.folder"] == "pretrain/base" and not any(
        isinstance(v, dict) for v in resolved.values()
    )
    for name in (
        "ckpt_best.pt",
        "ckpt_last.pt",
        "metrics.csv",
        "events.jsonl",
        "predictions.parquet",
        "head.safetensors",
        "reproduce.sh",
    ):
        assert (folder / name).is_file(), name

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
    result = project.run(
        "mode=finetune", "exp=ft", "pretrain=base", "attention=performer", "seq_len=24", "wandb=disabled", small=False
    )
    assert (
        result.returncode == 2
        and "attention" in result.stderr
        and "seq_len" not in result.stderr.split("Fine-tuning")[0]
    )
    result = project.run("mode=finetune", "exp=ft", "pretrain=base", "size.width=32", small=False)
    assert result.returncode == 2 and "size.width=32: base was trained with size.width=16" in result.stderr
    assert project.files() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "mechanisms", [["reformer"], pytest.param(["reformer", "sdpa"], marks=pytest.mark.slow)], ids=",".join
)
def test_a_sweep_runs_once_with_its_baseline_and_reports(project: Project, mechanisms: list[str]) -> None:
    axes = ("-m", f"attention={','.join(mechanisms)}", "seed=0,1", "pretrain=auto", "exp=sw")
    ran(project.run(*axes))
    records = {p.parent: json.loads(p.read_text()) for p in project.folder.glob("multirun/sw/*/*/record.json")}
    assert sorted(r["mode"] for r in records.values()) == ["baseline"] + ["finetune"] * 2 * len(mechanisms)
    assert {r["status"] for r in records.values()} == {"completed"}
    parents = [json.loads(p.read_text()) for p in project.folder.glob("pretrain/*/record.json")]
    assert sorted(p["choices"]["attention"] for p in parents) == mechanisms  # one each, shared by the seeds
    assert {r["pretrain"]["hash"] for r in records.values() if r["pretrain"]} == {p["hash"] for p in parents}
    stamps = {folder: (folder / "record.json").stat().st_mtime_ns for folder in records}
    again = ran(project.run(*axes))
    assert stamps == {folder: (folder / "record.json").stat().st_mtime_ns for folder in records}
    assert (
        "equal cells" not in again.stderr
    )  # no two cells of this grid are equal; they share a pretraining, and find it made
    jobs = json.loads((project.folder / "multirun" / "sw" / "sweep.json").read_text())["jobs"]
    words = {job["folder"]: job["overrides"] for job in jobs if job["kind"] == "pretrain"}
    made = [p.parent.name for p in project.folder.glob("pretrain/*/record.json")]
    assert words == {
        f"pretrain/{name}": ["mode=pretrain", f"exp={name}", "resume=true"] for name in made
    }  # not the fine-tuning's
    result = ran(project.run("runs=[multirun/sw]", "out=rep", script="report.py"))
    assert "TF-IDF" in result.stdout and "reformer" in result.stdout
    assert len(pd.read_csv(project.folder / "rep" / "results.csv").query("mode == 'finetune'")) == 2 * len(mechanisms)


def test_one_sweep_sets_keys_of_one_mechanism(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps: list[Any] = []
    plan = SweepLauncher.plan
    monkeypatch.setattr(SweepLauncher, "plan", lambda *given: sweeps.append(plan(*given)) or sweeps[-1])
    with entered(project.folder) as enter:
        outcome = enter("-m", "exp=sw", "attention=sdpa,performer", "+per.performer.num_features=16,32", *SMALL)
    assert outcome.code in (0, None), outcome.stderr + outcome.traceback
    configs = [job.spec.record.config for job in sweeps[0].jobs if job.spec.kind == "finetune"]
    made = [(config["attention.name"], config.get("attention.num_features")) for config in configs]
    assert sorted(made) == [("performer", 16), ("performer", 32), ("sdpa", None)] and sweeps[0].equal == 1
    assert not any(key.startswith("per") and not key.startswith("pretrain") for config in configs for key in config)


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not(project: Project) -> None:
    words = (
        "mode=finetune",
        "finetuning.max_steps=60",
        "finetuning.eval_every_steps=20",
        "finetuning.checkpoint_every_steps=20",
    )
    ran(project.run(*words, "exp=whole"))
    job = project.begin(*words, "exp=cut", stop_by=signal.SIGTERM)
    job.communicate(timeout=120)
    cut = project.folder / "finetune" / "cut"
    assert job.returncode == 130
    assert record(cut)["status"] == "interrupted" and 0 < record(cut)["step"] < 60
    refused = project.run(*words, "exp=cut")
    assert refused.returncode == 2 and "resume=true" in refused.stderr
    ran(project.run(*words, "exp=cut", "resume=true"))
    whole = project.folder / "finetune" / "whole"
    kept = ["step", "epoch", "train_loss", "val_loss", "macro_f1", "lr"]
    pd.testing.assert_frame_equal(
        pd.read_csv(cut / "metrics.csv")[kept], pd.read_csv(whole / "metrics.csv")[kept], check_exact=True
    )
    pd.testing.assert_frame_equal(
        pd.read_parquet(cut / "predictions.parquet"), pd.read_parquet(whole / "predictions.parquet"), check_exact=True
    )


def test_an_exp_that_has_run_is_refused(project: Project) -> None:
    ran(project.run("mode=baseline", "exp=b"))
    again = project.run("mode=baseline", "exp=b")
    assert again.returncode == 2 and "has already run" in again.stderr
    assert ran(project.run("mode=baseline", "exp=b", "resume=true")).stdout.count("nothing to do") == 1


def test_a_file_over_the_defaults_and_the_command_line_over_the_file(project: Project) -> None:
    (project.folder / "my.yaml").write_text(
        "attention.name: sdpa\nseed: 7\npretraining:\n  lr: 0.5\nchoices.attention: sdpa\n"
    )
    ran(project.run("mode=init", "exp=a", "template=my.yaml"))
    values = yaml.safe_load((project.folder / "pretrain" / "a" / "config.yaml").read_text())
    assert (values["seed"], values["pretraining.lr"]) == (7, 0.5)
    ran(project.run("mode=init", "exp=b", "template=my.yaml", "seed=8"))
    assert yaml.safe_load((project.folder / "pretrain" / "b" / "config.yaml").read_text())["seed"] == 8
    (project.folder / "my.yaml").write_text("sede: 7\n")
    result = project.run("mode=init", "exp=c", "template=my.yaml")
    assert (
        result.returncode == 2
        and "sede: unknown key. Did you mean 'seed'" in result.stderr
        and "my.yaml" in result.stderr
    )


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch can use a GPU")
def test_a_gpu_that_torch_cannot_use_is_no_secret(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch for CPUs beside an NVIDIA GPU, shown by a stand-in for nvidia-smi."""
    stand_in = project.folder / "cache" / "bin" / "nvidia-smi"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text("#!/bin/sh\necho 'NVIDIA A100-SXM4-40GB, 8.0'\n")
    stand_in.chmod(0o755)
    environment = {**project.environment, "PATH": f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("CUDA_VISIBLE_DEVICES")
    command = project.command("mode=finetune", "exp=ft", "finetuning.max_steps=1", "hardware=auto")
    result = ran(
        subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=120)
    )
    (told,) = [warning for warning in record(project.folder / "finetune" / "ft")["warnings"] if "GPU" in warning]
    assert told.startswith("hardware=auto: cpu (") and "nvidia-smi sees NVIDIA A100-SXM4-40GB, capability 8.0" in told
    assert "pip install --force-reinstall torch" in told and f"WARNING: {told}" in result.stderr
