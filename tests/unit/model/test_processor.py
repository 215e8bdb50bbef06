"""The joined model's processor: its image token, its turns, and what of a conversation is learnt."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

from multimodal_gemma.errors import InputError
from multimodal_gemma.model import chat
from multimodal_gemma.model.processor import build_processor, end_of_turn, save_processor
from tests.unit.training import toys

SPARE = {
    "gemma": "<unused0>",
    "qwen2": "<|fim_pad|>",
    "qwen3": "<|image_pad|>",
    "llama": "<|reserved_special_token_0|>",
}
TEXTS = {  # as each family's own model card shows its turns
    "gemma": "<bos><start_of_turn>user\n<image>\nWhich?<end_of_turn>\n<start_of_turn>model\nred<end_of_turn>\n",
    "qwen2": "<|im_start|>user\n<image>\nWhich?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n",
    "qwen3": "<|im_start|>user\n<image>\nWhich?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n",
    "llama": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<image>\nWhich?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nred<|eot_id|>",
}
ASKED = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nWhich?"}]}
ANSWERED = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}


@dataclasses.dataclass
class Turn:
    role: str
    text: str


@pytest.fixture(scope="module", params=list(SPARE))  # SmolLM2 has none
def joined(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    vision, language = toys.write_vision(folder / "vision"), toys.write_language(folder / "language", request.param)
    return request.param, language, build_processor(vision, language)


def test_a_spare_token_becomes_the_image_token_and_nothing_grows(joined):
    family, language, processor = joined
    stock = AutoTokenizer.from_pretrained(language)
    rows = json.loads((language / "config.json").read_text())["vocab_size"]
    assert processor.image_token == "<image>"
    assert processor.image_token_id == stock.convert_tokens_to_ids(SPARE[family])
    assert len(processor.tokenizer) <= rows
    assert processor.tokenizer("<image>", add_special_tokens=False).input_ids == [processor.image_token_id]
    assert processor.tokenizer.decode([processor.image_token_id], skip_special_tokens=True) == ""


def test_no_text_reaches_past_the_embedding_table(joined):
    _, language, processor = joined
    rows = json.loads((language / "config.json").read_text())["vocab_size"]
    assert max(processor.tokenizer("<image_soft_token> <image> ü").input_ids) < rows


def test_other_text_is_tokenized_as_before(joined):
    _, language, processor = joined
    text = "A red car, isn't it?\nYes:  2 ü"
    assert processor.tokenizer(text).input_ids == AutoTokenizer.from_pretrained(language)(text).input_ids


def test_turns_are_written_as_the_family_writes_them(joined):
    family, _, processor = joined
    assert processor.apply_chat_template([ASKED, ANSWERED]) == TEXTS[family]
    assert processor.tokenizer.apply_chat_template([ASKED, ANSWERED], tokenize=False) == TEXTS[family]
    prompt = processor.apply_chat_template([ASKED], add_generation_prompt=True)
    assert TEXTS[family].startswith(prompt)
    assert TEXTS[family][len(prompt) :].startswith("red")


def asked(*texts: str, image: int | None = 0) -> dict[str, object]:
    parts = [{"type": "text", "text": text} for text in texts]
    if image is not None:
        parts.insert(image, {"type": "image"})
    return {"role": "user", "content": parts}


@pytest.mark.parametrize(
    "message",
    [
        asked("Which?"),
        asked("\nWhich?"),
        asked(" \n Which? \n"),
        asked("Whi", "ch?"),
        {"role": "user", "content": "<image>Which?"},
        {"role": "user", "content": "<image>\n Which?"},
    ],
)
def test_whatever_space_a_caller_leaves_around_the_question_the_prompt_is_the_one_of_training(joined, message):
    family, _, processor = joined
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    assert TEXTS[family].startswith(prompt)
    assert "Which?" in prompt


def test_text_before_an_image_and_a_message_of_an_image_alone_stay_what_they_are(joined):
    _, _, processor = joined
    assert "One.\n<image>\nTwo" in processor.apply_chat_template([asked("One.\n", " Two", image=1)])
    assert "One.\n<image><" in processor.apply_chat_template([asked("One.\n", image=1)])
    assert "\n<image><" in processor.apply_chat_template([asked()])
    assert "\n  Which? <" in processor.apply_chat_template([asked("  Which? ", image=None)])


def test_a_system_message_opens_the_text_of_the_first_question(joined):
    family, _, processor = joined
    system = {"role": "system", "content": " Be brief. "}
    told = processor.apply_chat_template([system, ASKED, ANSWERED])
    assert told == TEXTS[family].replace("<image>\nWhich?", "<image>\nBe brief.\n\nWhich?")
    without_image = processor.apply_chat_template([system, asked("Hi", image=None), ANSWERED, ASKED])
    assert "\nBe brief.\n\nHi<" in without_image
    assert without_image.count("Be brief.") == 1
    before = processor.apply_chat_template([system, asked("Look: ", image=1)])
    assert "\nBe brief.\n\nLook: <image><" in before
    silent = processor.apply_chat_template([{"role": "system", "content": ""}, ASKED, ANSWERED])
    assert silent == TEXTS[family]


@pytest.mark.parametrize("messages", [["system", "system", "user"], ["user", "system"], ["user", "tool"]])
def test_a_second_system_message_or_an_unknown_role_is_refused_in_words(joined, messages):
    _, _, processor = joined
    with pytest.raises(Exception, match="a system message stands once, before the first|not tool"):
        processor.apply_chat_template([{"role": role, "content": "x"} for role in messages])


def test_it_is_saved_in_the_form_that_transformers_4_reads_too(joined, tmp_path):
    family, _, processor = joined
    save_processor(processor, tmp_path)
    stated = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert stated["extra_special_tokens"] == {}
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["image_mean"]
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.apply_chat_template([ASKED, ANSWERED]) == TEXTS[family]
    assert again.tokenizer(TEXTS[family]).input_ids == processor.tokenizer(TEXTS[family]).input_ids
    assert again.tokenizer.extra_special_tokens == processor.tokenizer.extra_special_tokens


def test_the_answer_and_its_end_of_turn_are_learnt_and_nothing_else(joined):
    _, _, processor = joined
    encoded = processor.tokenizer.apply_chat_template(
        [ASKED, ANSWERED, ASKED, {"role": "assistant", "content": "it is blue"}],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ends = end_of_turn(processor)
    learnt = [token for token, flag in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if flag]
    assert processor.tokenizer.decode(learnt) == f"red{ends}it is blue{ends}"


def test_an_image_takes_as_many_positions_as_the_encoder_has_patches(joined):
    _, _, processor = joined
    text = processor.apply_chat_template([ASKED], add_generation_prompt=True)
    made = processor(text=[text], images=[Image.new("RGB", (50, 31))], return_tensors="np")
    assert int((made["input_ids"] == processor.image_token_id).sum()) == 4
    assert made["pixel_values"].shape == (1, 3, 28, 28)


def test_it_survives_saving(joined, tmp_path):
    family, _, processor = joined
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert (again.image_token, again.image_token_id) == (processor.image_token, processor.image_token_id)
    assert again.apply_chat_template([ASKED, ANSWERED]) == TEXTS[family]
    assert again.tokenizer(TEXTS[family]).input_ids == processor.tokenizer(TEXTS[family]).input_ids


def test_an_unknown_family_speaks_as_llava_1_5_does(tmp_path):
    made = toys.tokenizer("qwen2")
    plain = PreTrainedTokenizerFast(tokenizer_object=made.backend_tokenizer, eos_token="</s>", bos_token="<s>")
    vocabulary = {token for token in plain.get_vocab() if not token.startswith("<|im_")}
    family = chat.family_of(vocabulary, eos_token="</s>", starts_with_bos=False)
    assert family.name == "plain"
    text = plain.apply_chat_template(
        [ASKED, ANSWERED, ASKED], chat_template=family.template, tokenize=False, add_generation_prompt=True
    )
    assert text == "USER: <image>\nWhich? ASSISTANT: red</s>USER: <image>\nWhich? ASSISTANT:"


def test_without_a_spare_token_one_is_added(tmp_path):
    vision, language = toys.write_vision(tmp_path / "vision"), toys.write_language(tmp_path / "language", "smollm2")
    stock = AutoTokenizer.from_pretrained(language)
    processor = build_processor(vision, language)
    assert processor.image_token_id == len(stock)
    assert processor.tokenizer("<file_sep>").input_ids == stock("<file_sep>").input_ids


def test_siglip_has_no_class_token(tmp_path):
    vision = toys.write_vision(tmp_path / "vision", "siglip_vision_model")
    processor = build_processor(vision, toys.write_language(tmp_path / "language"))
    assert (processor.vision_feature_select_strategy, processor.num_additional_image_tokens) == ("full", 0)
    made = processor(
        text=["<image>"], images=[Image.fromarray(np.zeros((9, 9, 3), np.uint8))], add_special_tokens=False
    )
    assert len(made["input_ids"][0]) == 4


def test_parts_stand_in_the_order_of_the_text():
    turns = [
        Turn("user", "Look: <image>\nwell?"),
        Turn("assistant", "yes"),
        Turn("user", "<image>"),
        Turn("user", "no\n<image>"),
    ]
    assert [message["content"] for message in chat.to_messages(turns)] == [
        [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "\nwell?"}],
        [{"type": "text", "text": "yes"}],
        [{"type": "image"}],
        [{"type": "text", "text": "no\n"}, {"type": "image"}],
    ]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "vision" / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (lambda folder: (folder / "vision" / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "vision" / "config.json").write_text('{"model_type": "bert"}'), "a 'bert' model"),
        (lambda folder: (folder / "language" / "tokenizer.json").unlink(), r"has no tokenizer \(tokenizer.json\)"),
        (lambda folder: (folder / "language" / "tokenizer.json").write_text("{"), "no tokenizer that can be loaded"),
    ],
    ids=["no image processor", "no config", "no encoder", "no tokenizer", "cut tokenizer"],
)
def test_an_incomplete_folder_gets_one_sentence(tmp_path, spoil, sentence):
    toys.write_vision(tmp_path / "vision")
    toys.write_language(tmp_path / "language", "qwen2")
    spoil(tmp_path)
    with pytest.raises(InputError, match=sentence):
        build_processor(tmp_path / "vision", tmp_path / "language")


def test_an_image_processor_of_another_resolution_is_refused(tmp_path):
    toys.write_language(tmp_path / "language")
    path = toys.write_vision(tmp_path / "vision") / "preprocessor_config.json"
    path.write_text(path.read_text().replace("28", "42"))
    with pytest.raises(InputError, match=r"42 x 42 pixels, the encoder takes 28 x 28"):
        build_processor(tmp_path / "vision", tmp_path / "language")
