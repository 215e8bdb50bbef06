"""The shipped bases: stock folders, and a tokenizer that loses no text."""

import json

import pytest

from multimodal_gemma.sample import bases_folder
from multimodal_gemma.sample.conversations import conversation
from multimodal_gemma.sample.scenes import generate

LANGUAGE, VISION = bases_folder() / "language", bases_folder() / "vision"


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(LANGUAGE, local_files_only=True)


@pytest.mark.parametrize("folder", [VISION, LANGUAGE], ids=["vision", "language"])
def test_stock_transformers_loads_every_weight_and_misses_none(folder):
    from transformers import AutoModel, AutoModelForCausalLM

    stock = AutoModelForCausalLM if folder == LANGUAGE else AutoModel
    model, loading = stock.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    assert not any(loading.values()), loading
    assert type(model).__name__ == json.loads((folder / "config.json").read_text())["architectures"][0]


def test_the_package_stays_small_and_its_files_readable():
    files = [path for path in bases_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in files if path.suffix == ".safetensors")


def test_the_vision_base_gives_standardised_features_of_49_patches():
    import torch
    from transformers import AutoImageProcessor, CLIPVisionModel

    from multimodal_gemma.sample.drawing import draw

    processor = AutoImageProcessor.from_pretrained(VISION, local_files_only=True)
    images = [draw(generate(1, index, "held_out")) for index in range(32)]
    pixel_values = processor(images, return_tensors="pt").pixel_values
    assert pixel_values.shape == (32, 3, 112, 112)
    with torch.no_grad():
        features = CLIPVisionModel.from_pretrained(VISION)(pixel_values).last_hidden_state[:, 1:]
    assert features.shape == (32, 49, 96)
    assert features.mean((0, 1)).abs().max() < 0.25
    assert features.std((0, 1)).min() > 0.7
    assert features.std((0, 1)).max() < 1.4


def test_pixels_of_pretraining_are_those_of_the_stock_processor():
    import torch
    from transformers import AutoImageProcessor

    from multimodal_gemma.sample.drawing import draw
    from multimodal_gemma.sample.vision_base import normalize, pixels

    scene = generate(1, 0, "train")
    processor = AutoImageProcessor.from_pretrained(VISION, local_files_only=True)
    expected = processor(draw(scene), return_tensors="pt").pixel_values
    assert torch.allclose(normalize(pixels([scene])), expected, atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "Two men wearing aprons working in a commercial-style kitchen.",
        "Ein süßer Hund, 犬, собака, 🐕‍🦺",
        " leading, trailing and  double spaces \n\n\ttabs ",
        "\x00\x7f\u200b\ufeff\U0010ffff",
        "",
    ],
)
def test_any_text_survives_the_way_to_tokens_and_back(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_special_tokens_have_gemmas_names_and_ids(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<eos>", "<bos>", "<unk>"]) == [0, 1, 2, 3]
    known = tokenizer.get_vocab()
    assert {"<start_of_turn>", "<end_of_turn>", *(f"<unused{number}>" for number in range(6))} <= set(known)
    assert "<image>" not in known
    assert "<image_soft_token>" not in known
    config = json.loads((LANGUAGE / "config.json").read_text())
    assert config["vocab_size"] == len(known) == max(known.values()) + 1
    assert (config["pad_token_id"], config["eos_token_id"], config["bos_token_id"]) == (0, 1, 2)


def test_renaming_an_unused_token_gives_a_one_token_image_placeholder(tmp_path):
    from transformers import AutoTokenizer

    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_text((LANGUAGE / name).read_text(encoding="utf-8"), encoding="utf-8")
    renamed = (LANGUAGE / "tokenizer.json").read_text(encoding="utf-8").replace("<unused0>", "<image>")
    (tmp_path / "tokenizer.json").write_text(renamed, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert tokenizer("<image>\nyes", add_special_tokens=False).input_ids.count(5) == 1
    assert tokenizer.convert_tokens_to_ids("<image>") == 5


def test_the_chat_template_writes_gemmas_turns_and_masks_only_answers(tokenizer):
    said = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nWhat is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "ball"}]},
        {"role": "user", "content": " Is it red? "},
        {"role": "assistant", "content": "yes"},
    ]
    text = tokenizer.apply_chat_template(said, tokenize=False)
    assert text == (
        "<bos><start_of_turn>user\n<image>\nWhat is it?<end_of_turn>\n<start_of_turn>model\nball<end_of_turn>\n"
        "<start_of_turn>user\nIs it red?<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n"
    )
    asked = tokenizer.apply_chat_template(said[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(asked)
    assert asked.endswith("<start_of_turn>model\n")
    encoded = tokenizer.apply_chat_template(said, return_dict=True, return_assistant_tokens_mask=True)
    learned = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(learned) == "ball<end_of_turn>yes<end_of_turn>"
    assert encoded["input_ids"].count(tokenizer.bos_token_id) == 1


def test_pretraining_supervises_what_the_template_marks(tokenizer):
    import random

    from multimodal_gemma.sample.language_base import IGNORED, encode

    messages = conversation(generate(1, 2, "train"), random.Random(0))
    ids, labels = encode(tokenizer, messages, patches=49)
    assert ids.count(tokenizer.convert_tokens_to_ids("<unused0>")) == 49
    answers = "".join(f"{turn['value']}<end_of_turn>" for turn in messages if turn["from"] == "gpt")
    assert tokenizer.decode([label for label in labels if label != IGNORED]) == answers


def test_pretraining_reads_images_as_stock_llava_does(tokenizer):
    import random

    import torch
    from transformers import CLIPVisionModel, Gemma3ForCausalLM, LlavaConfig, LlavaForConditionalGeneration

    from multimodal_gemma.sample import language_base, vision_base

    vision, language = CLIPVisionModel.from_pretrained(VISION), Gemma3ForCausalLM.from_pretrained(LANGUAGE)
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision.config,
            text_config=language.config,
            image_token_index=5,
            image_seq_length=49,
            vision_feature_select_strategy="default",
            vision_feature_layer=-1,
            tie_word_embeddings=True,
        )
    ).eval()
    llava.model.vision_tower.load_state_dict(vision.state_dict())
    llava.model.language_model.load_state_dict(language.model.state_dict())
    bridge = language_base.projector(96)
    llava.model.multi_modal_projector.linear_1.load_state_dict(bridge[0].state_dict())
    llava.model.multi_modal_projector.linear_2.load_state_dict(bridge[2].state_dict())

    scene = generate(1, 5, "held_out")
    ids = torch.tensor([language_base.encode(tokenizer, conversation(scene, random.Random(0)), patches=49)[0]])
    images = vision_base.pixels([scene])
    with torch.no_grad():
        expected = llava(input_ids=ids, pixel_values=vision_base.normalize(images)).logits
        hidden = language_base.read(language, ids, bridge(vision_base.patch_features(vision, images)), placeholder=5)
    assert torch.allclose(language.lm_head(hidden), expected, atol=1e-4)
