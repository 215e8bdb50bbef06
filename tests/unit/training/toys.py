"""Tiny base models of several families and a processed dataset of coloured squares, for tests of model and training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from multimodal_gemma import config, manifest
from multimodal_gemma.config import Config
from multimodal_gemma.data import processed
from multimodal_gemma.data.arrow import Writer
from multimodal_gemma.model.folders import vision_facts
from multimodal_gemma.model.processor import build_processor

IMAGE_SIZE, PATCH = 28, 14  # 4 patches
COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}
FAMILIES = ("gemma", "qwen2", "qwen3", "llama", "smollm2")
_TURNS = {
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>"],
    "qwen3": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>"],
    "smollm2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"],
    "llama": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ],
}


def write_vision(folder: Path, kind: str = "clip_vision_model", image_size: int = IMAGE_SIZE) -> Path:
    """Write a vision base with random weights: "clip" or "siglip" (whole), or the vision half of either.

    SigLIP2 of a fixed size is a "siglip" checkpoint with another tokenizer.
    """
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": PATCH,
    }
    torch.manual_seed(1)
    side = {"height": image_size, "width": image_size}
    if kind == "siglip_vision_model":
        SiglipVisionModel(SiglipVisionConfig(**shape)).save_pretrained(folder)
        SiglipImageProcessorPil(size=side).save_pretrained(folder)
        return folder
    text: dict[str, int] = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 9,
    }
    if kind == "siglip":
        text["projection_size"] = shape["hidden_size"]
        SiglipModel(SiglipConfig(text_config=text, vision_config=shape)).save_pretrained(folder)
        SiglipImageProcessorPil(size=side).save_pretrained(folder)
        return folder
    if kind == "clip":
        text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        CLIPModel(CLIPConfig(text_config=text, vision_config=shape)).save_pretrained(folder)
    else:
        CLIPVisionModel(CLIPVisionConfig(**shape)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=side).save_pretrained(folder)
    return folder


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes with the family's special tokens."""
    if family == "gemma":
        special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<unused0>", "<unused1>"]
        letters = ["▁", *map(chr, range(33, 127))]
        tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
        made = GemmaTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[])
        made.add_tokens([AddedToken("<unused0>", special=False), AddedToken("<unused1>", special=False)])
        made.add_special_tokens({"extra_special_tokens": _TURNS["gemma"]})
        # As Gemma 3's own files: an image token that text-only models have no embedding for.
        made.add_tokens([AddedToken("<image_soft_token>", special=True)])
        made.image_token = "<image_soft_token>"
        return made
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _TURNS[family]])
    if family == "llama":
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def write_language(folder: Path, family: str = "gemma") -> Path:
    """Write a causal language model of a family with random weights, and its tokenizer."""
    made = tokenizer(family)
    size = len(made) - 1 if family == "gemma" else len(made)
    shape = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": size,
        "bos_token_id": made.bos_token_id,
        "eos_token_id": made.eos_token_id,
        "pad_token_id": made.pad_token_id,
    }
    torch.manual_seed(2)
    if family == "gemma":
        layers = ["sliding_attention", "full_attention"]
        text = Gemma3TextConfig(**shape, head_dim=12, sliding_window=8, layer_types=layers, initializer_range=0.2)
        model = Gemma3ForCausalLM(text)
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True, initializer_range=0.2))
    elif family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=12, initializer_range=0.2))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.2, tie_word_embeddings=family == "smollm2"))
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def write_models(
    folder: Path, family: str = "gemma", vision: str = "clip_vision_model", image_size: int = IMAGE_SIZE
) -> Path:
    """Write a finished base-models artifact."""
    write_vision(folder / "vision", vision, image_size)
    write_language(folder / "language", family)
    manifest.write(folder, "base-models", config={"family": family, "vision": vision, "image_size": image_size})
    return folder


def square(color: str, number: int, side: int = IMAGE_SIZE) -> np.ndarray:
    """Return a noisy square of a colour, uint8 (side, side, 3)."""
    noise = np.random.default_rng(number).integers(-15, 16, (side, side, 3))
    return np.clip(np.array(COLORS[color]) + noise, 0, 255).astype(np.uint8)


def write_dataset(
    folder: Path, base: Path, *, conversations: int = 24, validation: int = 8, text_only: int = 2, an_image: int = 1
) -> Path:
    """Write a finished processed dataset: which colour is the square, asked in one or two turns.

    Odd conversations have the image first, even ones last; `an_image` of them in a row ask about one image.
    """
    processor = build_processor(base / "vision", base / "language")
    processor.save_pretrained(folder / "processor")
    shape = vision_facts(base / "vision")
    names = list(COLORS)
    total = conversations + validation
    write_pixels(
        folder, [square(names[number % len(names)], number, shape.image_size).tobytes() for number in range(total)]
    )
    for split, numbers in (("train", range(conversations)), ("val", range(conversations, total))):
        rows, tokens = [], []
        for number in numbers:
            with_image = not (split == "train" and number < text_only)
            row, *encoded = _conversation(processor, number, names[number % len(names)], with_image, an_image)
            rows.append(row)
            tokens.append(encoded)
        processed.write_split(folder / split, rows, tokens)
    facts = {
        "image_tokens": shape.image_tokens,
        "image_size": shape.image_size,
        "image_token_id": processor.image_token_id,
        "pad_token_id": processor.tokenizer.pad_token_id,
        "pixels": "raw",
        "slices": ["0.arrow"],
    }
    inputs = {"models": manifest.read(base).digest}
    manifest.write(folder, "processed-dataset", config={}, facts=facts, inputs=inputs)
    return folder


def write_pixels(folder: Path, pictures: list[bytes]) -> None:
    """Write the pictures of a processed dataset, one slice of them."""
    path = folder / processed.PIXELS / "0.arrow"
    path.parent.mkdir(parents=True)
    with Writer(path, pa.schema([("pixels", pa.large_binary())])) as table:
        for pixels in pictures:
            table.add((pixels,), len(pixels))
    places = [(f"{number:012d}.jpg", f"{number:064d}", 0, number) for number in range(len(pictures))]
    processed.write_images(folder, places)


def _conversation(processor, number: int, color: str, with_image: bool, an_image: int):
    image = [{"type": "image"}] if with_image else []
    asked = {"type": "text", "text": "\nWhich color?"}
    content = [*image, asked] if number % 2 else [asked, *image]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": color}]
    if number % 3 == 0:
        messages += [
            {"role": "user", "content": "Sure?" * (1 + number % 4)},
            {"role": "assistant", "content": ("yes, " if number % 2 else "no, ") + color},
        ]
    encoded = processor.tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    row = processed.Row(
        id=f"c{number}",
        image_id=f"{number // an_image:012d}" if with_image else "",
        image_index=number // an_image if with_image else -1,
        length=len(encoded["input_ids"]),
    )
    return row, encoded["input_ids"], encoded["assistant_masks"]


def configuration(*overrides: str) -> Config:
    """Return a configuration for these toys: 6 steps of 8 conversations, validated twice."""
    fixed = (
        "training.epochs=2",
        "training.batch_size=8",
        "training.batch_tokens=512",
        "training.validations_per_epoch=1",
        "training.warmup_fraction=0.2",
        "training.trackers=[]",
        "training.device=cpu",
        "training.projector_lr=1e-3",
        "training.lora_lr=2e-4",
        "training.patience=3",
        "training.keep_best=2",
        "model.lora.rank=4",
        "model.lora.alpha=8",
        "model.lora.dropout=0.0",
        "model.vision_feature_layer=-1",
    )
    return config.compose("llava-150k", [*fixed, *overrides])
