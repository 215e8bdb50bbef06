"""The evaluation stage: what its artifact says, and every way in which it must refuse."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from multimodal_gemma import cli, config, files, locks, manifest
from multimodal_gemma.config.schema import RegistryConfig
from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation import asking, questions, validation
from multimodal_gemma.evaluation.generator import SuffixGenerator
from multimodal_gemma.evaluation.pope import pope_metrics
from multimodal_gemma.evaluation.prompts import Prompter
from multimodal_gemma.evaluation.statistics import Threshold
from multimodal_gemma.registry import gate
from multimodal_gemma.stages import evaluate
from tests.unit.evaluation import benchmark_folder, lmms_program, tiny

QUESTIONS = benchmark_folder.IMAGES * (4 + 2 + 4 + 2)
DISTINCT = benchmark_folder.IMAGES * (4 + 2)


@pytest.fixture(scope="module")
def settings() -> config.Config:
    torch.set_num_threads(1)
    return config.compose("sample", ["evaluation.max_new_tokens=4", "evaluation.device=cpu"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model") / "model", "qwen2")


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return benchmark_folder.write(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def finished(settings: config.Config, model: Path, benchmarks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluation") / "evaluation"
    evaluate.run(settings, model, benchmarks, output)
    return output


def copied(model: Path, destination: Path) -> Path:
    """A copy of the model folder that a test may spoil."""
    shutil.copytree(model, destination)
    return destination


def test_every_question_is_scored_and_counted(finished: Path) -> None:
    metrics = files.read_json(finished / "metrics.json", "metrics")
    rows = questions.read_rows(finished)
    assert len(rows) == QUESTIONS
    assert manifest.verify(finished, "evaluation").counts == {"questions": QUESTIONS, "images": benchmark_folder.IMAGES}
    for setting in ("random", "popular", "adversarial"):
        asked = [row for row in rows if row["benchmark"] == f"pope/{setting}"]
        section = metrics["pope"][setting]
        expected = pope_metrics([row["prediction"] for row in asked], [row["label"] for row in asked])
        assert {key: section[key] for key in expected} == expected
        assert section["interval"] is None  # of fewer than ten images
        assert section["majority_baseline"] == 0.5
    assert metrics["metrics"]["pope_accuracy"] == pytest.approx(
        sum(metrics["pope"][setting]["accuracy"] for setting in metrics["pope"]) / 3
    )
    assert metrics["vqa"]["fewer_than_ten_answers"] == benchmark_folder.IMAGES
    # Always "red": full marks on the color questions (8 of 10), nothing on the others.
    assert metrics["vqa"]["majority_baseline"] == pytest.approx(0.5)
    assert metrics["vqa"]["by_answer_type"]["other"]["majority_baseline"] == pytest.approx(1.0)
    assert all(math.isfinite(value) for value in metrics["metrics"].values())


def test_equal_questions_in_several_settings_are_asked_once(
    settings: config.Config, model: Path, benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answer = SuffixGenerator.answer

    def counted(self: SuffixGenerator, pictures: Any) -> Any:
        def spied() -> Any:
            for image, texts in pictures:
                asked.extend(texts)
                yield image, texts

        return answer(self, spied())

    monkeypatch.setattr(SuffixGenerator, "answer", counted)
    evaluate.run(settings, model, benchmarks, tmp_path / "out")
    assert len(asked) == DISTINCT


def test_a_finished_evaluation_is_not_repeated(
    finished: Path, settings: config.Config, model: Path, benchmarks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ask", lambda *_: pytest.fail("asked again"))
    summary = evaluate.run(settings, model, benchmarks, finished)
    assert summary.cached
    assert summary.numbers == files.read_json(finished / "metrics.json", "metrics")["metrics"]
    assert summary.facts == {"contamination": "unknown"}


def test_descriptions_are_asked_for_as_they_are_and_a_killed_evaluation_keeps_them(
    finished: Path, settings: config.Config, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = tmp_path / "benchmarks"
    benchmark_folder.write(described)
    known = {benchmark_folder.name(number): {"objects": ["dog"], "captions": []} for number in range(4)}
    (described / "instances").mkdir()
    (described / "instances" / "objects.json").write_text(json.dumps({"categories": ["dog", "cat"], "images": known}))
    manifest.write(described, "benchmarks", config={})
    prompts: list[str] = []
    answer, tokenize = SuffixGenerator.answer, Prompter.tokenize

    def killed(self: SuffixGenerator, pictures: Any) -> Any:
        for number, answers in enumerate(answer(self, pictures)):
            if self._new == 6 and number == 2:
                raise KeyboardInterrupt
            yield answers

    def heard(self: Prompter, texts: Any, token: int) -> Any:
        prompts.extend(self.render(text) for text in texts)
        return tokenize(self, texts, token)

    asked = config.compose("sample", ["evaluation.max_new_tokens=4", "evaluation.device=cpu"])
    asked.evaluation.description_tokens = 6
    output = tmp_path / "out"
    monkeypatch.setattr(SuffixGenerator, "answer", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(asked, model, described, output)
    monkeypatch.setattr(SuffixGenerator, "answer", answer)
    monkeypatch.setattr(Prompter, "tokenize", heard)
    evaluate.run(asked, model, described, output)
    assert len(prompts) == 2  # the answers to all questions and two descriptions were kept
    assert all("Describe the image concisely." in prompt and "single word" not in prompt for prompt in prompts)
    captions = files.read_jsonl(output / "captions.jsonl", "captions")
    assert [row["image"] for row in captions] == sorted(known)
    metrics = files.read_json(output / "metrics.json", "metrics")
    assert metrics["chair"]["captions"] == 4
    # All else is as it is without descriptions.
    assert questions.read_rows(output) == questions.read_rows(finished)
    assert files.read_json(finished / "metrics.json", "metrics")["chair"] == {}
    assert not (finished / "captions.jsonl").exists()


def test_a_killed_evaluation_continues_and_ends_with_the_same_scores(
    finished: Path,
    settings: config.Config,
    model: Path,
    benchmarks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    answer = SuffixGenerator.answer

    def killed(self: SuffixGenerator, pictures: Any) -> Any:
        for number, answers in enumerate(answer(self, pictures)):
            if number == 2:
                raise KeyboardInterrupt
            yield answers

    def spied(self: SuffixGenerator, pictures: Any) -> Any:
        for answers in answer(self, pictures):
            asked.append(len(answers))
            yield answers

    output = tmp_path / "out"
    monkeypatch.setattr(SuffixGenerator, "answer", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(settings, model, benchmarks, output)
    assert not (output / "manifest.json").exists()
    with (output / asking.KEPT).open("a") as stream:
        stream.write('{"image": "COCO_val')  # what a kill in the middle of a write leaves
    monkeypatch.setattr(SuffixGenerator, "answer", spied)
    evaluate.run(settings, model, benchmarks, output)
    assert len(asked) == benchmark_folder.IMAGES - 2
    for name in ("predictions.jsonl", "metrics.json"):
        assert (output / name).read_bytes() == (finished / name).read_bytes()
    assert not (output / asking.KEPT).exists()


def test_two_evaluations_into_one_folder_are_refused(
    settings: config.Config, model: Path, benchmarks: Path, tmp_path: Path
) -> None:
    with locks.only_writer(tmp_path, "evaluate"), pytest.raises(InputError, match="another process is writing to"):
        evaluate.run(settings, model, benchmarks, tmp_path)


def test_unfinished_answers_of_another_model_are_never_mixed_in(
    settings: config.Config, model: Path, benchmarks: Path, tmp_path: Path
) -> None:
    (tmp_path / asking.KEPT).write_text(json.dumps({"identity": {"model": "another"}}) + "\n")
    with pytest.raises(InputError, match="answers of another model"):
        evaluate.run(settings, model, benchmarks, tmp_path)


def test_the_report_stands_alone_and_is_small(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert len(page) < 3_000_000
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)=["'](?:https?:|//|/)""", page)
    for said in ("what color is the dog ?", "truth: red (8 of 10)", "snowboard", "Wrong answers", "is unknown"):
        assert said in page
    assert page.count("data:image/jpeg") >= 4


