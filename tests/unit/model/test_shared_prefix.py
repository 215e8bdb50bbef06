"""Reading an image once for several conversations changes nothing that is learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multimodal_gemma.data.processed import ProcessedDataset
from multimodal_gemma.model.forward import Encoder, SupervisedLoss
from multimodal_gemma.model.fused_lora import fuse
from multimodal_gemma.training.sharing import Sharing
from tests.unit.model.test_forward import learning_model, stock_inputs
from tests.unit.training import toys


@pytest.fixture(scope="module", params=[*toys.FAMILIES, "siglip"])
def prepared(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    kind = "siglip_vision_model" if request.param == "siglip" else "clip"
    family = "gemma" if request.param == "siglip" else request.param
    base = toys.write_models(folder / "models", family, kind)
    return base, ProcessedDataset(toys.write_dataset(folder / "data", base, an_image=6))


def sharing_of(dataset: ProcessedDataset) -> Sharing:
    return Sharing.of(
        dataset.split("train"),
        image_token_id=dataset.image_token_id,
        image_tokens=dataset.image_tokens,
        pad_token_id=dataset.pad_token_id,
    )


def shared_loss(llava, dataset, indices, *, encode_inside=False):
    stock = dataset.processor().image_processor
    encoder = Encoder(llava, list(stock.image_mean), list(stock.image_std), stock.rescale_factor)
    batch = sharing_of(dataset).make_batch(dataset.split("train"), indices)
    pictures = torch.from_numpy(np.stack([dataset.image(index) for index in batch.image_indices]))
    if not encode_inside:
        with torch.no_grad():
            pictures = encoder(pictures)
    loss = SupervisedLoss(llava, encoder if encode_inside else None)
    return loss(batch, pictures) / len(batch.targets)


def gradients(llava):
    return {name: weight.grad.clone() for name, weight in llava.named_parameters() if weight.grad is not None}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("fused", [False, True], ids=["peft", "fused"])
@pytest.mark.parametrize("indices", [[3, 5, 7, 9, 11, 13], [21, 23], [9]], ids=["three images", "one image", "alone"])
def test_loss_and_gradients_are_those_of_stock_llava_with_peft(prepared, indices, fused):
    base, dataset = prepared
    llava, peft_model = learning_model(base)
    llava.train()
    stock = peft_model(**stock_inputs(dataset, dataset.processor(), indices)).loss
    stock.backward()
    expected = gradients(llava)
    llava.zero_grad()
    assert fuse(llava) == 14 if fused else True  # two layers of seven linear maps
    ours = shared_loss(llava, dataset, indices)
    ours.backward()
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-5)
    assert_same(gradients(llava), expected)


def test_an_encoder_that_learns_gets_the_gradients_of_all_conversations(tmp_path):
    base = toys.write_models(tmp_path / "models")
    dataset = ProcessedDataset(toys.write_dataset(tmp_path / "data", base, an_image=6))
    llava, _ = learning_model(base, "model.vision_policy=full", "model.language_policy=full")
    llava(**stock_inputs(dataset, dataset.processor(), [3, 5, 7, 9])).loss.backward()
    expected = gradients(llava)
    llava.zero_grad()
    shared_loss(llava, dataset, [3, 5, 7, 9], encode_inside=True).backward()
    assert_same(gradients(llava), expected)


def test_only_conversations_that_begin_with_their_image_share(prepared):
    _, dataset = prepared
    sharing, split = sharing_of(dataset), dataset.split("train")
    first = [number for number in range(len(split)) if number % 2 and number >= 2]  # the toys' rule
    assert [int(index) for index in np.flatnonzero(sharing.units >= 0)] == first
    assert all(sharing.units[number] == number // 6 for number in first)
    assert len(np.unique(sharing.units)) == len(split) - (len(first) - len({number // 6 for number in first}))


def test_a_micro_batch_counts_each_image_once(prepared):
    _, dataset = prepared
    sharing, split = sharing_of(dataset), dataset.split("train")
    batch = sharing.make_batch(split, [3, 5, 7])
    assert batch.image_indices == [0, 1]
    words = [int(split.lengths[index]) - sharing.prefix for index in (3, 5, 7)]
    assert batch.real == 2 * sharing.prefix + sum(words)
    assert batch.positions == 2 * sharing.prefix + sum(part.input_ids.numel() for part in batch.words)
    assert len(batch.targets) == sum(int(split[index].supervised.sum()) for index in (3, 5, 7))
    assert sorted(batch.sample_indices) == [3, 5, 7]


def test_micro_batches_stay_within_the_budget_and_lose_nobody(prepared):
    _, dataset = prepared
    sharing, split = sharing_of(dataset), dataset.split("train")
    able = np.flatnonzero(sharing.units >= 0)
    for budget in (int(split.lengths.max()), 100, 400):
        cuts = sharing.cut(able, budget)
        assert [index for cut in cuts for index in cut] == list(able)
        assert max(sharing.make_batch(split, cut).positions for cut in cuts) <= budget
