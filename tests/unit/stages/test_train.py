"""The train stage from folders to a model: what it leaves, that it continues exactly, and what it refuses."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from multimodal_gemma import locks, manifest
from multimodal_gemma.errors import InputError
from multimodal_gemma.model.forward import SupervisedLoss
from multimodal_gemma.stages import train
from multimodal_gemma.training import checkpoint, curves, loop, session
from tests.unit.training import toys


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return toys.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def dataset(models, tmp_path_factory):
    return toys.write_dataset(tmp_path_factory.mktemp("data"), models)


@pytest.fixture(scope="module")
def undisturbed(models, dataset, tmp_path_factory):
    """A run with dropout, so that random states matter, from start to end."""
    output = tmp_path_factory.mktemp("model")
    return train.run(toys.configuration("model.lora.dropout=0.2"), dataset, models, output)


def weights(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def test_the_model_folder_is_stock_and_complete(undisturbed, dataset):
    folder = undisturbed.folder
    made = manifest.verify(folder, "model")
    names = {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "chat_template.jinja"}
    names |= {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/projector.safetensors"}
    assert names | {"run_config.json", "training_images.txt"} <= made.files.keys()
    assert not any(name.startswith("checkpoints") for name in made.files)
    assert made.inputs == {"dataset": manifest.read(dataset).digest, "models": made.inputs["models"]}
    images = (folder / "training_images.txt").read_text().splitlines()
    assert images == [f"{number:012d}" for number in range(2, 24)]  # the first two conversations have none
    assert "<svg" in (folder / "curves.html").read_text()
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nWhich color?"}]}]
    text = processor.apply_chat_template(asked, add_generation_prompt=True)
    image = Image.fromarray(toys.square("blue", 1))
    inputs = processor(text=[text], images=[image], add_special_tokens=False, return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]


def test_validation_loss_is_that_of_the_saved_model_under_stock_transformers(undisturbed, dataset):
    from multimodal_gemma.data.processed import ProcessedDataset

    model = AutoModelForImageTextToText.from_pretrained(undisturbed.folder)
    processor = AutoProcessor.from_pretrained(undisturbed.folder)
    data = ProcessedDataset(dataset)
    total, count = 0.0, 0
    for index in range(len(data.split("val"))):
        sample = data.split("val")[index]
        text = processor.tokenizer.decode(sample.input_ids)
        images = [Image.fromarray(data.image(sample.image_index))]
        inputs = processor(text=[text], images=images, add_special_tokens=False, return_tensors="pt")
        place = list(sample.input_ids).index(processor.image_token_id)
        learnt = np.insert(sample.supervised, place, [False] * (data.image_tokens - 1))
        labels = torch.where(torch.from_numpy(learnt), inputs["input_ids"][0], -100)[None]
        with torch.no_grad():
            total += float(model(**inputs, labels=labels).loss) * int(learnt.sum())
        count += int(learnt.sum())
    assert undisturbed.numbers["validation_loss"] == pytest.approx(total / count, abs=1e-5)


def test_curves_show_the_schedule(undisturbed):
    lines = rows(undisturbed.folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    peak = 1e-3
    assert [line["projector_lr"] for line in lines] == pytest.approx(
        [peak * share for share in (1, 1, 0.8, 0.6, 0.4, 0.2)]
    )
    assert [line["step"] for line in lines if "validation_loss" in line] == [3, 6]
    assert all(line["lora_lr"] == pytest.approx(line["projector_lr"] / 5) for line in lines)
    assert all(line["samples_per_second"] > 0 for line in lines)
    assert all(line["tokens_per_second"] > 0 and line["memory_gb"] > 0 for line in lines)


def test_answers_on_fixed_validation_images_are_kept_and_shown(undisturbed, dataset):
    """What the model said at the last validation is what the saved model says under stock transformers."""
    from multimodal_gemma.data.processed import ProcessedDataset

    answers = [json.loads(line) for line in (undisturbed.folder / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in answers] == [0] * 4 + [3] * 4 + [6] * 4
    assert len({tuple(row["image_index"] for row in answers[first : first + 4]) for first in (0, 4, 8)}) == 1
    page = (undisturbed.folder / "curves.html").read_text()
    assert page.count("data:image/jpeg") == 4
    assert page.count("before training: ") == 4
    assert undisturbed.numbers["best_step"] == 6
    model = AutoModelForImageTextToText.from_pretrained(undisturbed.folder)
    processor = AutoProcessor.from_pretrained(undisturbed.folder)
    data = ProcessedDataset(dataset)
    sample = data.split("val")[0]
    text = processor.tokenizer.decode(sample.input_ids[: int(np.argmax(sample.supervised))])
    asked = text.partition("<start_of_turn>user\n")[2].partition("<end_of_turn>")[0].replace("<image>", "").strip()
    assert answers[4]["question"] == asked  # no word of the template, which people would read as part of the question
    image = Image.fromarray(data.image(sample.image_index))
    inputs = processor(text=[text], images=[image], add_special_tokens=False, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert answers[8]["answer"] == processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert answers[4]["expected"] in ("red", "green", "blue", "white")


def test_a_second_run_finds_the_model(undisturbed, models, dataset):
    again = train.run(toys.configuration("model.lora.dropout=0.2"), dataset, models, undisturbed.folder)
    assert again.cached
    assert again.digest == undisturbed.digest
    assert again.numbers["validation_loss"] == undisturbed.numbers["validation_loss"]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(undisturbed, models, dataset, tmp_path):
    same = train.run(toys.configuration("model.lora.dropout=0.2"), dataset, models, tmp_path / "same")
    assert same.digest == undisturbed.digest
    assert weights(same.folder) == weights(undisturbed.folder)
    other = train.run(
        toys.configuration("model.lora.dropout=0.2", "training.seed=7"), dataset, models, tmp_path / "other"
    )
    assert weights(other.folder) != weights(undisturbed.folder)


@pytest.mark.parametrize("stop_at", [2, 5, "merge"])
def test_a_killed_run_continues_to_the_same_bytes(undisturbed, models, dataset, tmp_path, monkeypatch, stop_at):
    config = toys.configuration("model.lora.dropout=0.2")

    class Killed(BaseException):
        pass

    add = curves.Curves.add

    def dies(self, row):
        add(self, row)
        if row["step"] == stop_at:
            raise Killed

    def dies_merging(*_):
        raise Killed

    with monkeypatch.context() as patch:
        if stop_at == "merge":
            patch.setattr(train, "_write_model", dies_merging)
        else:
            patch.setattr(curves.Curves, "add", dies)
        with pytest.raises(Killed):
            train.run(config, dataset, models, tmp_path)
    assert not (tmp_path / manifest.NAME).exists()
    resumed = train.run(config, dataset, models, tmp_path)
    assert resumed.digest == undisturbed.digest
    assert weights(tmp_path) == weights(undisturbed.folder)
    assert [line["loss"] for line in rows(tmp_path)] == [line["loss"] for line in rows(undisturbed.folder)]


def test_a_killed_run_finds_the_same_best_step_by_its_answers(models, tmp_path, monkeypatch):
    """Killed after the answers were best and before the end: what was best is known to the run that continues."""
    monkeypatch.setattr(session, "FEWEST", 5)
    data = toys.write_dataset(tmp_path / "data", models, validation=30)
    config = toys.configuration(
        "training.best_by=yes-no",
        "training.epochs=4",
        "training.validations_per_epoch=3",
        "training.patience=12",
        "training.lora_lr=5e-3",  # the toy then tells best at step 4, and the loss falls until step 12
    )
    whole = train.run(config, data, models, tmp_path / "whole")
    accuracy = {row["step"]: row["validation_yes_no_accuracy"] for row in rows(whole.folder)}
    assert whole.numbers["validation_yes_no_accuracy"] == max(accuracy.values())
    at_best = [row for row in rows(whole.folder) if accuracy[row["step"]] == max(accuracy.values())]
    assert whole.numbers["best_step"] == min(at_best, key=lambda row: row["validation_loss"])["step"]

    class Killed(BaseException):
        pass

    add = curves.Curves.add

    def dies(self, row):
        add(self, row)
        if row["step"] == 7:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(curves.Curves, "add", dies)
        train.run(config, data, models, tmp_path / "killed")
    with pytest.raises(InputError, match=r"training.best_by \(yes-no there, loss now\)"):
        train.run(toys.configuration("training.best_by=loss"), data, models, tmp_path / "killed")
    resumed = train.run(config, data, models, tmp_path / "killed")
    assert resumed.digest == whole.digest
    assert weights(resumed.folder) == weights(whole.folder)
    assert checkpoint.steps(resumed.folder / "checkpoints") == checkpoint.steps(whole.folder / "checkpoints")
    kept = [row["validation_yes_no_accuracy"] for row in rows(resumed.folder)]
    assert kept == list(accuracy.values())


def test_checkpoints_of_another_configuration_are_refused_by_key(undisturbed, models, dataset):
    before = weights(undisturbed.folder)
    with pytest.raises(InputError, match=r"training.lora_lr \(0.0002 there, 0.0003 now\)"):
        config = toys.configuration("model.lora.dropout=0.2", "training.lora_lr=0.0003")
        train.run(config, dataset, models, undisturbed.folder)
    manifest.verify(undisturbed.folder, "model")
    assert weights(undisturbed.folder) == before


def test_trackers_and_kept_checkpoints_do_not_change_what_a_model_is(undisturbed, models, dataset):
    config = toys.configuration("model.lora.dropout=0.2", "training.keep_best=1", "training.trackers=[tensorboard]")
    assert train.run(config, dataset, models, undisturbed.folder).cached


def test_micro_batches_do_not_change_the_mathematics(models, dataset, tmp_path):
    """Eight conversations at once, or one by one: the same sums over the same tokens."""
    whole = train.run(toys.configuration("training.batch_tokens=4096"), dataset, models, tmp_path / "whole")
    longest = toys.configuration("training.batch_tokens=100")
    cut = train.run(longest, dataset, models, tmp_path / "cut")
    for one, other in zip(rows(whole.folder), rows(cut.folder), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    "setting", ["training.feature_cache=none", "training.feature_cache=disk", "training.gradient_checkpointing=true"]
)
def test_saving_time_or_memory_does_not_change_the_loss(models, dataset, tmp_path, setting):
    fixed = ("model.vision_feature_layer=-2", "training.max_steps=2")
    plain = train.run(toys.configuration(*fixed), dataset, models, tmp_path / "plain")
    other = train.run(toys.configuration(*fixed, setting), dataset, models, tmp_path / "other")
    expected = [line["loss"] for line in rows(plain.folder)]
    assert [line["loss"] for line in rows(other.folder)] == pytest.approx(expected, abs=1e-5)
    assert not (other.folder / "features").exists()  # larger than the model, and of no use beside it


def test_every_part_can_learn(models, dataset, tmp_path):
    overrides = (
        "model.vision_policy=full",
        "model.language_policy=full",
        "training.language_lr=0.01",
        "training.vision_lr=0.001",
    )
    made = train.run(toys.configuration(*overrides), dataset, models, tmp_path)
    assert {name for name in rows(tmp_path)[0] if name.endswith("_lr")} == {"vision_lr", "projector_lr", "language_lr"}
    assert rows(tmp_path)[-1]["loss"] < rows(tmp_path)[0]["loss"] - 0.5
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == ["projector.safetensors"]
    AutoModelForImageTextToText.from_pretrained(made.folder)


def test_the_best_checkpoints_weights_become_the_model(models, dataset, tmp_path, monkeypatch):
    """Validation losses are dictated: the lowest is the second, then three without a better one stop the run."""
    dictated = iter([3.0, 1.0, 2.0, 2.5, 1.5, 0.1])
    validate = loop.Trainer._validate

    def dictate(self, row, *others):
        loss, head_loss = next(dictated), self.job.loss.head_loss
        self.job.loss.head_loss = lambda _, targets: torch.tensor(loss * len(targets))
        validate(self, row, *others)
        self.job.loss.head_loss = head_loss

    monkeypatch.setattr(loop.Trainer, "_validate", dictate)
    config = toys.configuration("training.epochs=3", "training.validations_per_epoch=3", "training.patience=3")
    made = train.run(config, dataset, models, tmp_path)
    assert (made.numbers["best_step"], made.numbers["steps"], made.numbers["validation_loss"]) == (
        2,
        5,
        pytest.approx(1.0),
    )
    assert checkpoint.steps(tmp_path / "checkpoints") == [2, 5]  # best two: steps 2 and 5; last: step 5
    best = checkpoint.load_weights(tmp_path / "checkpoints", 2)
    projector = AutoModelForImageTextToText.from_pretrained(tmp_path).model.multi_modal_projector
    assert torch.equal(projector.linear_1.weight, best["model.multi_modal_projector.linear_1.weight"])


def test_without_a_validation_split_the_last_weights_are_the_model(models, tmp_path):
    data = toys.write_dataset(tmp_path / "data", models, validation=0)
    made = train.run(toys.configuration(), data, models, tmp_path / "model")
    assert made.numbers["best_step"] == made.numbers["steps"] == 6
    assert "validation_loss" not in made.numbers


def test_a_loss_that_is_no_number_names_step_and_conversations(models, dataset, tmp_path, monkeypatch):
    take = loop.Trainer._take

    def poison(self, step):
        if step.number == 4:
            with torch.no_grad():
                self.job.loss.llava.model.multi_modal_projector.linear_1.weight.fill_(math.nan)
        take(self, step)

    monkeypatch.setattr(loop.Trainer, "_take", poison)
    with pytest.raises(
        InputError, match=r"the loss of step 4 is nan. Its conversations: c\d+, .*lower training.projector_lr"
    ):
        train.run(toys.configuration("training.batch_tokens=100"), dataset, models, tmp_path)
    assert checkpoint.steps(tmp_path / "checkpoints") == [3]
    replay = json.loads((tmp_path / "failed_step.json").read_text())
    assert replay["step"] == 4
    assert len(replay["conversations"]) == 8
    assert sorted(name for batch in replay["streams"] for name in batch) == sorted(replay["conversations"])
    assert "continues from the last checkpoint" in replay["how_to_replay"]
    monkeypatch.undo()  # the data are mended: the same command goes on
    train.run(toys.configuration("training.batch_tokens=100"), dataset, models, tmp_path)
    assert not (tmp_path / "failed_step.json").exists()


def test_a_lack_of_memory_names_the_budget_to_try(models, dataset, tmp_path, monkeypatch):
    def full(self, batch, pictures):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(SupervisedLoss, "forward", full)
    sentence = r"does not suffice for \d+ conversations of ([\d,]+) positions at once. Set training.batch_tokens=(\d+),"
    with pytest.raises(InputError, match=sentence) as caught:
        train.run(toys.configuration(), dataset, models, tmp_path)
    positions, advised = (int(text.replace(",", "")) for text in re.search(sentence, str(caught.value)).groups())
    assert advised == positions // 2


def test_a_password_in_the_tracking_uri_stays_out_of_the_model(models, dataset, tmp_path):
    secret = "registry.tracking_uri=postgresql://me:s3cretword@nowhere/mlflow"
    train.run(toys.configuration(secret, "training.max_steps=1"), dataset, models, tmp_path)
    found = [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cretword" in path.read_bytes()]
    assert found == []
    assert "experiment" in json.loads((tmp_path / "run_config.json").read_text())["registry"]


def test_an_edited_checkpoint_costs_time_and_no_exactness(undisturbed, models, dataset, tmp_path):
    """The newest is damaged: the run goes back to the one before and ends in the same bytes."""
    config = toys.configuration("model.lora.dropout=0.2")
    train.run(config, dataset, models, tmp_path)
    (tmp_path / manifest.NAME).unlink()
    path = tmp_path / "checkpoints" / "step-00000006" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    assert train.run(config, dataset, models, tmp_path).digest == undisturbed.digest
    assert weights(tmp_path) == weights(undisturbed.folder)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.batch_tokens=64", r"training.batch_tokens=64 is below the longest conversation: c\d+ takes"),
        ("training.precision=bf16", "training.precision=bf16 needs a GPU"),
        ("training.device=cuda", "training.device=cuda, but this machine has no usable NVIDIA GPU"),
        ("training.trackers=[mlfow]", "training.trackers names 'mlfow'"),
        (
            "training.best_by=yes-no",
            "needs 20 answers of each kind, and of the validation split's answers 1 ",
        ),
        ("training.trackers=[aim]", "'aim', whose package is not installed"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(models, dataset, tmp_path, override, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        train.run(toys.configuration(override), dataset, models, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model" / manifest.NAME).exists()


def test_an_unwritable_output_is_said_before_the_work(models, dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        train.run(toys.configuration(), dataset, models, tmp_path / "file" / "model")


def test_two_trainings_into_one_folder_are_refused(models, dataset, tmp_path):
    with locks.only_writer(tmp_path, "train"), pytest.raises(InputError, match="another process is writing to"):
        train.run(toys.configuration(), dataset, models, tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_server_mlflow_is_left_out_and_said_so(models, dataset, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(logging.getLogger("multimodal_gemma"), "propagate", True)
    with caplog.at_level(logging.INFO, "multimodal_gemma"):
        train.run(toys.configuration("training.trackers=[mlflow]", "training.max_steps=1"), dataset, models, tmp_path)
    assert "no MLflow is named" in caplog.text


def test_stages_in_sequence_start_where_the_last_one_ended(models, dataset, tmp_path):
    """As preset llava-1.5 does: the projector alone, then the whole language model from that projector."""
    import shutil

    first = train.run(toys.configuration("model.language_policy=frozen"), dataset, models, tmp_path / "align")
    assert [name for name in rows(first.folder)[0] if name.endswith("_lr")] == ["projector_lr"]
    shutil.copytree(models, tmp_path / "models")
    shutil.copytree(first.folder, tmp_path / "models" / "projector", ignore=shutil.ignore_patterns("checkpoints"))
    settings = ("model.language_policy=full", f"model.projector={first.folder}", "training.max_steps=1")
    frozen = ("training.projector_lr=0", "training.language_lr=0", "training.weight_decay=0")
    second = train.run(toys.configuration(*settings, *frozen), dataset, tmp_path / "models", tmp_path / "tune")
    before, after = (
        AutoModelForImageTextToText.from_pretrained(folder).model.multi_modal_projector.state_dict()
        for folder in (first.folder, second.folder)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_scalars_reach_tensorboard(models, dataset, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train.run(toys.configuration("training.trackers=[tensorboard]", "training.max_steps=2"), dataset, models, tmp_path)
    events = next((tmp_path / "trackers").rglob("events.out.tfevents*"))
    seen = EventAccumulator(str(events.parent))
    seen.Reload()
    expected = [line["loss"] for line in rows(tmp_path)]
    assert [event.value for event in seen.Scalars("loss")] == pytest.approx(expected)


def test_conversations_without_an_image_do_not_stop_a_projectors_training(models, dataset, tmp_path):
    """A forward pass of text alone has nothing that learns in it where the language model is frozen."""
    made = train.run(
        toys.configuration("model.language_policy=frozen", "training.batch_tokens=100"), dataset, models, tmp_path
    )
    assert made.numbers["steps"] == 6