def test_another_architecture_is_asked_through_its_own_processor(
    settings: config.Config, benchmarks: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny.save_paligemma(tmp_path / "model")
    with caplog.at_level("INFO", logger="multimodal_gemma"):
        summary = evaluate.run(settings, folder, benchmarks, tmp_path / "out")
    assert "asking by stock generate" in caplog.text
    assert 0 <= summary.numbers["pope_accuracy"] <= 1
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from multimodal_gemma.data.shards import ImageShards

    loaded, processor = (
        AutoModelForImageTextToText.from_pretrained(folder).eval(),
        AutoProcessor.from_pretrained(folder),
    )
    row = questions.read_rows(tmp_path / "out")[1]
    (tmp_path / "image").write_bytes(ImageShards(benchmarks).read(row["image"]))
    content = [
        {"type": "image", "image": Image.open(tmp_path / "image").convert("RGB")},
        {"type": "text", "text": row["question"] + settings.evaluation.suffix},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = loaded.generate(**inputs, do_sample=False, max_new_tokens=4, eos_token_id=[2, 5])
    said = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert row["prediction"] == said.strip()


def test_a_training_image_in_the_benchmark_stops_the_evaluation(
    settings: config.Config, model: Path, benchmarks: Path, tmp_path: Path
) -> None:
    seen = copied(model, tmp_path / "model")
    (seen / "training_images.txt").write_text("000000000001\n000000000003\n000000900000\n")
    with pytest.raises(InputError, match=r"2 images .* 000000000001, 000000000003"):
        evaluate.run(settings, seen, benchmarks, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    allowed = dataclasses.replace(settings, data=dataclasses.replace(settings.data, contamination="allow"))
    summary = evaluate.run(allowed, seen, benchmarks, tmp_path / "out")
    metrics = files.read_json(tmp_path / "out" / "metrics.json", "metrics")
    assert metrics["contamination"] == {"status": "allowed", "images": ["000000000001", "000000000003"]}
    assert summary.facts == {"contamination": "allowed"}
    assert "images were in the training split" in (tmp_path / "out" / "report.html").read_text()


def test_a_model_that_states_other_training_images_is_clean(
    settings: config.Config, model: Path, benchmarks: Path, tmp_path: Path
) -> None:
    own = copied(model, tmp_path / "model")
    (own / "training_images.txt").write_text("000000900000\n")
    assert evaluate.run(settings, own, benchmarks, tmp_path / "out").facts == {"contamination": "clean"}


def test_missing_images_are_counted_and_never_skipped(settings: config.Config, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    benchmark_folder.write(folder, shards=3)
    with pytest.raises(
        InputError, match=r"1 of 4 benchmark images are missing \(6 questions\), e.g. COCO_val2014_0+3.jpg"
    ):
        evaluate.run(settings, model, folder, tmp_path / "out")


def test_questions_that_do_not_match_their_annotations_are_refused(
    settings: config.Config, model: Path, benchmarks: Path, tmp_path: Path
) -> None:
    folder = copied(benchmarks, tmp_path / "benchmarks")
    path = folder / "vqa" / "annotations.json"
    path.write_text(json.dumps({"annotations": json.loads(path.read_text())["annotations"][1:]}))
    with pytest.raises(InputError, match="question 0 is in"):
        evaluate.run(settings, model, folder, tmp_path / "out")


def test_benchmarks_that_ask_nothing_are_refused(settings: config.Config, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    manifest.write(tmp_path / "empty", "benchmarks", config={})
    with pytest.raises(InputError, match="asks nothing"):
        evaluate.run(settings, model, tmp_path / "empty", tmp_path / "out")


def spoil(folder: Path, kind: str) -> None:
    """Take away what a model folder needs."""
    if kind == "config":
        (folder / "config.json").unlink()
    elif kind == "weights":
        (folder / "model.safetensors").unlink()
    elif kind == "processor":
        (folder / "processor_config.json").unlink()
    elif kind == "template":
        (folder / "chat_template.jinja").unlink()
    elif kind == "image token":
        settings = json.loads((folder / "config.json").read_text())
        settings.pop("image_token_index", None)
        (folder / "config.json").write_text(json.dumps({**settings, "image_token_id": 17}))
    elif kind == "architecture":
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    elif kind == "broken weights":
        (folder / "model.safetensors").write_bytes(b"\0" * 64)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("config", "has no config.json"),
        ("weights", "holds no weights"),
        ("processor", "processor"),
        ("template", "has no chat template"),
        ("image token", "no usable image token"),
        ("architecture", "takes no images with text"),
        ("broken weights", "cannot be loaded"),
    ],
)
def test_a_model_folder_that_cannot_be_asked_is_refused_in_one_sentence(
    kind: str, sentence: str, settings: config.Config, model: Path, benchmarks: Path, tmp_path: Path
) -> None:
    folder = copied(model, tmp_path / "model")
    spoil(folder, kind)
    with pytest.raises(InputError, match=sentence):
        evaluate.run(settings, folder, benchmarks, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_missing_model_folder_is_named(settings: config.Config, benchmarks: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        evaluate.run(settings, tmp_path / "nowhere", benchmarks, tmp_path / "out")


def test_two_models_are_compared_on_the_same_questions(finished: Path) -> None:
    rows = questions.read_rows(finished)
    better = [{**row, "score": 1.0} for row in rows]
    both = questions.pairs(questions.of(better, "pope"), rows)
    found = questions.difference(both)
    means = [
        1 - sum(row["score"] for row in asked) / len(asked)
        for asked in (questions.of(rows, name) for name in sorted({ours["benchmark"] for ours, _ in both}))
    ]
    assert found.mean == pytest.approx(sum(means) / len(means))
    assert questions.pairs([{**row, "question": "another"} for row in rows], rows) == []


@pytest.mark.parametrize("save", [tiny.save_paligemma, tiny.save_idefics])
def test_a_published_architecture_is_scored_by_the_same_command(save: Any, benchmarks: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    command = ["evaluate", str(folder), str(benchmarks), str(tmp_path / "out"), "evaluation.max_new_tokens=2"]
    assert cli.main(command) == 0
    assert len(questions.read_rows(tmp_path / "out")) == QUESTIONS
    assert files.read_json(tmp_path / "out" / "metrics.json", "metrics")["contamination"]["status"] == "unknown"


def pope_line(folder: Path, **changes: Any) -> None:
    path = folder / "pope" / "coco_pope_random.json"
    first, *others = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps({**json.loads(first), **changes}) + "\n" + "".join(others))


def repeat_vqa_id(folder: Path) -> None:
    path = folder / "vqa" / "questions.json"
    document = json.loads(path.read_text())
    document["questions"].append(document["questions"][0])
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("spoiled", "sentence"),
    [
        (lambda folder: pope_line(folder, label="maybe"), "label 'maybe'"),
        (lambda folder: pope_line(folder, question_id=2), "question_id 2 stands twice"),
        (lambda folder: pope_line(folder, image="nowhere.jpg"), "1 of 5 benchmark images are missing"),
        (repeat_vqa_id, "question_id 0 stands twice"),
    ],
    ids=["unknown label", "duplicate id", "missing image", "duplicate vqa id"],
)
def test_faulty_questions_end_the_command_with_one_sentence(
    spoiled: Any, sentence: str, model: Path, benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(benchmarks, tmp_path / "benchmarks")
    spoiled(folder)
    assert cli.main(["evaluate", str(model), str(folder), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("mmgemma: ")
    assert sentence in said
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_validation_data_are_measured_only_for_the_model_that_learnt_beside_them(
    settings: config.Config, model: Path, benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    digest = manifest.write(dataset, "processed-dataset", config={}).digest
    found = validation.Validation(2.0, 10, 3, 30, 30, Threshold(0.4, 0.9, 60))
    monkeypatch.setattr(validation, "validate", lambda *_, **__: found)

    def score(name: str, learnt_from: str) -> dict[str, Any]:
        folder = copied(model, tmp_path / name)
        (folder / "training_images.txt").write_text("other\n")
        facts = {"validation_loss": 3.0}
        manifest.write(folder, "model", config={}, inputs={"dataset": learnt_from}, facts=facts)
        evaluate.run(settings, folder, benchmarks, tmp_path / f"out-{name}", dataset=dataset)
        return files.read_json(tmp_path / f"out-{name}" / "metrics.json", "metrics")

    own, other = score("own", digest), score("other", "0" * 64)
    assert own["validation"]["source"] == "measured"
    assert own["metrics"]["validation_loss"] == 2.0
    assert own["metrics"]["validation_perplexity"] == pytest.approx(math.e**2)
    assert own["metrics"]["pope_threshold"] == 0.4
    assert 0 <= own["metrics"]["pope_threshold_accuracy"] <= 1
    assert "of at least 0.40 counted as yes" in (tmp_path / "out-own" / "report.html").read_text()
    assert other["validation"] == {
        "source": "training", "loss": 3.0, "perplexity": pytest.approx(math.e**3), "threshold": None,
    }  # fmt: skip
    assert "pope_threshold" not in other["metrics"]


def test_a_disk_that_is_full_is_said_when_an_answer_is_kept(tmp_path: Path) -> None:
    store = asking.AnswerStore(tmp_path, {"model": "x"})
    store._stream.close()
    store._stream = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115, PTH123
    with pytest.raises(InputError, match="the disk is full"), store:
        store.add("a.jpg", {"dog ?": asking.Answer("yes", 0.9)})


def test_separators_of_lines_in_questions_and_answers_do_not_cut_a_row(tmp_path: Path) -> None:
    odd = "is it\u2028red\u2029or\x85blue ?"
    with asking.AnswerStore(tmp_path, {"model": "x"}) as store:
        store.add("a.jpg", {odd: asking.Answer("yes\u2028no", None)})
    assert asking.AnswerStore(tmp_path, {"model": "x"}).answers == {"a.jpg": {odd: asking.Answer("yes\u2028no", None)}}
    files.write_jsonl(tmp_path / questions.PREDICTIONS, [{"question": odd}])
    assert questions.read_rows(tmp_path) == [{"question": odd}]


def test_what_lmms_eval_scored_is_shown_and_can_be_a_floor(
    model: Path, benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, output = ["evaluation.max_new_tokens=4", "evaluation.device=cpu"], tmp_path / "out"
    for name in ("broken", "whole"):
        (tmp_path / name).mkdir()
    broken = lmms_program.write(tmp_path / "broken", act="raise ValueError('no network')")
    with pytest.raises(InputError, match="failed in task local_group .ValueError: no network"):
        evaluate.run(config.compose("sample", [*base, *broken]), model, benchmarks, output)
    monkeypatch.setattr(SuffixGenerator, "_see", None)  # what our own questions were answered is kept
    whole = lmms_program.write(tmp_path / "whole")
    summary = evaluate.run(config.compose("sample", [*base, *whole]), model, benchmarks, output)
    assert summary.numbers["lmms_local_pope_pope_accuracy"] == 0.9
    metrics = files.read_json(output / "metrics.json", "metrics")
    assert metrics["lmms"]["version"] == "0.7.3"
    assert metrics["metrics"]["lmms_again_pope_accuracy"] == 0.9
    page = (output / "report.html").read_text()
    assert "lmms-eval 0.7.3" in page
    assert "local_pope" in page
    assert {"lmms/local_group.json", "lmms/local_pope.answers.jsonl"} <= manifest.read(output).files.keys()
    name = "lmms_local_pope_pope_accuracy"
    for floors, passed in (({name: 0.85}, True), ({name: 0.95}, False), (None, True)):
        asked = RegistryConfig(floors=floors, compared=[], required=[], margins={})
        assert gate.decide(asked, metrics["metrics"], contamination="clean", champion=None).passed is passed
