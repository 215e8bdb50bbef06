"""A device or precision that is not there is a sentence, not a traceback hours later."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from multimodal_gemma.errors import InputError
from multimodal_gemma.model import attention
from multimodal_gemma.training import device, session
from tests.unit.training import toys


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


@pytest.mark.parametrize(
    ("kernel", "compiler", "asked", "compiled"),
    [
        ("varlen", True, "auto", True),
        ("varlen", False, "auto", False),  # Triton would end the first step
        ("sdpa", True, "auto", False),  # every stream has other groups: each would be compiled anew
        ("sdpa", True, "on", True),
        ("varlen", True, "off", False),
    ],
)
def test_what_a_gpu_compiles(tmp_path, monkeypatch, kernel, compiler, asked, compiled):
    base = toys.write_models(tmp_path / "models")
    config = toys.configuration(f"training.compile={asked}")
    llava, _ = session.build(config, toys.build_processor(base / "vision", base / "language"), base, check=False)
    calls: list[bool] = []
    monkeypatch.setattr(llava.model.language_model, "compile", lambda dynamic: calls.append(dynamic))
    monkeypatch.setattr(attention, "choose_kernel", lambda *_: kernel)
    monkeypatch.setattr(session, "has_c_compiler", lambda: compiler)
    here = SimpleNamespace(device=torch.device("cuda"), mixed_precision="bf16")
    assert session.speed_up(config, llava, here) == kernel
    assert calls == [True] * compiled
