"""The best checkpoint is the one that answers best, where the validation split can tell."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from multimodal_gemma.data.processed import ProcessedDataset
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import train
from multimodal_gemma.training import session
from multimodal_gemma.training.checkpoint import Validated
from tests.unit.training import toys


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return toys.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def data(models, tmp_path_factory):
    """Conversations 24 to 53 are held out: of the ten that are asked twice five answer yes, five no."""
    return toys.write_dataset(tmp_path_factory.mktemp("data"), models, validation=30)


def test_what_decides_is_chosen_and_said(data, monkeypatch):
    dataset = ProcessedDataset(data)
    monkeypatch.setattr(session, "FEWEST", 5)
    for asked in ("auto", "yes-no"):
        reader, told = session.choose_best(asked, dataset)
        assert reader is not None
        assert told.endswith("of the validation split's answers 5 begin with yes and 5 with no")
    assert session.choose_best("loss", dataset)[0] is None


def test_too_few_answers_leave_it_to_the_loss_or_are_refused(data, monkeypatch):
    dataset = ProcessedDataset(data)
    monkeypatch.setattr(session, "FEWEST", 6)
    reader, told = session.choose_best("auto", dataset)
    assert reader is None
    assert "lowest validation loss: of the validation split's answers 5 begin with yes and 5 with no, fewer" in told
    with pytest.raises(InputError, match="training.best_by=yes-no needs 6 answers of each kind"):
        session.choose_best("yes-no", dataset)


def test_answers_come_first_and_the_loss_breaks_ties():
    found = [Validated(0.3, 1, 0.5), Validated(0.9, 2, 0.75), Validated(0.8, 3, 0.75)]
    assert [one.step for one in sorted(found, key=lambda one: one.rank)] == [3, 2, 1]
    chance = [Validated(0.1371, 120, 0.9638), Validated(0.1355, 144, 0.9587)]  # one answer of 175
    assert min(chance, key=lambda one: one.rank).step == 144
    by_loss = [Validated(0.5, 1), Validated(0.3, 2), Validated(0.3, 3)]
    assert [one.step for one in sorted(by_loss, key=lambda one: one.rank)] == [2, 3, 1]


def test_the_accuracy_is_that_of_the_saved_model_under_stock_transformers(models, data, tmp_path, monkeypatch):
    """The toys' words are bytes: what begins with y or Y stands against n and N."""
    monkeypatch.setattr(session, "FEWEST", 5)
    made = train.run(toys.configuration("training.lora_lr=5e-3"), data, models, tmp_path)
    model, processor = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    dataset, split = ProcessedDataset(data), ProcessedDataset(data).split("val")
    yes, no = ([processor.tokenizer.convert_tokens_to_ids(letter) for letter in pair] for pair in ("yY", "nN"))
    right = {True: [], False: []}
    for row in range(len(split)):
        sample = split[row]
        for place in range(1, len(sample.input_ids)):
            word = int(sample.input_ids[place])
            begins = sample.supervised[place] and not sample.supervised[place - 1]
            if not begins or word not in (*yes, *no):
                continue
            text = processor.tokenizer.decode(sample.input_ids[:place])
            shown = (sample.input_ids[:place] == processor.image_token_id).any()
            images = [Image.fromarray(dataset.image(sample.image_index))] if shown else None
            inputs = processor(text=[text], images=images, add_special_tokens=False, return_tensors="pt")
            with torch.no_grad():
                likely = model(**inputs).logits[0, -1].softmax(0)
            right[word in yes].append(bool(likely[yes].sum() >= likely[no].sum()) == (word in yes))
    assert [len(right[kind]) for kind in (True, False)] == [5, 5]
    expected = sum(sum(kind) / len(kind) for kind in right.values()) / 2
    assert made.numbers["validation_yes_no_accuracy"] == pytest.approx(expected)
