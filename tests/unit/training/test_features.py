"""Features of a frozen encoder: computed once, the same as computed anew, within the memory there is."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from multimodal_gemma.errors import InputError
from multimodal_gemma.training import device, features

CPU = torch.device("cpu")


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


class Alone:
    """One process on a processor, as accelerate shows it."""

    device, process_index, num_processes = CPU, 0, 1
    is_main_process = is_local_main_process = True

    def gather(self, tensor):
        return tensor

    def wait_for_everyone(self):
        pass


def kept(encoder, images=(7, 3, 200), folder=None, key="a", dataset=None):
    """A function of image indices that looks up what an encoder gives, in memory or in a folder."""
    made = features.Encoding(dataset or Images(), encoder, Alone(), np.unique(images))
    cache = made.into(CPU) if folder is None else made.into_file(folder, {"key": key})
    pictures = made.looked_up(cache)
    return lambda indices: pictures.finish(pictures.fetch(indices, None))


def anew(indices, encoder=None):
    return (encoder or Counting())(features.stack_images(Images(), indices))


def test_each_image_is_encoded_once_and_looked_up_by_its_index():
    encoder = Counting()
    lookup = kept(encoder, [7, 3, 7, 200, 3])
    assert sorted(encoder.seen) == [3, 7, 200]
    assert torch.equal(lookup([200, 3, 200]), anew([200, 3, 200]))
    assert sorted(encoder.seen) == [3, 7, 200]


def choose(setting, images, **more):
    asked = {"bytes_per_image": 10, "device": CPU, "epochs": 3, "folder": Path("/nowhere"), **more}
    return device.choose_cache(setting, images=images, **asked)


def test_auto_takes_at_most_half_of_what_is_free_and_then_the_disk(monkeypatch):
    monkeypatch.setattr(device, "available_memory", lambda: 2000)
    monkeypatch.setattr(device, "_free_disk", lambda _: 4000)
    assert choose("auto", 100) == "memory"
    assert choose("auto", 101) == "disk"
    assert choose("auto", 60, processes=2) == "disk"  # each would hold its own
    assert choose("auto", 201) == "none"
    assert choose("auto", 101, epochs=1) == "none"  # a disk is not filled for one look at each image
    assert choose("memory", 101) == "memory"
    assert choose("none", 1) == "none"
    with pytest.raises(InputError, match=r"401 images take .* Name a larger disk with training.cache_folder"):
        choose("disk", 401)


def test_a_gpu_keeps_them_itself_where_it_has_room(monkeypatch):
    monkeypatch.setattr(device, "available_memory", lambda: 2000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 1000))
    gpu = torch.device("cuda")
    assert choose("auto", 50, device=gpu) == "device"
    assert choose("auto", 51, device=gpu) == "memory"
    assert choose("device", 100, device=gpu) == "device"
    with pytest.raises(InputError, match=r"101 images take .* the GPU has 0.0 GB left"):
        choose("device", 101, device=gpu)
    with pytest.raises(InputError, match="training.feature_cache=device needs a GPU; this run is on cpu"):
        choose("device", 1)


@pytest.mark.parametrize("setting", ["device", "memory", "disk"])
def test_changing_features_are_never_cached(setting):
    changing = "model.vision_policy=full: a learning encoder's features change"
    assert choose("auto", 1, changing=changing) == "none"
    with pytest.raises(InputError, match=rf"feature_cache={setting} does not fit model.vision_policy=full"):
        choose(setting, 1, changing=changing)


@pytest.mark.parametrize(("stated", "room"), [("1000", 1000), ("2k", 2000), ("1Ki", 1024), ("900T", None), ("", None)])
def test_a_stated_limit_of_scratch_space_is_respected(tmp_path, monkeypatch, stated, room):
    monkeypatch.setenv(device.LIMIT, stated)
    (tmp_path / "held").write_bytes(b"x" * 500)
    found = device._free_disk(tmp_path)
    assert found == room if room else found > 10_000
    if room:
        with pytest.raises(InputError, match=rf"1,000 images take .* what {device.LIMIT} allows"):
            choose("disk", 1000, folder=tmp_path)


def test_a_limit_that_is_no_size_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv(device.LIMIT, "a lot")
    with pytest.raises(InputError, match=f"{device.LIMIT}=a lot is no size. Write bytes, or e.g. 40Gi"):
        choose("auto", 1, folder=tmp_path)


def test_features_on_disk_are_those_computed_anew_and_survive(tmp_path):
    lookup = kept(Counting(), folder=tmp_path)
    assert torch.equal(lookup([200, 3, 200]), anew([200, 3, 200]))
    again = Counting()
    assert torch.equal(kept(again, folder=tmp_path)([200, 3, 200]), anew([200, 3, 200]))  # a second training
    assert again.seen == [200]  # one image is compared with what was kept


def test_bf16_features_come_back_bit_for_bit(tmp_path):
    class Half(Counting):
        def forward(self, images):
            return super().forward(images).bfloat16() / 3

    lookup = kept(Half(), folder=tmp_path)
    assert lookup([7]).dtype is torch.bfloat16
    assert torch.equal(lookup([7]), anew([7], Half()))


def test_a_killed_cache_continues_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_CHUNK", 1)
    monkeypatch.setattr(features, "_NOTED_EVERY", 0.0)

    class Dies(Counting):
        def forward(self, images):
            if len(self.seen) == 2:
                raise KeyboardInterrupt
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        kept(Dies(), folder=tmp_path)
    rest = Counting()
    lookup = kept(rest, folder=tmp_path)
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
    images = list(range(2000))
    before = own_megabytes()
    lookup = kept(Wide(), images, folder=folder if keep == "disk" else None, dataset=Many())
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
    kept(Counting(), folder=tmp_path)
    other = Counting()
    kept(other, folder=tmp_path, key="b")
    assert set(other.seen) == {3, 7, 200}
    more = Counting()
    kept(more, (3, 7, 9), folder=tmp_path, key="b")
    assert set(more.seen) == {3, 7, 9}


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features.os, "posix_fallocate", full)
    with pytest.raises(InputError, match="the disk is full"):
        kept(Counting(), folder=tmp_path)


def test_available_memory_is_no_more_than_the_machine_has():
    import psutil

    assert 0 < device.available_memory() <= psutil.virtual_memory().total
