"""Fixtures that several parts of the tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from multimodal_gemma import environment

environment.prepare()
# A test must behave the same on a laptop that is logged in to a hub as on a bare machine.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout: photographs, official scorers' outputs, published questions."""
    folder = Path(os.environ.get("MMGEMMA_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"the reference data is not at {folder}; set MMGEMMA_SHARED to run this test")
    return folder.resolve()


@pytest.fixture(scope="session")
def bases() -> Path:
    """The packaged tiny base models: a folder with vision/ and language/."""
    from multimodal_gemma import sample

    return sample.bases_folder()
