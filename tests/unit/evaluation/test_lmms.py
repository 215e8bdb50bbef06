"""lmms-eval started and read. The results are those that 0.7.3 wrote here; the real program answers in tests/e2e."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoProcessor

from multimodal_gemma import config, files
from multimodal_gemma.config.schema import EvaluationConfig
from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation import lmms
from multimodal_gemma.evaluation.prompts import Prompter
from tests.unit.evaluation import lmms_program, tiny
from tests.unit.evaluation.lmms_program import RESULTS, SAMPLE


@pytest.fixture
def model(tmp_path: Path) -> Path:
    processor = tiny.processor()
    begin = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])  # as Gemma's tokenizer
    processor.tokenizer.backend_tokenizer.post_processor = begin
    folder = tiny.save(tmp_path / "a, folder=odd", "qwen2")
    processor.save_pretrained(folder)
    return folder


def program(folder: Path, *tasks: str, act: str = "") -> EvaluationConfig:
    overrides = lmms_program.write(folder, *tasks, act=act)
    return config.compose("sample", [*overrides, "evaluation.device=cpu"]).evaluation


def run(settings: EvaluationConfig, model: Path, output: Path, identity: str = "1") -> lmms.Found:
    return lmms.run(settings.lmms_command, settings, model, output, identity)


def test_a_group_and_its_parts_are_read_and_what_has_no_value_is_no_score() -> None:
    found = {"local_group": lmms.read(RESULTS, "local_group")}
    assert lmms.flat(found) == {"lmms_local_pope_pope_accuracy": 0.9, "lmms_again_pope_accuracy": 0.9}
    assert ("local_pope", "pope_accuracy", 0.9, 60) in lmms.rows(found)


def test_names_become_names_that_mlflow_takes() -> None:
    results = {"results": {"mmstar": {"science & technology,none": 0.25, "average,strict-match": 0.5}}}
    assert lmms.flat({"mmstar": lmms.read(results, "mmstar")}) == {
        "lmms_mmstar_science_technology": 0.25,
        "lmms_mmstar_average_strict-match": 0.5,
    }


@pytest.mark.parametrize("value", [[], "N/A", None, float("nan"), True])
def test_a_task_that_scored_nothing_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="scored nothing in task coco2014_cap_test"):
        lmms.read({"results": {"coco2014_cap_test": {"coco_passthrough,none": value}}}, "coco2014_cap_test")


def test_the_adapter_asks_with_our_tokens_and_stops_at_the_end_of_a_turn(tmp_path: Path, model: Path) -> None:
    lmms.stage(model, tmp_path / "staged")
    staged, own = AutoProcessor.from_pretrained(tmp_path / "staged"), Prompter(AutoProcessor.from_pretrained(model))
    text = staged.apply_chat_template(own.messages("is there a dog ?"), tokenize=False, add_generation_prompt=True)
    assert staged.tokenizer(text)["input_ids"] == own.tokenize(["is there a dog ?"], 3)[0]  # as the adapter does
    assert staged.tokenizer.eos_token == "<end_of_turn>"
    assert AutoProcessor.from_pretrained(model).tokenizer.eos_token == "<eos>"


def test_a_tokenizer_that_begins_with_nothing_keeps_the_template_that_does(tmp_path: Path) -> None:
    lmms.stage(tiny.save(tmp_path / "model", "qwen2"), tmp_path / "staged")
    assert (tmp_path / "staged" / "chat_template.jinja").is_symlink()


def test_the_model_is_given_under_a_plain_name_and_its_answers_are_kept(tmp_path: Path, model: Path) -> None:
    settings = program(tmp_path)
    assert lmms.require(settings) == (settings.lmms_command, "0.7.3")
    run(settings, model, tmp_path / "evaluation")
    given, tokenizer = json.loads((tmp_path / "calls.jsonl").read_text())
    assert "pretrained=model,dtype=float32,device_map=cpu" in given  # a comma of the path would begin an argument
    assert tokenizer["eos_token"] == "<end_of_turn>"
    kept = files.read_jsonl(tmp_path / "evaluation/lmms/local_pope.answers.jsonl", "test")
    assert kept == [{"number": 0, "question": SAMPLE["input"], "answer": "yes", "truth": "yes"}]


def test_what_was_finished_is_not_asked_again_unless_the_model_is_another(tmp_path: Path, model: Path) -> None:
    settings = program(tmp_path)
    for identity in ("1", "1", "2"):
        run(settings, model, tmp_path / "evaluation", identity)
    assert len((tmp_path / "calls.jsonl").read_text().splitlines()) == 2
    assert not list((tmp_path / "evaluation").glob("lmms/*.tmp"))


def test_a_program_that_fails_with_code_0_is_a_sentence_without_its_secrets(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_notforyou")
    act = 'print("args", os.environ["HF_TOKEN"], "http://me:word@proxy\\x1b[0m\\nValueError: no hf_notforyou")\n'
    act += "sys.exit()"
    with pytest.raises(InputError, match=r"failed in task local_group \(ValueError: no \(HF_TOKEN\)\)") as refused:
        run(program(tmp_path, act=act), model, tmp_path / "evaluation")
    assert "notforyou" not in caplog.text + str(refused.value)
    assert "word@" not in caplog.text
    assert not (tmp_path / "evaluation" / "lmms").exists()


def test_answers_that_failed_are_not_scored_as_empty(tmp_path: Path, model: Path) -> None:
    act = 'print("ERROR | Error CUDA out of memory in generating")'
    with pytest.raises(InputError, match="could not have every question of local_group answered"):
        run(program(tmp_path, act=act), model, tmp_path / "evaluation")


def test_an_absent_program_an_unknown_task_and_an_empty_folder_are_refused_at_once(tmp_path: Path) -> None:
    settings = program(tmp_path, "gqa", "mmee")
    with pytest.raises(InputError, match="holds 'mmee', which .* does not know. Did you mean mme"):
        lmms.require(settings)
    settings.lmms_include = str(tmp_path / "none")
    with pytest.raises(InputError, match="holds no task"):
        lmms.require(settings)
    settings.lmms_command = str(tmp_path / "absent")
    with pytest.raises(InputError, match="asks for gqa, mmee, but there is no program"):
        lmms.require(settings)
    settings = program(tmp_path)
    Path(settings.lmms_command).write_text(f"#!{sys.executable}\nraise ModuleNotFoundError('No module named decord')\n")
    with pytest.raises(InputError, match=r"could not list its tasks \(ModuleNotFoundError: No module named decord"):
        lmms.require(settings)
