"""A job of a sweep runs what its sweep has planned, or nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from xcls import start
from xcls.schema import UserError


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
