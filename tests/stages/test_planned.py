"""Before work begins: a job of a sweep runs what its sweep has planned, and a mechanism keeps its promises, or nothing is run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.samples import CONF
from xcls import build, start
from xcls.attention.sdpa import Sdpa
from xcls.run_files import read_yaml
from xcls.schema import Config, UserError, unflatten


@pytest.mark.parametrize(("planned", "refused"), [("a" * 64, True), ("b" * 64, False), ("", False)])
def test_a_job_whose_hash_is_no_longer_the_planned_one_is_refused(monkeypatch: pytest.MonkeyPatch, planned: str, refused: bool) -> None:
    class Began(Exception):
        """The run goes on."""

    def decide(*_: object, **__: object) -> None:
        raise Began

    monkeypatch.setenv("XCLS_HASH", planned)
    monkeypatch.setattr(start, "decide", decide)
    config = SimpleNamespace(resume=False, sweep="s", retry_failed=False)
    with pytest.raises(UserError if refused else Began):
        start._train(SimpleNamespace(config=config, digest="b" * 64, code={}, folder=None))


def test_the_architecture_is_tried_once_and_one_that_sees_padding_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    config, calls, attend = Config(), [], Sdpa.forward
    for group, name in (("attention", "sdpa"), ("position", "relative")):
        setattr(config, group, unflatten(read_yaml(CONF / group / f"{name}.yaml")))
    monkeypatch.setattr(Sdpa, "forward", lambda *parts, **given: calls.append(1) or attend(*parts, **given))
    build._check_contracts.cache_clear()
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    build.check_architecture(config)
    tried = len(calls)
    config.seed, config.seq_len = 7, 16384
    build.check_architecture(config)
    assert tried == len(calls) > 10 and torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    monkeypatch.setattr(Sdpa, "forward", lambda *parts, **given: attend(*parts, **{**given, "key_padding_mask": None}))
    build._check_contracts.cache_clear()
    with pytest.raises(UserError, match=r"attention=sdpa \(xcls\.attention\.sdpa\.Sdpa\): it sees padding"):
        build.check_architecture(config)
    build._check_contracts.cache_clear()


def test_what_is_written_down_is_the_code_that_was_hashed_or_the_run_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(mode="finetune")
    for group, name in (("attention", "sdpa"), ("position", "rope")):
        setattr(config, group, unflatten(read_yaml(CONF / group / f"{name}.yaml")))
    used: list[str] = []
    monkeypatch.setattr(build, "find_sources", lambda paths: used.extend(path.name for path in paths) or used)
    plan = build.Plan(config, {}, None, [], CONF.parent)
    plan.freeze()
    assert set(used) == {"__init__.py", "base.py", "sdpa.py", "sdpa_blocks.py", "rope.py"}
    plan.code = {"attention": "another", "position": plan.code["position"]}
    with pytest.raises(UserError, match="changed just as the run began"):
        plan.freeze()
