"""The device of the tests that need a GPU: `make test-gpu`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """The GPU. XCLS_TEST_DEVICE=cpu puts the CPU in its place, which tries the tests themselves."""
    device = torch.device(os.environ.get("XCLS_TEST_DEVICE", "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU that this PyTorch can use")
    return device


@pytest.fixture(autouse=True)
def full_fp32() -> Iterator[None]:
    """A training in bf16 lets the products in fp32 be TF32, in the whole process: the test after it begins without."""
    products = torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, False
    yield
    products.allow_tf32 = before
