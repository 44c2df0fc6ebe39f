"""Every file of conf/experiment is a whole study: its axes, its jobs, what they share; some of them run for real."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

import tests.entry
from tests.conftest import ROOT, Project
from tests.entry import enter
from tests.pairwise import few
from xcls.report.settings import claims_from

MECHANISMS = sorted(path.stem for path in (ROOT / "conf" / "attention").glob("*.yaml"))
THREE, FOUR, SEEDS = ["sdpa", "performer", "reformer"], ["sdpa", "sdpa_fused", "performer", "reformer"], ["0", "1", "2"]
AXES = {
    "quick": {"attention": THREE, "seed": SEEDS},
    "wnf_imdb": {"attention": FOUR, "seed": SEEDS},
    "wnf_ag_news": {"attention": FOUR, "seed": SEEDS},
    "long_sequences": {"attention": FOUR, "seq_len": ["4096", "8192", "16384"], "seed": SEEDS},
    "positions": {"attention": THREE, "position": ["none", "sin", "learned", "relative", "rope"], "seed": SEEDS},
    "sizes": {"attention": THREE, "size": ["tiny", "mini", "small"], "seed": SEEDS},
    "modifications": {"attention": MECHANISMS, "seed": SEEDS},
}
CHOICES = {  # data set, tokenizer, size
    "quick": ("pydocs", "wordpiece", "tiny"),
    "wnf_imdb": ("imdb", "wordpiece", "mini"),
    "wnf_ag_news": ("ag_news", "wordpiece", "mini"),
    "long_sequences": ("pysource", "bytes", "mini"),
    "positions": ("imdb", "wordpiece", "mini"),
    "sizes": ("imdb", "wordpiece", "tiny"),
    "modifications": ("imdb", "wordpiece", "mini"),
}
SCRATCH = ("quick", "long_sequences")  # studies without pretraining
HERE = (
    "dataset=files",
    "dataset.path=rows.csv",
    "hardware.dtype=fp32",
    "wandb=disabled",
)  # the data of the test's project
Plan = Callable[..., Any]


@pytest.fixture
def plan(project: Project, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """plan(words) gives the sweep that `run.py words` would run, all of its jobs composed and checked."""
    sweeps: list[Any] = []
    real = tests.entry.plan_sweep
    monkeypatch.setattr(tests.entry, "plan_sweep", lambda *given: sweeps.append(real(*given)) or sweeps[-1])
    run = enter(project.folder, monkeypatch)

    def planned(*words: str) -> Any:
        outcome = run(*words, *HERE, seconds=120)
        assert outcome.code in (0, None) and not outcome.traceback, outcome.stderr + outcome.traceback
        return sweeps.pop()

    return planned


def of_kind(sweep: Any, kind: str) -> list[Any]:
    return [job for job in sweep.jobs if job.kind == kind]


def composed(*words: str, conf: Path = ROOT / "conf") -> Any:
    """The composed configuration, Hydra's node included."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose("config", overrides=list(words), return_hydra_config=True)


def test_every_study_is_listed_here() -> None:
    assert {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")} == set(AXES) == set(CHOICES)


@pytest.mark.parametrize("seeds", [["2"], pytest.param(SEEDS, marks=pytest.mark.slow)], ids=["one seed", "all seeds"])
@pytest.mark.parametrize("experiment", few(AXES, 2))
def test_all_jobs_of_a_study_compose(plan: Plan, experiment: str, seeds: list[str]) -> None:
    sweep, axes = (
        plan(f"experiment={experiment}", *(["seed=2"] if seeds != SEEDS else [])),
        {**AXES[experiment], "seed": seeds},
    )
    assert sweep.name == experiment and sweep.equal == 0 and [job.cause for job in sweep.jobs if job.cause] == []
    cells = [
        tuple(dict(word.split("=", 1) for word in job.overrides)[axis] for axis in axes)
        for job in of_kind(sweep, "finetune")
    ]
    assert sorted(cells) == sorted(itertools.product(*axes.values()))
    parents = 0 if experiment in SCRATCH else len(cells) // len(seeds)  # one for each architecture, shared by its seeds
    assert (len(of_kind(sweep, "pretrain")), len(of_kind(sweep, "baseline"))) == (parents, 1)
    assert len({job.hash for job in sweep.jobs}) == len({job.folder for job in sweep.jobs}) == len(sweep.jobs)
    for job in of_kind(sweep, "finetune"):
        assert [sweep.jobs[number].kind for number in job.needs] == ["baseline", "pretrain"][: 1 + (parents > 0)]
        config = job.outline.record.config
        assert len(config["study"]) > 20
        claims = claims_from(
            {key.partition(".")[2]: value for key, value in config.items() if key.startswith("claims.")}
        )
        assert claims.min_seeds <= len(SEEDS) and (str(claims.seq_len) in axes.get("seq_len", [str(config["seq_len"])]))


@pytest.mark.parametrize("experiment", AXES)
def test_a_study_names_its_data_and_says_what_it_costs(experiment: str) -> None:
    whole = composed(f"experiment={experiment}")
    assert list(whole.hydra.sweeper.params) == list(AXES[experiment]) and whole.hydra.sweeper.params.seed == ",".join(
        SEEDS
    )
    choices = whole.hydra.runtime.choices
    assert (choices["dataset"], choices["tokenizer"], choices["size"]) == CHOICES[experiment]
    head = (ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text().partition("defaults:")[0]
    assert experiment == "quick" or all(word in head for word in ("estimated", "two cores", "one T4", "one A100"))


def test_what_is_typed_changes_a_study(plan: Plan) -> None:
    sweep = plan("experiment=wnf_imdb", "size=small", "seed=5", "attention=reformer", "pretraining.epochs=2")
    [job], [parent] = of_kind(sweep, "finetune"), of_kind(sweep, "pretrain")
    assert "-reformer-rope-small-n512-s5-" in job.folder and "-reformer-rope-small-n512-s0-" in parent.folder
    assert parent.outline.record.config["pretraining.epochs"] == 2
    assert (
        plan("-m", "experiment=wnf_imdb", "seed=1,2", "attention=sdpa")
        .jobs[-1]
        .folder.startswith("multirun/wnf_imdb/files/finetune-sdpa-")
    )


def test_equal_cells_are_one_job(plan: Plan) -> None:
    sweep = plan("experiment=quick", "seed=0,0", "attention=sdpa,sdpa")
    assert len(of_kind(sweep, "finetune")) == 1 and sweep.equal == 3


@pytest.mark.slow
@pytest.mark.parametrize("experiment", AXES)
def test_a_cell_of_every_study_runs_two_steps(project: Project, experiment: str) -> None:
    words = [
        f"experiment={experiment}",
        "hydra.mode=RUN",
        "sweep=try",
        "finetuning.max_steps=2",
        "pretraining.max_steps=2",
    ]
    result = project.run(*words)
    assert result.returncode == 0, result.stderr[-2000:]
    records = [json.loads(path.read_text()) for path in project.folder.glob("multirun/try/*/*/record.json")]
    [fine] = [record for record in records if record["mode"] == "finetune"]
    assert fine["status"] == "completed" and fine["step"] == 2
    assert len(list(project.folder.glob("pretrain/*/record.json"))) == (experiment not in SCRATCH)


@pytest.mark.slow
def test_a_whole_study_runs_and_reports(project: Project) -> None:
    words = ("experiment=modifications", "attention=performer,performer_relu,reformer,window,sdpa", "seed=0,1")
    result = project.run(*words, timeout=280)
    assert result.returncode == 0, result.stderr[-3000:]
    records = [json.loads(path.read_text()) for path in project.folder.glob("multirun/modifications/*/*/record.json")]
    assert sorted(record["mode"] for record in records) == ["baseline"] + ["finetune"] * 10
    assert {record["status"] for record in records} == {"completed"}
    assert (
        len({record["pretrain"]["hash"] for record in records if record["pretrain"]})
        == 5
        == len(list(project.folder.glob("pretrain/*")))
    )
    words = [sys.executable, "-m", "xcls.runs.status", "multirun/modifications"]
    status = subprocess.run(words, cwd=project.folder, capture_output=True, text=True, timeout=60)
    assert status.returncode == 0 and "16 jobs: 16 done" in status.stdout
    result = project.run("runs=[multirun/modifications]", "out=rep", script="report.py")
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(project.folder / "rep" / "results.csv").query("mode == 'finetune'")
    assert len(table) == 10 and math.isfinite(table["macro_f1"].sum())


LETTERS = "defaults:\n  - override /tokenizer@_global_.tokenizer: bytes\n\n"


@pytest.fixture
def conf(project: Project) -> Path:
    """conf/ with a data set `letters` that wants bytes, and a study of it."""
    folder = project.folder / "conf"
    folder.unlink()
    shutil.copytree(ROOT / "conf", folder)
    (folder / "dataset" / "letters.yaml").write_text(
        LETTERS + (folder / "dataset" / "files.yaml").read_text().replace("name: files", "name: letters")
    )
    study = "# @package _global_\ndefaults:\n  - override /dataset: letters\n"
    (folder / "experiment" / "letters.yaml").write_text(study)
    (folder / "experiment" / "words.yaml").write_text(study + "  - override /tokenizer: words\n")
    return folder


@pytest.mark.parametrize(
    ("words", "tokenizer"),
    [
        ([], "wordpiece"),
        (["dataset=letters"], "bytes"),
        (["dataset=letters", "tokenizer=words"], "words"),
        (["tokenizer=words", "dataset=letters"], "words"),
        (["experiment=letters"], "bytes"),
        (["experiment=words"], "words"),
        (["experiment=words", "tokenizer=wordpiece"], "wordpiece"),
        (["experiment=letters", "dataset=files"], "wordpiece"),
    ],
)
def test_a_data_set_names_its_tokenizer(conf: Path, words: list[str], tokenizer: str) -> None:
    config = composed(*words, conf=conf)
    assert (config.tokenizer.name, config.hydra.runtime.choices["tokenizer"]) == (tokenizer, tokenizer)
    assert "tokenizer" not in config.dataset and "defaults" not in config.dataset


def test_a_run_takes_the_tokenizer_of_its_data(project: Project, conf: Path) -> None:
    words = ("dataset.path=rows.csv", "wandb=disabled")
    result = project.run("mode=init", "exp=base", "dataset=letters", *words, small=False)
    assert result.returncode == 0, result.stderr
    text = (project.folder / "pretrain" / "base" / "config.yaml").read_text()
    assert "choices.tokenizer: bytes" in text and "tokenizer.kind: bytes" in text and "choices.dataset: letters" in text
