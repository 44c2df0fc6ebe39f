"""What is typed: quoted where Hydra needs it, refused with one message and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT, SMALL, Project
from tests.entry import entered
from xcls.config.command_line import prepare
from xcls.config.schema import UserError
from xcls.runs.paths import quoted

CONF = ROOT / "conf"
HEAVY = ("torch", "numpy", "pandas", "datasets", "sklearn", "scipy", "wandb", "matplotlib", "tokenizers", "submitit")
NEEDLESS = ("matplotlib", "datasets", "transformers", "wandb", "pyarrow.dataset", "pyarrow.parquet", "huggingface_hub")


def prepared(*words: str) -> list[str]:
    return prepare(words, CONF, OverridesParser.create().parse_override)


def read(word: str) -> Any:
    """What Hydra makes of the value in `key=value`: one, or a list of those of a sweep."""
    override = OverridesParser.create().parse_override(word)
    if override.is_sweep_override():
        return [getattr(value, "text", value) for value in override.value().list]
    return override.value()


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12))
def test_any_quoted_text_comes_back_as_it_was(text: str) -> None:
    assert read(f"template={quoted(text)}") == text


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("dataset.path=~/my data.csv", "~/my data.csv"),
        ("dataset.path=Übung;1.csv,b,c=d", ["Übung;1.csv", "b", "c=d"]),
        ("exp=2024_01", "2024_01"),
        ("exp=1e5", "1e5"),
        ("exp=5", 5),
        ('dataset.path="a,b"', "a,b"),
        ("dataset.path=null", None),
        ("dataset.source.separator=;", ";"),
        ("seed=0,1", [0, 1]),
        ("finetuning.lr=1e-3", 1e-3),
        ('bench.attentions=[sdpa,"reformer:num_hashes=4"]', ["sdpa", "reformer:num_hashes=4"]),
    ],
)
def test_a_plain_text_needs_no_quotes(word: str, value: Any) -> None:
    (found,) = prepared(word)
    assert read(found) == value


@pytest.mark.parametrize(
    "words",
    ["--cfg job", "-sc install=bash", "~seed", "seed=range(0,3)", "dataset.path=${oc.env:HOME}/x", "-m seed=0,1"],
)
def test_options_and_functions_stay(words: str) -> None:
    assert prepared(*words.split()) == words.split()


def test_where_a_file_names_the_class_its_keys_are_admitted() -> None:
    assert prepared("mode=pretrain", "attention.num_features=8", "-m")[::2] == ["-m", "++attention.num_features=8"]
    assert prepared("attention=performer", "mode=pretrain", "attention.num_features=8")[2][0] == "a"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("-m seed=0, 1", "seed=0,"),
        ("pretrain exp=base", "pretrain: "),
        ("-m experiment=quick,wnf_imdb", "experiment=quick,wnf_imdb"),
        ("-m hydra/launcher=slrum seed=0,1", "'slurm'"),
    ],
)
def test_a_word_that_hydra_would_misread_is_refused(words: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        prepared(*words.split())


REFUSED = [  # what is typed, and what the message must name
    ("atention=sdpa", "'attention'"),
    ("attention=sdpaa", "'sdpa'"),
    ("attention=performer attention.num_featurs=3", "'attention.num_features'"),
    ("attention=performer attention.num_features=many", "attention.num_features=many: int"),
    ("attention.num_features=64", "only in performer,"),
    ("-m attention=sdpa,performer attention.num_features=64", "+per.performer.num_features"),
    ("attention.name=performer", "attention=performer"),
    ("per.performer.num_features=64", "+per.performer.num_features"),
    ("+per.performer.num_features=64", "attention=sdpa"),
    ("-m attention=sdpa,performer +per.performer.num_featurs=1", "'per.performer.num_features'"),
    ("dataset=my/tickets.csv", "dataset=files dataset.path=my/tickets.csv"),
    ("mode=train", "finetune"),
    ("finetuning.lrr=1", "'finetuning.lr'"),
    ("launcher=slurm", "'hydra/launcher'"),
    ("+nope=1", "nope: unknown key"),
    ("seed=abc", "seed: "),
    ("seed=0,1", "-m"),
    ("seq_len=20000", "seq_len=20000: a value from 1 to 16384 is needed. (from the command line)"),
    ("size.num_heads=3", "size.num_heads=3"),
    ("exp=../../x", "exp=../../x"),
    ("attention=../position/rope", "attention._target_=xcls.position"),
    ("~seed", "~seed"),
    ("position=null", "run.py: "),
    ("seed=${nope}", "nope"),
    ("x=[[[", "run.py: "),
    ("experiment=quik", "'quick'"),
    ("template=nope.yaml", "nope.yaml"),
    ("pretrain=base", "pretrain=base"),
    ("mode=eval exp=ft", "exp=ft"),
    ("dataset.path=nope.csv", "nope.csv"),
    ("-m dataset.path=rows.csv,nope.csv", "nope.csv"),
    ("dataset.label=kind", "kind"),
    ("head.num_classes=5", "head.num_classes=5"),
]


@pytest.mark.parametrize(("words", "named"), REFUSED, ids=[words for words, _ in REFUSED])
def test_bad_input_is_refused_before_anything_is_written(project: Project, words: str, named: str) -> None:
    typed = {word.partition("=")[0] for word in words.split()}
    small = [word for word in SMALL if word.partition("=")[0] not in typed]
    with entered(project.folder) as enter:
        outcome = enter(*small, *words.split())
    assert outcome.code == 2 and not outcome.traceback, outcome.stderr + outcome.traceback
    assert outcome.stderr.count("run.py: ") == 1 and named in outcome.stderr
    assert "Traceback" not in outcome.stderr and "hydra.cc" not in outcome.stderr
    assert enter.sweeps == [] and enter.stages == [] and outcome.files == []


def test_a_refusal_is_exit_code_2_of_the_process(project: Project) -> None:
    before = project.files()
    result = project.run("atention=sdpa", small=False, fresh=True)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (
        2,
        "",
        1,
    ) and "'attention'" in result.stderr
    assert project.files() <= before


def loaded(code: str, project: Project, **variables: str) -> tuple[str, set[str]]:
    """The output of `code`, and the modules that it has imported at its end."""
    tell = "import atexit, sys; atexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr))\n"
    environment = {**project.environment, "MALLOC_TOP_PAD_": "67108864", **variables}
    words = [sys.executable, "-c", tell + code]
    done = subprocess.run(words, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1].split()
    assert last[0] == "LOADED", done.stderr
    return done.stdout + done.stderr, set(last)


@pytest.mark.parametrize(
    ("words", "shows"),
    [
        ("run.py --help", "attention"),
        ("run.py --cfg job", "num_layers: 2"),
        ("run.py -sc query=bash", "attention=performer_relu"),
        ("run.py seed=abc", "seed: "),
        ("report.py --help", "rank_by"),
    ],
)
def test_questions_and_refusals_load_nothing_heavy(project: Project, words: str, shows: str) -> None:
    code = f"import runpy, sys; sys.argv = {words.split()}; runpy.run_path(sys.argv[0], run_name='__main__')"
    output, modules = loaded(code, project, COMP_LINE="python run.py attention=perf", COMP_POINT="28")
    assert shows in output and not modules & set(HEAVY)


@pytest.mark.slow
def test_the_path_to_the_first_step_loads_nothing_needless(project: Project) -> None:
    code = """
import xcls.build, xcls.stages.finetune
from xcls.data.files import Files
from xcls.data.splits import prepare
from xcls.data.tokenizer import make_tokenizer
from xcls.config.schema import Dataset, Tokenizer
from xcls.stages.texts import classification_data
prepared = prepare(Files(path="rows.csv"), Dataset())
tokenizer = make_tokenizer(Tokenizer(vocab_size=120), prepared.mlm_texts)
classification_data(prepared, tokenizer, seq_len=24, truncate="head")
"""
    modules = loaded(code, project)[1]
    assert "torch" in modules and not modules & set(NEEDLESS)
