"""A device or precision that is not there is a sentence, not a traceback hours later."""

from __future__ import annotations

import pytest
import torch

from multimodal_gemma.errors import InputError
from multimodal_gemma.training import device


def test_a_missing_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"training.device=cuda, but this machine has no usable NVIDIA GPU"):
        device.choose_device("cuda", "training.device")
    assert device.choose_device("auto", "training.device") == "cpu"


def test_bf16_needs_a_gpu_that_has_it(monkeypatch):
    with pytest.raises(InputError, match=r"training.precision=bf16 needs a GPU"):
        device.choose_precision("bf16", "cpu", "training.precision")
    assert device.choose_precision("auto", "cpu", "training.precision") == "fp32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert device.choose_precision("auto", "cuda", "training.precision") == "bf16"
    assert device.choose_precision("fp32", "cuda", "training.precision") == "fp32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert device.choose_precision("auto", "cuda", "training.precision") == "fp32"
