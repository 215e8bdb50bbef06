"""Features of a frozen encoder: computed once, the same as computed anew, within the memory there is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multimodal_gemma.errors import InputError
from multimodal_gemma.training import features


class Images:
    def image(self, index):
        return np.full((2, 2, 3), index, np.uint8)


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen += images[:, 0, 0, 0].tolist()
        return images.flatten(1).float().unsqueeze(-1) + 0.5


def test_each_image_is_encoded_once_and_looked_up_by_its_index():
    encoder, cpu = Counting(), torch.device("cpu")
    lookup = features.cached_in_memory(Images(), encoder, cpu, [7, 3, 7, 200, 3], show=False)
    assert sorted(encoder.seen) == [3, 7, 200]
    expected = features.encode_on_demand(Images(), Counting(), cpu)([200, 3, 200])
    assert torch.equal(lookup([200, 3, 200]), expected)
    assert sorted(encoder.seen) == [3, 7, 200]


def test_auto_takes_at_most_half_of_the_available_memory(monkeypatch):
    monkeypatch.setattr(features, "available_memory", lambda: 2000)
    ask = {"vision_policy": "frozen", "bytes_per_image": 10}
    assert features.choose_cache("auto", images=100, **ask) == "memory"
    assert features.choose_cache("auto", images=101, **ask) == "none"
    assert features.choose_cache("memory", images=101, **ask) == "memory"
    assert features.choose_cache("none", images=1, **ask) == "none"


def test_a_learning_encoder_is_never_cached():
    ask = {"vision_policy": "full", "images": 1, "bytes_per_image": 1}
    assert features.choose_cache("auto", **ask) == "none"
    with pytest.raises(InputError, match=r"feature_cache=memory does not fit model.vision_policy=full"):
        features.choose_cache("memory", **ask)


def test_available_memory_is_no_more_than_the_machine_has():
    import psutil

    assert 0 < features.available_memory() <= psutil.virtual_memory().total
