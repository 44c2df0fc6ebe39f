"""The report's own reproduce.sh: its last command makes the same report, whatever was set."""

from __future__ import annotations

import html
import shlex

import pytest

from tests.report.examples import contents, records
from tests.report.test_report import run
from xcls.report.settings import Settings, cli_overrides, inside
from xcls.report.write import write_report

TYPED = [
    "rank_by=auroc",
    "claims.min_seeds=2",
    "claims.seq_len=512",
    "claims.families.performer.max_loss_pp=0.5",
    "claims.families.sdpa.min_gain_pp=null",
    "++claims.families.window.max_time_ratio=0.9",
    "~claims.families.reformer",
    "claims.references=[sdpa,window]",
    "cost.price_per_hour=0.45",
    "cost.watts=65",
    "cost.currency='US $, \"net\"'",
    r"++cost.devices={A100\ \(80GB\):{price_per_hour:1.5,watts:400}}",
    "intervals.level=0.9",
    "intervals.most_groups=3",
    "++originals.reformer=sdpa",
    "~originals.window",
]


def last_command(folder):
    """The words of the report's command in a reproduce.sh."""
    return shlex.split((folder / "reproduce.sh").read_text(encoding="utf-8").splitlines()[-1])


@pytest.mark.slow
def test_the_script_s_command_gives_the_same_report(make, tmp_path):
    study = list(records(make))
    for record in study:  # an experiment's own claims, which lose to what is typed
        record.config.update({"claims.seq_len": 256, "claims.families.performer.max_spread_pp": 0.7})
    make.save(study, tmp_path, sweep="a, b")
    done = run([f"runs=['{tmp_path}/multirun/a, b']", f"out={tmp_path}/multirun/report", *TYPED], tmp_path)
    assert done.returncode == 0, done.stderr
    first = contents(tmp_path / "multirun" / "report")
    program, script, *words = last_command(tmp_path / "multirun" / "report")
    assert (program, script) == ("$PYTHON", "report.py") and str(tmp_path) not in " ".join(words)
    again = run(words, tmp_path)
    assert again.returncode == 0, again.stderr
    assert contents(tmp_path / "multirun" / "report") == first and again.stdout == done.stdout
    page = html.unescape(first["index.html"].decode())
    assert "US $" in page and '"level": 0.9' in page


def test_what_was_typed_is_given_again_with_the_paths_as_another_clone_has_them():
    settings = Settings(runs=["multirun/a b"], out="x")
    typed = ["runs=[/home/me/multirun]", "claims.seq_len=512", "~originals.window", "++out=/tmp/y"]
    assert cli_overrides(settings, typed) == [
        "runs=['multirun/a b']",
        "out=x",
        "claims.seq_len=512",
        "~originals.window",
    ]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("{root}/multirun/a", "multirun/a"),
        ("../{name}/multirun", "multirun"),
        ("/elsewhere/a", "/elsewhere/a"),
        ("wandb:me/x/1", "wandb:me/x/1"),
        ("multirun/../b", "b"),
        ("{link}/a", "a"),
    ],
)
def test_paths_in_the_project_are_relative_to_it(tmp_path, path, told):
    (tmp_path / "project").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "project")
    root = tmp_path / "project"
    given = path.format(root=root, name=root.name, link=tmp_path / "link")
    assert inside(Settings(runs=[given], out=given), root) == Settings(runs=[told], out=told)


def test_a_report_written_elsewhere_names_its_folder(make, tmp_path):
    make.save(records(make), tmp_path / "project")
    write_report(Settings(runs=["multirun"], out=str(tmp_path / "o u t")), root=tmp_path / "project")
    assert last_command(tmp_path / "o u t")[3] == f"out='{tmp_path}/o u t'"
