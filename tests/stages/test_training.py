"""Before work begins: the job is the planned one, the mechanism keeps its contract, and the device can do it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.samples import CONF
from xcls import build
from xcls.attention.softmax import Sdpa
from xcls.config.compose import RunConfig
from xcls.config.files import read_yaml
from xcls.config.schema import Config, Hardware, UserError, unflatten
from xcls.runs.folder import DONE, FRESH
from xcls.runs.record import write_record
from xcls.stages import needs, training
from xcls.stages.spec import RunSpec
from xcls.train.cards import Card, Cards

CHOICES = {"dataset": "files", "attention": "sdpa", "position": "relative", "size": "tiny"}
V100 = Cards("2.13.0+cu130", (Card("Tesla V100", (7, 0)),), ("sm_75", "sm_80"))
T4 = Cards("2.13.0", (Card("Tesla T4", (7, 5)),), ("sm_75",))


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    """A fine-tuning run of a sweep on the CPU, from a pretraining run that is still to be made. No data are read."""
    monkeypatch.setenv("XCLS_RUNS", str(tmp_path))
    monkeypatch.setattr(build, "make_source", lambda config: SimpleNamespace(fingerprint=lambda: "f"))
    config = Config(mode="finetune", sweep="s", pretrain="auto", hardware=Hardware(device="cpu", dtype="fp32"))
    for group in ("attention", "position"):
        setattr(config, group, unflatten(read_yaml(CONF / group / f"{CHOICES[group]}.yaml")))
    return build.run_spec(RunConfig(config, dict(CHOICES), None, [], CONF.parent))


def leave(spec: RunSpec, status: str) -> None:
    """The folder of a run that has ended."""
    record = spec.record(None)
    record.status = status
    spec.folder.mkdir(parents=True, exist_ok=True)
    write_record(record, spec.folder)


def test_a_finished_run_is_named_as_such_and_a_job_that_was_planned_otherwise_is_refused(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for status, code in (("completed", 0), ("failed", 1)):
        leave(spec, status)
        for planned in ("", spec.digest):
            monkeypatch.setenv("XCLS_HASH", planned)
            assert training.train(spec) == code and status in capsys.readouterr().out
    monkeypatch.setenv("XCLS_HASH", "a" * 64)
    with pytest.raises(UserError, match="sweep"):
        training.train(spec)


def test_what_a_run_needs_first_is_the_same_for_a_launcher_and_for_a_single_run(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs.classes_of[needs.digest(["f", spec.tree["dataset"]])] = ["a", "b"]
    baseline, pretraining, own = needs.with_needs(spec)
    assert [job.kind for job in (baseline, pretraining, own)] == ["baseline", "pretrain", "finetune"]
    assert own.needs == [baseline.hash, pretraining.hash] and own.action == FRESH and own.overrides is None
    started: list[dict[str, Any]] = []

    def run(command: list[str], environment: dict[str, str]) -> tuple[int, bool]:
        started.append({"words": command[2:], "hash": environment["XCLS_HASH"]})
        if "mode=pretrain" in command:
            leave(spec.pretraining, "completed")
        return int("mode=baseline" in command), False  # a baseline that fails stops no run

    monkeypatch.setattr(needs, "run_child", run)
    needs.make_first(spec)
    assert started == [{"words": job.overrides, "hash": job.hash} for job in (baseline, pretraining)]
    for job in (baseline, pretraining):
        assert job.folder is not None and (job.folder / "config.yaml").read_text() == job.file
    assert spec.parent == pretraining.folder and needs.with_needs(spec)[1].action == DONE


def test_a_job_of_a_launcher_makes_nothing_itself(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCLS_HASH", spec.digest)
    monkeypatch.setattr(needs, "run_child", lambda *_: pytest.fail("it started a process"))
    with pytest.raises(UserError, match="pretrain=auto"):
        needs.make_first(spec)


def test_the_architecture_is_tried_once_and_one_that_sees_padding_is_refused_by_name(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    config, attend = spec.config, Sdpa.attend
    monkeypatch.setattr(Sdpa, "attend", lambda *parts: calls.append(1) or attend(*parts))
    build._check_contracts.cache_clear()
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    build.check_architecture(config)
    tried = len(calls)
    config.seed, config.seq_len = 7, 16384
    build.check_architecture(config)
    assert tried == len(calls) > 10 and torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    monkeypatch.setattr(Sdpa, "attend", lambda *parts: attend(*parts[:-1], parts[-1].with_(padding=None)))
    build._check_contracts.cache_clear()
    with pytest.raises(UserError, match=r"attention=sdpa \(xcls\.attention\.softmax\.Sdpa\)"):
        build.check_architecture(config)
    build._check_contracts.cache_clear()


def test_a_card_that_cannot_do_it_is_refused_but_a_finished_run_is_told_of(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec.config.hardware, spec.find = Hardware(name="v100", device="cuda", dtype="fp16"), lambda: V100
    monkeypatch.setattr(build, "check_architecture", lambda config: pytest.fail("it went on"))
    with pytest.raises(UserError, match="Tesla V100, capability 7.0"):
        training.train(spec)
    leave(spec, "completed")
    assert training.train(spec) == 0


@pytest.mark.parametrize(
    ("mode", "refused"), [("finetune", True), ("bench", True), ("eval", False), ("predict", False)]
)
def test_bf16_where_there_is_none_is_for_reading_finished_runs_alone(
    mode: str, refused: bool, spec: RunSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    spec.config.mode, spec.config.hardware = mode, Hardware(device="cuda", dtype="bf16")
    spec.find = lambda: T4
    if refused:
        with pytest.raises(UserError, match="hardware.dtype=bf16: Tesla T4"):
            spec.check_device()
    else:
        spec.check_device()
        assert "hardware.dtype=bf16: Tesla T4" in capsys.readouterr().err
