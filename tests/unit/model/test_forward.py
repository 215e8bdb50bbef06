"""The training forward pass computes what stock Llava with PEFT computes, labels, padding and all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from multimodal_gemma.data.processed import ProcessedDataset
from multimodal_gemma.model import adapters, assembly
from multimodal_gemma.model.forward import Encoder, SupervisedLoss
from multimodal_gemma.training.batches import make_batch
from tests.unit.training import toys


def stock_inputs(dataset, processor, indices):
    """Inputs made by the stock processor from text and images, right-padded with a mask and labels."""
    split = dataset.split("train")
    texts, images, labels = [], [], []
    for index in indices:
        sample = split[index]
        texts.append(processor.tokenizer.decode(sample.input_ids))
        if sample.image_index >= 0:
            images.append(Image.fromarray(dataset.image(sample.image_index)))
        row = []
        for token, learnt in zip(sample.input_ids, sample.supervised, strict=True):
            row += [int(token) if learnt else -100] * (dataset.image_tokens if token == processor.image_token_id else 1)
        labels.append(row)
    inputs = processor(text=texts, images=images or None, add_special_tokens=False, padding=True, return_tensors="pt")
    width = inputs["input_ids"].shape[1]
    inputs["labels"] = torch.tensor([row + [-100] * (width - len(row)) for row in labels])
    return inputs


def learning_model(base, *overrides):
    config = toys.configuration("model.lora.dropout=0.0", "model.vision_feature_layer=-2", *overrides).model
    processor = toys.build_processor(base / "vision", base / "language")
    vision, language = assembly.load_vision(base / "vision"), assembly.load_language(base / "language")
    llava = assembly.assemble(vision, language, processor, config, seed=3)
    peft_model = adapters.apply_policies(llava, config, seed=3)
    with torch.no_grad():
        for name, weight in llava.named_parameters():
            if "lora_B" in name:  # zero at first: adapters would not show in the loss
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(5))
    return llava, peft_model


def our_loss(llava, dataset, processor, indices, *, encode_inside=False, logit_rows=None):
    stock = processor.image_processor
    encoder = Encoder(llava, list(stock.image_mean), list(stock.image_std), stock.rescale_factor)
    batch = make_batch(
        dataset.split("train"),
        indices,
        image_tokens=dataset.image_tokens,
        image_token_id=processor.image_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    pictures = None
    if batch.image_indices:
        pictures = torch.from_numpy(np.stack([dataset.image(index) for index in batch.image_indices]))
        if not encode_inside:
            with torch.no_grad():
                pictures = encoder(pictures)
    loss = SupervisedLoss(llava, encoder if encode_inside else None, logit_rows)
    return loss(batch, pictures) / len(batch.targets)


@pytest.fixture(scope="module", params=[*toys.FAMILIES, "siglip"])
def prepared(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    kind = "siglip_vision_model" if request.param == "siglip" else "clip"
    family = "gemma" if request.param == "siglip" else request.param
    base = toys.write_models(folder / "models", family, kind)
    return base, ProcessedDataset(toys.write_dataset(folder / "data", base))


@pytest.mark.parametrize("indices", [[0, 5, 3, 8, 1], [2], [0, 1]], ids=["mixed", "one image", "text only"])
def test_loss_and_gradients_are_those_of_stock_llava_with_peft(prepared, indices):
    base, dataset = prepared
    processor = dataset.processor()
    llava, peft_model = learning_model(base)
    llava.train()
    stock = peft_model(**stock_inputs(dataset, processor, indices)).loss
    stock.backward()
    expected = {name: weight.grad.clone() for name, weight in llava.named_parameters() if weight.grad is not None}
    llava.zero_grad()
    ours = our_loss(llava, dataset, processor, indices)
    ours.backward()
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-5)
    found = {name: weight.grad for name, weight in llava.named_parameters() if weight.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("logit_rows", [None, 3], ids=["all logits", "logits in pieces"])
@pytest.mark.parametrize("policies", [("full", "frozen", "full"), ("frozen", "trained", "frozen")])
def test_every_policy_has_stock_gradients(tmp_path, policies, logit_rows):
    vision, projector, language = policies
    base = toys.write_models(tmp_path / "models")
    dataset = ProcessedDataset(toys.write_dataset(tmp_path / "data", base))
    processor = dataset.processor()
    chosen = (
        f"model.vision_policy={vision}",
        f"model.projector_policy={projector}",
        f"model.language_policy={language}",
    )
    llava, _ = learning_model(base, *chosen)
    llava(**stock_inputs(dataset, processor, [3, 4, 0])).loss.backward()
    expected = {name: weight.grad.clone() for name, weight in llava.named_parameters() if weight.grad is not None}
    llava.zero_grad()
    pieces = {"encode_inside": vision == "full", "logit_rows": logit_rows}
    our_loss(llava, dataset, processor, [3, 4, 0], **pieces).backward()
    found = {name: weight.grad for name, weight in llava.named_parameters() if weight.grad is not None}
    assert found.keys() == expected.keys()
    assert {adapters.part_of(name) for name in found} == {
        part for part, policy in zip(("vision", "projector", "language"), policies, strict=True) if policy != "frozen"
    }
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_padding_never_reaches_the_loss(prepared):
    base, dataset = prepared
    processor = dataset.processor()
    llava, _ = learning_model(base)
    tight = our_loss(llava, dataset, processor, [5])
    stock = processor.image_processor
    batch = make_batch(
        dataset.split("train"),
        [5],
        image_tokens=dataset.image_tokens,
        image_token_id=processor.image_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        multiple=64,
    )
    encoder = Encoder(llava, list(stock.image_mean), list(stock.image_std), stock.rescale_factor)
    features = encoder(torch.from_numpy(np.stack([dataset.image(index) for index in batch.image_indices])))
    padded = SupervisedLoss(llava)(batch, features) / len(batch.targets)
    assert batch.input_ids.shape[1] % 64 == 0
    torch.testing.assert_close(padded, tight, rtol=0, atol=1e-5)


def test_gemma_2_logits_are_capped_as_the_language_model_caps_them():
    from transformers import Gemma2Config

    logits = torch.tensor([[-200.0, 0.0, 15.0, 1000.0]])
    capped = assembly.cap_logits(logits, Gemma2Config(final_logit_softcapping=30.0))
    expected = 30 * np.tanh(np.array([[-200.0, 0.0, 15.0, 1000.0]]) / 30)
    np.testing.assert_allclose(capped.numpy(), expected, rtol=1e-6)
