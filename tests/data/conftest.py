"""Every test of data has a cache folder of its own and no shelf of data sets."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XCLS_CACHE", str(folder))
    monkeypatch.delenv("XCLS_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder
