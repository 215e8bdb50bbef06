"""Tiny random image-text-to-text models of several families, made by stock transformers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma3TextConfig,
    GemmaConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

WORDS = "user model is there a an the in image ? dog cat car snowboard what color how many are or . , not"
SPECIAL = ["<pad>", "<bos>", "<eos>", "<image>", "<start_of_turn>", "<end_of_turn>"]
TEMPLATE = """{{ bos_token }}{% for message in messages -%}
<start_of_turn>{{ 'model' if message.role == 'assistant' else 'user' }}
{% for part in message.content -%}{{ '<image>\n' if part.type == 'image' else part.text }}{%- endfor %}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
QUESTIONS = [
    "is there a dog in the image ?",
    "is there a snowboard in the image ?",
    "what color is the car ?",
    "how many cat are there in the image , a dog or a cat ?",
    "dog ?",
]


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with yes and no in two spellings and fifty words to babble with."""
    words = [*SPECIAL, "<unk>", "\n", "Yes", "yes", "No", "no", *WORDS.split(), *[f"w{number}" for number in range(50)]]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    raw.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    fast.chat_template = TEMPLATE
    return fast


def processor() -> LlavaProcessor:
    """32 pixels, patches of 8: 16 image tokens."""
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )


def language_config(family: str) -> Any:
    """A tiny configuration of a language model family; windows are far shorter than the prompts."""
    size = len(tokenizer())
    common = {
        "vocab_size": size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    if family == "gemma3":
        kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
        return Gemma3TextConfig(**common, head_dim=8, sliding_window=12, query_pre_attn_scalar=8, layer_types=kinds)
    if family == "qwen2":
        return Qwen2Config(**common, use_sliding_window=True, sliding_window=12, max_window_layers=2)
    if family == "qwen3":
        return Qwen3Config(**common, head_dim=8)
    return LlamaConfig(**common)


def llava(family: str, *, seed: int = 0) -> LlavaForConditionalGeneration:
    """A random Llava around a language model of the family, in eval mode; its large weights babble variedly."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language_config(family),
        image_token_id=tokenizer().convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,  # a tied random head would only echo the last word
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5 if "embed" in name else 0.25)
    model.generation_config.eos_token_id = [2, 5]
    model.generation_config.pad_token_id = 0
    return model


def images(count: int, *, seed: int = 0) -> list[Image.Image]:
    """Random pictures of different sizes."""
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (40 + 3 * n, 50, 3), dtype=np.uint8)) for n in range(count)]


def save(folder: Path, family: str = "gemma3", *, seed: int = 0) -> Path:
    """Write a stock model folder."""
    llava(family, seed=seed).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def save_paligemma(folder: Path) -> Path:
    """Write a stock folder of an architecture that is no Llava."""
    reader = SiglipImageProcessor(size={"height": 32, "width": 32})
    reader.image_seq_length = 16
    made = PaliGemmaProcessor(image_processor=reader, tokenizer=tokenizer(), chat_template=TEMPLATE)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = SiglipVisionConfig(**size, image_size=32, patch_size=8, vision_use_head=False)
    text = GemmaConfig(
        **size, vocab_size=len(made.tokenizer), num_key_value_heads=2, head_dim=8, pad_token_id=0, eos_token_id=2
    )
    torch.manual_seed(0)
    config = PaliGemmaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_id=made.image_token_id,
        projection_dim=32,
    )
    model = PaliGemmaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5 if "embed" in name else 0.25)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def save_idefics(folder: Path) -> Path:
    """Write a stock folder of the family of SmolVLM: images cut into tiles, each of them several tokens."""
    words = tokenizer()
    extra = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<row_1_col_1>"]
    words.add_special_tokens({"additional_special_tokens": extra})
    reader = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    made = Idefics3Processor(reader, words, image_seq_len=4, chat_template=TEMPLATE)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = LlamaConfig(**size, vocab_size=len(words), num_key_value_heads=2, pad_token_id=0, eos_token_id=2)
    torch.manual_seed(0)
    config = Idefics3Config(
        vision_config={**size, "image_size": 32, "patch_size": 8},
        text_config=text.to_dict(),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    model = Idefics3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5 if "embed" in name else 0.25)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder
