"""Every file of conf/experiment is a whole study: its axes, its jobs, what they share; some of them run for real."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any, Callable

import pytest
from hydra import compose, initialize_config_dir

from tests.conftest import ROOT, SMALL, Project
from tests.entry import enter
from tests.pairwise import few
from xcls.report.settings import claims_from

MECHANISMS = sorted(path.stem for path in (ROOT / "conf" / "attention").glob("*.yaml"))
STUDIES = ["quick", "wnf_imdb", "wnf_ag_news", "long_sequences", "positions", "sizes", "modifications"]
SEEDS = ["0", "1", "2"]
SCRATCH = ("quick", "long_sequences")  # studies without pretraining
HERE = ("dataset=files", "dataset.path=rows.csv", "hardware.dtype=fp32", "wandb=disabled")  # data of the test's project
Plan = Callable[..., Any]


@pytest.fixture
def plan(project: Project, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """plan(words) gives the sweep that `run.py words` would run, all of its jobs composed and checked."""
    run = enter(project.folder, monkeypatch)

    def planned(*words: str) -> Any:
        outcome = run(*words, *HERE)
        assert outcome.code in (0, None) and not outcome.traceback, outcome.stderr + outcome.traceback
        return run.sweeps.pop()

    return planned


def of_kind(sweep: Any, kind: str) -> list[Any]:
    return [job for job in sweep.jobs if job.spec.kind == kind]


def composed(*words: str, conf: Path = ROOT / "conf") -> Any:
    """The composed configuration, Hydra's node included."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose("config", overrides=list(words), return_hydra_config=True)


def axes_of(experiment: str) -> dict[str, list[str]]:
    """The axes of a study, each with its values."""
    params = composed(f"experiment={experiment}").hydra.sweeper.params
    return {axis: MECHANISMS if value == "glob(*)" else value.split(",") for axis, value in params.items()}


@pytest.mark.parametrize("experiment", STUDIES)
def test_a_study_has_the_three_mechanisms_three_seeds_and_says_what_it_costs(experiment: str) -> None:
    assert {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")} == set(STUDIES)
    axes = axes_of(experiment)
    assert axes["seed"] == SEEDS and {"sdpa", "performer", "reformer"} <= set(axes["attention"])
    head = (ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text().partition("defaults:")[0]
    assert experiment == "quick" or all(word in head for word in ("two cores", "one T4", "one A100"))


@pytest.mark.parametrize("experiment", few(STUDIES, 2))
def test_all_jobs_of_a_study_compose(plan: Plan, experiment: str) -> None:
    sweep, axes = plan(f"experiment={experiment}", "seed=2"), {**axes_of(experiment), "seed": ["2"]}
    assert sweep.name == experiment and sweep.equal == 0 and [job.cause for job in sweep.jobs if job.cause] == []
    typed = [dict(word.split("=", 1) for word in job.overrides) for job in of_kind(sweep, "finetune")]
    assert sorted(tuple(cell[axis] for axis in axes) for cell in typed) == sorted(itertools.product(*axes.values()))
    parents = 0 if experiment in SCRATCH else len(typed)
    assert (len(of_kind(sweep, "pretrain")), len(of_kind(sweep, "baseline"))) == (parents, 1)
    assert len({job.spec.hash for job in sweep.jobs}) == len({job.folder for job in sweep.jobs}) == len(sweep.jobs)
    for job in of_kind(sweep, "finetune"):
        assert [needed.spec.kind for needed in job.needs] == ["baseline", "pretrain"][: 1 + (parents > 0)]
        config = job.spec.record.config
        told = {key.partition(".")[2]: value for key, value in config.items() if key.startswith("claims.")}
        claims = claims_from(told)
        assert len(config["study"]) > 20 and claims.min_seeds <= len(SEEDS)
        assert str(claims.seq_len) in axes.get("seq_len", [str(config["seq_len"])])


def test_what_is_typed_changes_a_study(plan: Plan) -> None:
    sweep = plan("experiment=wnf_imdb", "size=small", "seed=5,5", "attention=reformer", "pretraining.epochs=2")
    [job], [parent] = of_kind(sweep, "finetune"), of_kind(sweep, "pretrain")
    assert sweep.equal == 1 and job.folder.startswith("multirun/wnf_imdb/files/finetune-reformer-rope-small-n512-s5-")
    assert "-reformer-rope-small-n512-s0-" in parent.folder and parent.spec.record.config["pretraining.epochs"] == 2


def test_one_sweep_sets_keys_of_one_mechanism(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    run = enter(project.folder, monkeypatch)
    outcome = run("-m", "exp=sw", "attention=sdpa,performer", "+per.performer.num_features=16,32", *SMALL)
    assert outcome.code in (0, None), outcome.stderr + outcome.traceback
    configs = [job.spec.record.config for job in of_kind(run.sweeps[0], "finetune")]
    made = [(config["attention.name"], config.get("attention.num_features")) for config in configs]
    assert sorted(made) == [("performer", 16), ("performer", 32), ("sdpa", None)] and run.sweeps[0].equal == 1
    assert not any(key.startswith("per.") for config in configs for key in config)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", STUDIES)
def test_a_cell_of_every_study_runs_two_steps(project: Project, experiment: str) -> None:
    words = ["hydra.mode=RUN", "sweep=try", "finetuning.max_steps=2", "pretraining.max_steps=2"]
    result = project.run(f"experiment={experiment}", *words)
    assert result.returncode == 0, result.stderr[-2000:]
    records = [json.loads(path.read_text()) for path in project.folder.glob("multirun/try/*/*/record.json")]
    [fine] = [record for record in records if record["mode"] == "finetune"]
    assert fine["status"] == "completed" and fine["step"] == 2
    assert len(list(project.folder.glob("pretrain/*/record.json"))) == (experiment not in SCRATCH)


LETTERS = "defaults:\n  - override /tokenizer@_global_.tokenizer: bytes\n\n"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """conf/ with a data set `letters` that wants bytes, and two studies of it."""
    folder = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", folder)
    files = (folder / "dataset" / "files.yaml").read_text().replace("name: files", "name: letters")
    (folder / "dataset" / "letters.yaml").write_text(LETTERS + files)
    study = "# @package _global_\ndefaults:\n  - override /dataset: letters\n"
    (folder / "experiment" / "letters.yaml").write_text(study)
    (folder / "experiment" / "words.yaml").write_text(study + "  - override /tokenizer: words\n")
    return folder


@pytest.mark.parametrize(
    ("words", "tokenizer"),
    [
        ("dataset=letters", "bytes"),
        ("dataset=letters tokenizer=words", "words"),
        ("experiment=letters", "bytes"),
        ("experiment=words", "words"),
        ("experiment=words tokenizer=wordpiece", "wordpiece"),
        ("experiment=letters dataset=files", "wordpiece"),
    ],
)
def test_a_data_set_names_its_tokenizer(conf: Path, words: str, tokenizer: str) -> None:
    config = composed(*words.split(), conf=conf)
    assert (config.tokenizer.name, config.hydra.runtime.choices["tokenizer"]) == (tokenizer, tokenizer)
    assert "tokenizer" not in config.dataset and "defaults" not in config.dataset
