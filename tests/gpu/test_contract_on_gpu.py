"""The attention contract on a GPU: the tests of tests/attention/test_contract.py, with layers that compute there."""

from __future__ import annotations

import pytest
import torch

from tests.attention import layers
from tests.attention.test_contract import *  # noqa: F403

pytestmark = pytest.mark.gpu
del test_two_evaluations_and_a_loaded_copy_are_bit_equal  # noqa: F821 - measured on GPUs (checks.py), not promised


@pytest.fixture(autouse=True)
def on_the_gpu(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "DEVICE", cuda)
