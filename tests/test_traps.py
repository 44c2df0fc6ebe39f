"""The usual slips at the command line end with one message and exit code 2; completion and help load nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Project
from tests.pairwise import few
from xcls.config.cli_checks import check_slips
from xcls.config.errors import word_hydra
from xcls.config.schema import UserError

CONF = ROOT / "conf"
HEAVY = (
    "torch",
    "numpy",
    "pandas",
    "datasets",
    "sklearn",
    "scipy",
    "wandb",
    "matplotlib",
    "tokenizers",
    "transformers",
    "submitit",
)

SLIPS = {
    "-m seed=0, 1": "python run.py -m seed=0,1",
    "-m seed=0 ,1": "python run.py -m seed=0,1",
    "-m seed=0 , 1 size=mini": "python run.py -m seed=0,1 size=mini",
    "seed=0, 1, 2": "python run.py -m seed=0,1,2",
    "-m attention=sdpa performer": "python run.py -m attention=sdpa,performer",
    "-m attention=sdpa, performer seed=0,1": "python run.py -m attention=sdpa,performer seed=0,1",
    "-m seed=0,": "python run.py -m seed=0",
    "seed = 5": "python run.py seed=5",
    "size=mini seed =5": "python run.py size=mini seed=5",
    "pretrain exp=base": "python run.py mode=pretrain exp=base",
    "exp=base pretrain": "python run.py exp=base mode=pretrain",
    "seed=0 performer": "python run.py seed=0 attention=performer",
    "position": "There is: position=learned, position=none",
    "experiment=quick experiment=wnf_imdb": "one study at a time",
    "-m experiment=quick,wnf_imdb": "one study at a time",
    "+experiment=quick": "without the plus: experiment=quick",
    "++attention=sdpa": "without the plus: attention=sdpa",
    "attention.name=performer": "attention=performer",
    "attention.name=performer_favor": "attention=performer",
    "-m attention.name=sdpa,reformer": "attention=sdpa,reformer",
    "size.name=small": "size=small",
    "dataset.name=imdb": "dataset=imdb",
    "-m attention=sdpa attention=performer": "-m attention=sdpa,performer",
    "seed=0 size=mini seed=1": "seed=0 seed=1: seed is typed 2 times, and only one can be meant. Leave one. To run each, in a sweep: -m seed=0,1",
    "seed=0 +seed=1": "-m seed=0,1",
    "-m seed=0,1 seed=2": "-m seed=0,1,2",
    "finetuning.lr=1e-3 finetuning.lr=1e-4": "-m finetuning.lr=1e-3,1e-4",
    "hydra/launcher=slurm hydra/launcher=gpu_server": "typed 2 times",
    "seed=0 seed=0": "typed 2 times",
    "--config-name=confg": "experiment=<name>",
    "--config-name report": "experiment=<name>",
    "-cn confg": "experiment=<name>",
    "--experiment=quick": "A setting is written without dashes: experiment=quick",
    "-m size=mini,small --cfg job": "leave -m",
    "--multrun seed=0,1": "Did you mean '--multirun'?",
    "-x": "no such option",
}
FINE = [
    "-m seed=0,1 attention=sdpa,performer",
    "",
    "--cfg job",
    "--cfg job -p size",
    "-c job --resolve",
    "--help",
    "-sc install=bash",
    "--info",
    "--cfg hydra",
    "--config-dir /tmp seed=1",
    "--config-name=config",
    "+seed=0",
    "~seed",
    "exp=",
    "attention.num_features=64",
    "size.name=my_own size.width=64",
    "attention=performer attention.name=mine",
    "experiment=quick",
    "study=one,two",
    "'study=two words'",
    "bench.attentions=[sdpa,reformer:num_hashes=4]",
    "attention=performer attention.num_features=64 finetuning.lr=1 pretraining.lr=1",
    "dataset.path=a.csv dataset.path=b.csv",
    "hydra/launcher=slurm",
    "bench.name=attention",
    "attention=glob(*)",
]


@pytest.mark.parametrize(("words", "meant"), SLIPS.items())
def test_a_slip_is_answered_with_what_was_meant(words: str, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        check_slips(words.split(), CONF)
    assert meant in str(caught.value)


@pytest.mark.parametrize("words", FINE)
def test_what_is_no_slip_passes(words: str) -> None:
    typed = ["study=two words"] if "'" in words else words.split()
    settings = check_slips(typed, CONF)
    assert (
        settings == [word for word in typed if "=" in word and not word.startswith("-") or word == "~seed"]
        or "install=bash" in words
    )


END_TO_END = {
    "-m seed=0, 1": "-m seed=0,1",
    "seed=0,1": "needs -m:\n  python run.py -m seed=0,1",
    "dataset.path=a,b": "'dataset.path=\"a,b\"'",
    "dataset.path=ü,Bob's": "'dataset.path='\"'\"'ü,Bob\\'\"'\"'s'\"'\"''",
    "attention=sdpa,performer seed=1": "python run.py -m attention=sdpa,performer seed=1",
    "--cfg job -p attenton": "Did you mean 'attention'?",
    "attention=performr": "Did you mean 'performer'? There is: ",
    "attention=": "attention=: no such option. There is: ",
    "hydra/launcher=slrum": "Did you mean 'slurm'?",
    "-m hydra/launcher=slrum seed=0,1": "Did you mean 'slurm'?",
    "-m hydra/launcher=submitit_local seed=0,1": "hydra/launcher=submitit_local: no such option. There is: gpu_server, slurm.",
    "-m hydra/launcher=basic seed=0,1": "There is: gpu_server, slurm.",
    "launcher=slurm": "Did you mean 'hydra/launcher'?",
    "experiment=wnf_imbd": "Did you mean 'wnf_imdb'?",
    "+experiment=quick": "without the plus",
    "attention.name=performer": "attention=performer",
    "-m attention=sdpa attention=performer": "-m attention=sdpa,performer",
    "--config-name=confg": "conf/config.yaml",
}


@pytest.mark.parametrize(("words", "message"), few(END_TO_END.items(), 3))
def test_run_py_refuses_with_one_message(project: Project, words: str, message: str) -> None:
    before = project.files()
    result = project.run(*words.split(), small=False, fresh=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.startswith("run.py: ") and result.stderr.count("run.py: ") == 1
    assert "Traceback" not in result.stderr and "hydra.cc" not in result.stderr and len(result.stderr) < 700
    assert project.files() <= before


def test_a_message_of_hydra_that_nobody_foresaw_is_short() -> None:
    text = "Something odd\nat length\nSee https://hydra.cc/docs\nmore\nand more"
    assert word_hydra(text, "ValueError: why", ["x=1"], CONF) == "Something odd at length ValueError: why"


def heavy_modules(folder: Path, *words: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs run.py with these words in a child that tells at its end what it has imported, and how often it began."""
    code = f"""
import atexit, runpy, sys
heavy = {HEAVY!r}
atexit.register(lambda: print("HEAVY", *[m for m in heavy if m in sys.modules], file=sys.stderr))
sys.argv = ["run.py", *{list(words)!r}]
sys.path.insert(0, {str(folder)!r})
runpy.run_path({str(folder / "run.py")!r}, run_name="__main__")
"""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**plain, **variables}, capture_output=True, text=True, timeout=60
    )
    return result, [line for line in result.stderr.splitlines() if line.startswith("HEAVY")]


COMPLETION = {"COMP_LINE": "python run.py attention=perf", "COMP_POINT": "28"}


@pytest.mark.parametrize(
    ("words", "shows"),
    [
        (("--help",), "attention"),
        (("--cfg", "job"), "num_layers: 2"),
        (("-sc", "install=bash"), "complete"),
        (("-sc", "query=bash"), "attention=performer_relu"),
    ],
    ids=["help", "cfg", "install", "complete"],
)
def test_answers_import_nothing_heavy_and_start_once(project: Project, words: tuple[str, ...], shows: str) -> None:
    result, tells = heavy_modules(project.folder, *words, **(COMPLETION if "query=bash" in words else {}))
    assert shows in result.stdout, result.stderr
    assert tells == ["HEAVY"]  # once: a second start would have replaced this program, and nobody would tell


def test_a_refusal_imports_nothing_heavy(project: Project) -> None:
    result, tells = heavy_modules(project.folder, "seed=abc", MALLOC_TOP_PAD_="67108864")
    assert "Value 'abc'" in result.stderr and tells == ["HEAVY"]


def test_completion_knows_groups_options_and_studies(project: Project) -> None:
    for line, expected in (
        ("posit", "position="),
        ("experiment=wnf", "experiment=wnf_imdb"),
        ("hydra/launcher=sl", "hydra/launcher=slurm"),
    ):
        whole = f"python run.py {line}"
        result = subprocess.run(
            [sys.executable, "run.py", "-sc", "query=bash"],
            cwd=project.folder,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "COMP_LINE": whole, "COMP_POINT": str(len(whole))},
        )
        assert expected in result.stdout.split(), (line, result.stdout, result.stderr)


@pytest.mark.parametrize("shell", few(["bash", "zsh", "fish"], 1))
def test_completion_offers_no_launcher_that_would_be_refused(project: Project, shell: str) -> None:
    whole = "python run.py hydra/launcher="
    result = subprocess.run(
        [sys.executable, "run.py", "-sc", f"query={shell}"],
        cwd=project.folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COMP_LINE": whole, "COMP_POINT": str(len(whole))},
    )
    assert result.stdout.split() == ["hydra/launcher=gpu_server", "hydra/launcher=slurm"], result.stderr
