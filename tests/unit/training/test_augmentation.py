"""Pictures that change with the epoch: the same for everybody who asks, mild enough for questions about them."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import train
from multimodal_gemma.training import curves, features
from tests.unit.training import toys


class Scenes:
    """A red square on the left and a blue one on the right, on grey; the index decides how large they are."""

    def image(self, index):
        pixels = np.full((64, 64, 3), 128, np.uint8)
        side = 16 + index % 8
        pixels[24 : 24 + side, 6 : 6 + side] = (200, 30, 30)
        pixels[24 : 24 + side, 58 - side : 58] = (30, 30, 200)
        return pixels


def shown(seed=1, epoch=0, index=0):
    return features.Augmented(Scenes(), seed, epoch).image(index)


def test_a_picture_is_a_function_of_seed_epoch_and_image():
    assert np.array_equal(shown(), shown())
    others = [shown(seed=2), shown(seed=-1), shown(epoch=1), shown(index=8)]  # image 8 is image 0 once more
    assert all(not np.array_equal(shown(), other) for other in others)
    assert shown().dtype == np.uint8
    assert shown().shape == (64, 64, 3)


def test_what_is_asked_about_stays_true_and_in_the_picture():
    """Left stays left, red stays red, and both squares stay in sight, in all of 200 draws."""
    for epoch in range(200):
        pixels = shown(epoch=epoch, index=epoch).astype(int)
        red = (pixels[..., 0] > pixels[..., 2] + 60).nonzero()
        blue = (pixels[..., 2] > pixels[..., 0] + 60).nonzero()
        assert red[1].mean() < 32 < blue[1].mean()
        assert min(len(red[0]), len(blue[0])) > 0.6 * (16 + epoch % 8) ** 2


def test_crops_and_light_stay_within_their_bounds():
    """A horizontal ramp tells by its slope how much of the width is left, and a grey one how light moved."""
    ramp = np.repeat(np.linspace(0, 250, 64).astype(np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    grey = np.full((8, 8, 3), 100, np.uint8)
    kept, light = [], []
    for seed in range(200):
        made = features.augment(ramp, np.random.default_rng(seed)).astype(float)
        kept.append((made[32, 50, 0] - made[32, 14, 0]) / (ramp[32, 50, 0] - float(ramp[32, 14, 0])))
        light.append(features.augment(grey, np.random.default_rng(seed)).mean() / 100)
    # sqrt(0.8 * 0.9) of the width at least, at most all of it; brightness and contrast move both by a tenth each.
    assert 0.848 * 0.9 * 0.9 - 0.03 < min(kept) < 0.85
    assert max(kept) < 1.1 * 1.1 + 0.03
    assert 0.89 < min(light) < 0.92
    assert 1.08 < max(light) < 1.11


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    models = toys.write_models(folder / "models")
    return toys.write_dataset(folder / "data", models), models


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "curves.jsonl").read_text().splitlines()]


def test_training_sees_other_pictures_and_a_killed_run_sees_the_same(given, tmp_path, monkeypatch):
    setting, off = "training.augmentation=crop-jitter", "training.feature_cache=none"
    plain = train.run(toys.configuration(off), *given, tmp_path / "plain")
    changed = train.run(toys.configuration(setting), *given, tmp_path / "changed")
    assert losses(changed.folder) != losses(plain.folder)
    add = curves.Curves.add

    def wanted_back(self, row):
        add(self, row)
        if row["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(curves.Curves, "add", wanted_back)
        with pytest.raises(SystemExit):
            train.run(toys.configuration(setting), *given, tmp_path / "resumed")
    assert train.run(toys.configuration(setting), *given, tmp_path / "resumed").digest == changed.digest
    assert losses(tmp_path / "resumed") == losses(changed.folder)


def test_validation_sees_the_pictures_as_they_are(given, tmp_path):
    """With rates of zero the weights stay: any difference would come from the pictures."""
    still = ("training.projector_lr=0", "training.lora_lr=0", "training.max_steps=1", "training.weight_decay=0")
    plain = train.run(toys.configuration(*still), *given, tmp_path / "plain")
    changed = train.run(toys.configuration(*still, "training.augmentation=crop-jitter"), *given, tmp_path / "changed")
    assert changed.numbers["validation_loss"] == pytest.approx(plain.numbers["validation_loss"], abs=1e-6)
    assert changed.numbers["loss"] != plain.numbers["loss"]


def test_a_learning_encoder_sees_them_too(given, tmp_path):
    settings = ("model.vision_policy=full", "training.max_steps=1")
    plain = train.run(toys.configuration(*settings), *given, tmp_path / "plain")
    made = train.run(toys.configuration(*settings, "training.augmentation=crop-jitter"), *given, tmp_path / "changed")
    assert made.numbers["loss"] != plain.numbers["loss"]


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_kept_features_and_changing_pictures_exclude_each_other(given, tmp_path, cache):
    config = toys.configuration("training.augmentation=crop-jitter", f"training.feature_cache={cache}")
    with pytest.raises(InputError, match=rf"feature_cache={cache} does not fit training.augmentation=crop-jitter"):
        train.run(config, *given, tmp_path)
