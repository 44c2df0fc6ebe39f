"""Before work begins: a job of a sweep runs what its sweep has planned, and a mechanism keeps its promises, or nothing is run."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from tests.samples import CONF
from xcls import build
from xcls.attention.softmax import Sdpa
from xcls.config.files import read_yaml
from xcls.config.schema import Config, Hardware, UserError, unflatten
from xcls.stages import start
from xcls.train.cards import Card, Cards


@pytest.mark.parametrize(("planned", "refused"), [("a" * 64, True), ("b" * 64, False), ("", False)])
def test_a_job_whose_hash_is_no_longer_the_planned_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, planned: str, refused: bool
) -> None:
    class Began(Exception):
        """The run goes on."""

    def decide(*_: object, **__: object) -> None:
        raise Began

    monkeypatch.setenv("XCLS_HASH", planned)
    monkeypatch.setattr(start, "decide", decide)
    config = SimpleNamespace(resume=False, sweep="s", retry_failed=False)
    with pytest.raises(UserError if refused else Began):
        start._train(SimpleNamespace(config=config, digest="b" * 64, code={}, folder=None))


def test_the_architecture_is_tried_once_and_one_that_sees_padding_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, calls, attend = Config(), [], Sdpa.attend
    for group, name in (("attention", "sdpa"), ("position", "relative")):
        setattr(config, group, unflatten(read_yaml(CONF / group / f"{name}.yaml")))
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
    with pytest.raises(UserError, match=r"attention=sdpa \(xcls\.attention\.softmax\.Sdpa\): it sees padding"):
        build.check_architecture(config)
    build._check_contracts.cache_clear()


def test_what_is_written_down_is_the_code_that_was_hashed_or_the_run_does_not_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = Config(mode="finetune")
    for group, name in (("attention", "sdpa"), ("position", "rope")):
        setattr(config, group, unflatten(read_yaml(CONF / group / f"{name}.yaml")))
    used: list[str] = []
    monkeypatch.setattr(build, "find_sources", lambda paths: used.extend(path.name for path in paths) or used)
    plan = build.Plan(config, {}, None, [], CONF.parent)
    plan.freeze()
    assert set(used) == {"__init__.py", "base.py", "softmax.py", "softmax_blocks.py", "rope.py", "rope_triton.py"}
    plan.code = {"attention": "another", "position": plan.code["position"]}
    with pytest.raises(UserError, match="changed just as the run began"):
        plan.freeze()


def test_a_card_that_torch_has_no_code_for_is_refused_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """But a finished run is still told of on any machine."""
    v100 = Cards("2.13.0+cu130", (Card("Tesla V100", (7, 0)),), ("sm_75", "sm_80"))
    config = Config(mode="finetune", hardware=Hardware(name="v100", device="cuda", dtype="fp16"))
    plan = build.Plan(config, {}, None, [], CONF.parent, find=lambda: v100)
    planned = SimpleNamespace(
        config=config, digest="b" * 64, code={}, folder=CONF, runs=CONF.parent, check_device=plan.check_device
    )
    monkeypatch.setattr(start, "check_architecture", lambda config: pytest.fail("it went on"))
    monkeypatch.setattr(start, "decide", lambda *_, **__: ("fresh", None))
    with pytest.raises(
        UserError, match="Tesla V100, capability 7.0: this torch .* --index-url https://download.pytorch.org/whl/cu126"
    ):
        start._train(planned)
    monkeypatch.setattr(start, "decide", lambda *_, **__: ("done", SimpleNamespace(status="completed", cause=None)))
    assert start._train(planned) == 0


@pytest.mark.parametrize(
    ("mode", "refused"), [("finetune", True), ("bench", True), ("eval", False), ("predict", False)]
)
def test_bf16_where_there_is_none_is_for_reading_finished_runs_alone(
    mode: str, refused: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    t4 = Cards("2.13.0", (Card("Tesla T4", (7, 5)),), ("sm_75",))
    config = Config(mode=mode, hardware=Hardware(device="cuda", dtype="bf16"))
    plan = build.Plan(config, {}, None, [], CONF.parent, find=lambda: t4)
    with pytest.raises(UserError, match="hardware.dtype=bf16: Tesla T4") if refused else nullcontext():
        plan.check_device()
    assert capsys.readouterr().err.startswith("" if refused else "WARNING: hardware.dtype=bf16: Tesla T4")
