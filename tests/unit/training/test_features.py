"""Features of a frozen encoder: computed once, the same as computed anew, within the memory there is."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from multimodal_gemma.errors import InputError
from multimodal_gemma.training import feature_file, features


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


def test_auto_takes_at_most_half_of_what_is_free_and_then_the_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(features, "available_memory", lambda: 2000)
    monkeypatch.setattr(features, "_free_disk", lambda _: 4000)
    ask = {"vision_policy": "frozen", "bytes_per_image": 10, "folder": tmp_path}
    assert features.choose_cache("auto", images=100, **ask) == "memory"
    assert features.choose_cache("auto", images=101, **ask) == "disk"
    assert features.choose_cache("auto", images=60, processes=2, **ask) == "disk"  # each would hold its own
    assert features.choose_cache("auto", images=201, **ask) == "none"
    assert features.choose_cache("memory", images=101, **ask) == "memory"
    assert features.choose_cache("none", images=1, **ask) == "none"
    with pytest.raises(InputError, match=r"401 images take .* Name a larger disk with training.cache_folder"):
        features.choose_cache("disk", images=401, **ask)


@pytest.mark.parametrize("setting", ["memory", "disk"])
def test_a_learning_encoder_is_never_cached(tmp_path, setting):
    ask = {"vision_policy": "full", "images": 1, "bytes_per_image": 1, "folder": tmp_path}
    assert features.choose_cache("auto", **ask) == "none"
    with pytest.raises(InputError, match=rf"feature_cache={setting} does not fit model.vision_policy=full"):
        features.choose_cache(setting, **ask)


def on_disk(folder, encoder, key="a", images=(7, 3, 200)):
    return feature_file.cached_on_disk(Images(), encoder, torch.device("cpu"), images, folder, {"key": key})


def test_features_on_disk_are_those_computed_anew_and_survive(tmp_path):
    encoder = Counting()
    lookup = on_disk(tmp_path, encoder)
    expected = features.encode_on_demand(Images(), Counting(), torch.device("cpu"))([200, 3, 200])
    assert torch.equal(lookup([200, 3, 200]), expected)
    again = Counting()
    assert torch.equal(on_disk(tmp_path, again)([200, 3, 200]), expected)  # a second training
    assert again.seen == [200]  # one image is compared with what was kept


def test_bf16_features_come_back_bit_for_bit(tmp_path):
    class Half(Counting):
        def forward(self, images):
            return super().forward(images).bfloat16() / 3

    lookup = on_disk(tmp_path, Half())
    expected = Half()(torch.full((1, 2, 2, 3), 7, dtype=torch.uint8))
    assert lookup([7]).dtype is torch.bfloat16
    assert torch.equal(lookup([7]), expected)


def test_a_killed_cache_continues_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_CHUNK", 1)
    monkeypatch.setattr(feature_file, "_NOTED_EVERY", 1)

    class Dies(Counting):
        def forward(self, images):
            if len(self.seen) == 2:
                raise KeyboardInterrupt
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        on_disk(tmp_path, Dies())
    rest = Counting()
    lookup = on_disk(tmp_path, rest)
    assert rest.seen == [7, 200, 200]  # the last one once more, to compare
    assert torch.equal(lookup([3, 7, 200]), Counting()(torch.tensor([3, 7, 200]).view(3, 1, 1, 1).expand(3, 2, 2, 3)))


class Wide(torch.nn.Module):
    """100 kB an image."""

    def forward(self, images):
        return images[:, 0, 0, :1, None].float().expand(-1, 100, 250).contiguous()


class Many(Images):
    def image(self, index):
        return super().image(index % 256)


def own_megabytes() -> float:
    """What the process has for itself, without the files it maps."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1000


def grown_by(keep: str, folder: Path) -> float:
    """Megabytes that 2,000 cached images of 100 kB add to a process that looks each of them up."""
    images, cpu = list(range(2000)), torch.device("cpu")
    before = own_megabytes()
    if keep == "disk":
        lookup = feature_file.cached_on_disk(Many(), Wide(), cpu, images, folder, {"key": keep})
    else:
        lookup = features.cached_in_memory(Many(), Wide(), cpu, images, show=False)
    for start in range(0, 2000, 40):
        assert lookup(images[start : start + 40])[:, 5, 7].tolist() == [index % 256 for index in images[start:][:40]]
    return own_megabytes() - before


def test_memory_is_flat_where_the_disk_keeps_the_features(tmp_path):
    # A process each: this one's allocator may have room left over from other tests.
    with ProcessPoolExecutor(mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        disk, memory = (pool.submit(grown_by, keep, tmp_path).result() for keep in ("disk", "memory"))
    assert memory > 190  # of 200: what is measured is there
    assert disk < 50


def test_features_of_another_encoder_or_of_other_images_are_not_used(tmp_path):
    on_disk(tmp_path, Counting())
    other = Counting()
    on_disk(tmp_path, other, key="b")
    assert set(other.seen) == {3, 7, 200}
    more = Counting()
    on_disk(tmp_path, more, key="b", images=(3, 7, 9))
    assert set(more.seen) == {3, 7, 9}


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_file.os, "posix_fallocate", full)
    with pytest.raises(InputError, match="the disk is full"):
        on_disk(tmp_path, Counting())


def test_available_memory_is_no_more_than_the_machine_has():
    import psutil

    assert 0 < features.available_memory() <= psutil.virtual_memory().total
