"""A frozen base in 4 bits: adapters learn on the rounded weights, and the model that is written has them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from multimodal_gemma.data.processed import ProcessedDataset
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import train
from multimodal_gemma.training import curves, session
from tests.unit.training import toys

NF4 = "model.language_quantization=nf4"
# Dettmers et al. (2023), appendix E.
CODES = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
CODES += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("given")
    models = toys.write_models(folder / "models")
    return ProcessedDataset(toys.write_dataset(folder / "data", models, conversations=16, validation=4)), models


@pytest.fixture(scope="module")
def trained(given, tmp_path_factory):
    data, models = given
    folder = tmp_path_factory.mktemp("model")
    return train.run(toys.configuration(NF4, "training.lora_lr=0.02", "training.epochs=3"), data.folder, models, folder)


def test_only_the_language_models_linear_layers_are_in_four_bits(given):
    from bitsandbytes.nn import Linear4bit

    data, models = given
    config = toys.configuration(NF4)
    llava, _ = session.build(config, data.processor(), models, check=True, packed=torch.float32)
    packed = {name for name, module in llava.named_modules() if isinstance(module, Linear4bit)}
    assert len(packed) == 2 * 7
    assert all(".language_model." in name for name in packed)
    module = llava.get_submodule(sorted(packed)[0])
    assert module.weight.nbytes * 2 == module.in_features * module.out_features
    learning = {name for name, weight in llava.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "multi_modal_projector" in name for name in learning)


def test_rounded_weights_are_the_papers_codes_times_a_blocks_scale(given):
    """Blocks of 64: the nearest of sixteen codes, times the block's largest weight, itself rounded to 8 bits."""
    data, models = given
    plain, _ = session.build(toys.configuration(), data.processor(), models, check=False)
    rounded, _ = session.build(toys.configuration(NF4), data.processor(), models, check=False)
    name = "model.language_model.layers.1.mlp.gate_proj.base_layer.weight"
    weight, found = (model.get_parameter(name).detach().flatten().numpy() for model in (plain, rounded))
    blocks = weight[: len(weight) // 64 * 64].reshape(-1, 64)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    nearest = np.abs(blocks[..., None] / largest[..., None] - CODES).argmin(axis=-1)
    expected = np.array(CODES)[nearest] * largest
    assert np.abs(found[: expected.size].reshape(-1, 64) - expected).max() < 0.01 * largest.max()
    head = "lm_head.weight"
    assert torch.equal(plain.get_parameter(head), rounded.get_parameter(head))


def test_the_model_that_is_written_says_what_was_validated(given, trained):
    data, _ = given
    model = AutoModelForImageTextToText.from_pretrained(trained.folder)
    processor = AutoProcessor.from_pretrained(trained.folder)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert "quantization_config" not in json.loads((trained.folder / "config.json").read_text())
    total, count = 0.0, 0
    for sample in map(data.split("val").__getitem__, range(4)):
        text = processor.tokenizer.decode(sample.input_ids)
        image = Image.fromarray(data.image(sample.image_index))
        inputs = processor(text=[text], images=[image], add_special_tokens=False, return_tensors="pt")
        place = list(sample.input_ids).index(processor.image_token_id)
        learnt = np.insert(sample.supervised, place, [False] * (data.image_tokens - 1))
        labels = torch.where(torch.from_numpy(learnt), inputs["input_ids"][0], -100)[None]
        with torch.no_grad():
            total += float(model(**inputs, labels=labels).loss) * int(learnt.sum())
        count += int(learnt.sum())
    assert trained.numbers["validation_loss"] == pytest.approx(total / count, abs=1e-5)


def test_adapters_learn_on_it(trained):
    rows = [json.loads(line) for line in (trained.folder / "curves.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"] - 1


def test_a_killed_training_on_four_bits_continues_to_the_same_bytes(given, trained, tmp_path, monkeypatch):
    data, models = given
    config = toys.configuration(NF4, "training.lora_lr=0.02", "training.epochs=3")

    class Killed(BaseException):
        pass

    add = curves.Curves.add

    def dies(self, row):
        add(self, row)
        if row["step"] == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(curves.Curves, "add", dies)
        with pytest.raises(Killed):
            train.run(config, data.folder, models, tmp_path)
    assert train.run(config, data.folder, models, tmp_path).digest == trained.digest


def test_weights_that_learn_cannot_be_in_four_bits(given, tmp_path):
    data, models = given
    with pytest.raises(InputError, match="nf4 does not fit model.language_policy=full: weights in 4 bits do not learn"):
        train.run(toys.configuration(NF4, "model.language_policy=full"), data.folder, models, tmp_path)


def test_without_bitsandbytes_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    models = toys.write_models(tmp_path / "models")
    dataset = toys.write_dataset(tmp_path / "data", models)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as Python has it where a package is not there
    with pytest.raises(InputError, match=r"needs bitsandbytes, which is not installed. Run pip install .*\[nf4\]"):
        train.run(toys.configuration(NF4), dataset, models, tmp_path / "model")
