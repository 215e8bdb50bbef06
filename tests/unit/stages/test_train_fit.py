"""A dataset is trained with the base models that it was prepared for, or with others that would have made the same."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import Gemma3ForCausalLM

from multimodal_gemma import manifest
from multimodal_gemma.errors import InputError
from multimodal_gemma.model import chat
from multimodal_gemma.stages import train
from tests.unit.training import toys


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return toys.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def dataset(models, tmp_path_factory):
    return toys.write_dataset(tmp_path_factory.mktemp("data"), models)


@pytest.fixture
def other(models, tmp_path):
    """The same base models in another folder, to be changed; `seal` makes an artifact of them."""
    shutil.copytree(models, tmp_path / "other")
    return tmp_path / "other"


def seal(folder):
    manifest.write(folder, "base-models", config={"another": True})
    return folder


def refused(dataset, models, tmp_path):
    with pytest.raises(InputError) as caught:
        train.run(toys.configuration(), dataset, seal(models), tmp_path / "model")
    assert not (tmp_path / "model").exists()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "was prepared for other base models" in sentence
    assert "Run preprocess again" in sentence
    names = ("tokenizer", "chat template", "resolution", "patches", "normalisation")
    return [name for name in names if f"its {name}" in sentence], sentence


def test_another_tokenizer_is_named(dataset, other, tmp_path):
    """Two words change places: the ids of a prepared conversation would be read as others."""
    path = other / "language" / "tokenizer.json"
    backend = json.loads(path.read_text())
    words = backend["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    path.write_text(json.dumps(backend))
    assert refused(dataset, other, tmp_path)[0] == ["tokenizer"]


def test_another_resolution_is_named(dataset, other, tmp_path):
    shutil.rmtree(other / "vision")
    toys.write_vision(other / "vision", image_size=42)
    differing, sentence = refused(dataset, other, tmp_path)
    assert differing == ["resolution"]
    assert "28 px there, 42 px here" in sentence


def test_another_chat_template_is_named(dataset, models, tmp_path, monkeypatch):
    """As after a release that words a family's turns differently."""
    shutil.copytree(models, tmp_path / "other")
    family_of = chat.family_of

    def reworded(*args, **kwargs):
        import dataclasses

        family = family_of(*args, **kwargs)
        return dataclasses.replace(family, template=family.template.replace("\n", "\n\n"))

    monkeypatch.setattr(chat, "family_of", reworded)
    assert refused(dataset, tmp_path / "other", tmp_path)[0] == ["chat template"]


def test_another_family_differs_in_both(dataset, other, tmp_path):
    shutil.rmtree(other / "language")
    toys.write_language(other / "language", "llama")
    assert refused(dataset, other, tmp_path)[0] == ["tokenizer", "chat template"]


def test_another_normalisation_is_named(dataset, other, tmp_path):
    """The stored pixels would fit; the processor that goes into the model would not."""
    path = other / "vision" / "preprocessor_config.json"
    stock = json.loads(path.read_text())
    path.write_text(json.dumps({**stock, "image_mean": [0.5, 0.5, 0.5]}))
    assert refused(dataset, other, tmp_path)[0] == ["normalisation"]


def test_other_weights_of_the_same_kind_are_taken(dataset, other, tmp_path):
    """A later revision of a model has the same tokenizer: a day's preparation still serves."""
    language = Gemma3ForCausalLM.from_pretrained(other / "language")
    with torch.no_grad():
        language.model.embed_tokens.weight.mul_(1.5)
    language.save_pretrained(other / "language")
    made = train.run(toys.configuration("training.max_steps=1"), dataset, seal(other), tmp_path / "model")
    assert manifest.read(made.folder).inputs["models"] == manifest.read(other).digest
