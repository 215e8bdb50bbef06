"""Other encoders than CLIP at 224 px: more patches, or no class token. What is trained is what stock Llava reads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from multimodal_gemma.data.processed import ProcessedDataset
from multimodal_gemma.model.forward import Encoder
from multimodal_gemma.stages import train
from multimodal_gemma.training import session
from tests.unit.training import toys

# Kind, side of the image, what stock Llava calls taking the encoder's tokens, patches: patch side 14 in all of them.
ENCODERS = {
    "CLIP at 336 px": ("clip_vision_model", 336, "default", 576),
    "a whole CLIP": ("clip", 28, "default", 4),
    "SigLIP": ("siglip_vision_model", 56, "full", 16),
}


@pytest.fixture(scope="module", params=ENCODERS.values(), ids=ENCODERS.keys())
def trained(request, tmp_path_factory):
    kind, side, strategy, patches = request.param
    folder = tmp_path_factory.mktemp(kind)
    models = toys.write_models(folder / "models", vision=kind, image_size=side)
    data = ProcessedDataset(toys.write_dataset(folder / "data", models, conversations=8, validation=3))
    config = toys.configuration("training.batch_tokens=2048", "training.max_steps=2", "model.vision_feature_layer=-2")
    made = train.run(config, data.folder, models, folder / "model")
    return config, models, data, made, strategy, patches


def test_the_folder_says_how_many_tokens_an_image_takes(trained):
    _, _, data, made, strategy, patches = trained
    stock = json.loads((made.folder / "config.json").read_text())
    assert (stock["vision_feature_select_strategy"], stock["image_seq_length"]) == (strategy, patches)
    assert data.image_tokens == patches
    processor = AutoProcessor.from_pretrained(made.folder)
    image = Image.fromarray(data.image(0))
    ids = processor(text=["<image>"], images=[image], return_tensors="pt")["input_ids"]
    assert int((ids == processor.image_token_id).sum()) == patches


def test_the_validation_loss_is_that_of_the_saved_model_under_stock_transformers(trained):
    _, _, data, made, _, patches = trained
    model, processor = (kind.from_pretrained(made.folder) for kind in (AutoModelForImageTextToText, AutoProcessor))
    total, count = 0.0, 0
    for sample in map(data.split("val").__getitem__, range(3)):
        text = processor.tokenizer.decode(sample.input_ids)
        image = Image.fromarray(data.image(sample.image_index))
        inputs = processor(text=[text], images=[image], add_special_tokens=False, return_tensors="pt")
        place = list(sample.input_ids).index(processor.image_token_id)
        learnt = np.insert(sample.supervised, place, [False] * (patches - 1))
        labels = torch.where(torch.from_numpy(learnt), inputs["input_ids"][0], -100)[None]
        with torch.no_grad():
            total += float(model(**inputs, labels=labels).loss) * int(learnt.sum())
        count += int(learnt.sum())
    assert made.numbers["validation_loss"] == pytest.approx(total / count, abs=1e-5)


def test_features_are_those_that_stock_llava_projects(trained):
    """Normalisation, feature layer and the class token, all at once: equal up to rounding, and not by zeros."""
    config, models, data, _, _, _ = trained
    processor = data.processor()
    llava, _ = session.build(config, processor, models, check=True)
    stock = processor.image_processor
    encoder = Encoder(llava, list(stock.image_mean), list(stock.image_std), stock.rescale_factor)
    pixels = stock(images=[Image.fromarray(data.image(3))], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        ours = llava.model.multi_modal_projector(encoder(torch.from_numpy(np.array(data.image(3)))[None]))
        theirs = llava.get_image_features(pixel_values=pixels).pooler_output[0]
    assert float(theirs.std()) > 0.01
    torch.testing.assert_close(ours[0], theirs, rtol=0, atol=1e-5)
