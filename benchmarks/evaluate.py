"""What shared prefixes save in evaluation: ours against stock `generate`, question by question.

The true shapes of CLIP ViT-L/14 and Gemma-3-270M with random weights, one thread, process time. Needs torch and
transformers only, so it runs on a bare machine:

    PYTHONPATH=src python benchmarks/evaluate.py --json
    PYTHONPATH=src python benchmarks/evaluate.py --tiny        # a second, to see that it works

The answers are compared token by token: a speed-up that changes an answer would be none.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma3TextConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from multimodal_gemma.evaluation.generator import SuffixGenerator

SPECIAL = ["<pad>", "<eos>", "<bos>", "<image>", "<start_of_turn>", "<end_of_turn>", "<unk>", "\n"]
TEMPLATE = """{{ bos_token }}{% for message in messages -%}
<start_of_turn>{{ message.role }}
{% for part in message.content -%}{{ '<image>' if part.type == 'image' else part.text }}{%- endfor %}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
SUFFIX = "\nAnswer the question using a single word or phrase."
THINGS = (
    "dog",
    "cat",
    "car",
    "snowboard",
    "person",
    "chair",
    "dining table",
    "traffic light",
    "bicycle",
    "cup",
    "sofa",
)
STOPS = [1, 5]


def processor(side: int, patch: int) -> LlavaProcessor:
    """A word-level tokenizer: a prompt has about as many words as Gemma's tokenizer makes pieces."""
    words = f"{' '.join(THINGS)} user model Is there a in the image? Yes No yes no {SUFFIX}".split()
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*SPECIAL, *words]))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    splits = [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    raw.pre_tokenizer = pre_tokenizers.Sequence(splits)
    raw.add_special_tokens(SPECIAL[:6])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    crop = {"height": side, "width": side}
    return LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": side}, crop_size=crop),
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )


def model(tiny: bool) -> LlavaForConditionalGeneration:
    """Random weights in the shapes of the published models, or the same in miniature."""
    if tiny:
        size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        vision = CLIPVisionConfig(**size, image_size=56, patch_size=14)
        text = Gemma3TextConfig(**size, vocab_size=512, num_key_value_heads=1, head_dim=16, sliding_window=40)
    else:
        size = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        vision = CLIPVisionConfig(**size, image_size=224, patch_size=14)
        text = Gemma3TextConfig(
            vocab_size=262_144,
            hidden_size=640,
            intermediate_size=2048,
            num_hidden_layers=18,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=256,
            sliding_window=512,
            layer_types=["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(18)],
        )
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=3,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    made = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():  # random weights look everywhere alike and echo the last word; like this, answers vary
        for layer in made.model.language_model.layers:
            layer.self_attn.q_norm.weight.fill_(4)
        made.model.language_model.norm.weight.normal_(std=3)
    made.generation_config.eos_token_id = STOPS
    made.generation_config.pad_token_id = 0
    return made


def scenes(images: int, questions: int, side: int) -> list[tuple[Image.Image, list[str]]]:
    """Random pictures, each with presence questions of different lengths."""
    rng = np.random.default_rng(0)
    asked = []
    for number in range(images):
        picture = Image.fromarray(rng.integers(0, 256, (side + 16, side, 3), dtype=np.uint8))
        things = [THINGS[(number + place) % len(THINGS)] for place in range(questions)]
        asked.append((picture, [f"Is there a {thing} in the image?" for thing in things]))
    return asked


@torch.inference_mode()
def stock(
    llava: Any, reader: LlavaProcessor, asked: list[tuple[Image.Image, list[str]]], new: int
) -> list[list[tuple[int, ...]]]:
    """What everybody writes first: one call of generate a question."""
    said = []
    for picture, questions in asked:
        row = []
        for question in questions:
            content = [{"type": "image", "image": picture}, {"type": "text", "text": f"{question}{SUFFIX}"}]
            inputs = reader.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            ).to(llava.device)
            output = llava.generate(**inputs, do_sample=False, max_new_tokens=new)
            tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
            row.append(tuple(token for token in tokens if token not in STOPS))
        said.append(row)
    return said


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time both ways on the same questions."""
    torch.set_num_threads(arguments.threads)
    llava = model(arguments.tiny).to(arguments.device)
    side, patch = llava.config.vision_config.image_size, llava.config.vision_config.patch_size
    reader = processor(side, patch)
    asked = scenes(arguments.images, arguments.questions, side)
    ours = SuffixGenerator(
        llava, reader, suffix=SUFFIX, max_new_tokens=arguments.new_tokens, batch_tokens=arguments.batch_tokens
    )
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    start = clock()
    answers = [[answer.tokens for answer in row] for row in ours.answer(asked)]
    middle = clock()
    expected = stock(llava, reader, asked, arguments.new_tokens)
    end = clock()
    return {
        "benchmark": "evaluate",
        "ratio": (end - middle) / (middle - start),
        "naive_seconds": end - middle,
        "ours_seconds": middle - start,
        "identical": answers == expected,
        "images": arguments.images,
        "questions_an_image": arguments.questions,
        "new_tokens": arguments.new_tokens,
        "distinct_answers": len({answer for row in answers for answer in row}),
        "parameters": sum(parameter.numel() for parameter in llava.parameters()),
        "threads": arguments.threads,
        "device": arguments.device,
        "torch": torch.__version__,
    }


def main() -> int:
    """Measure and print; 1 if an answer differs."""
    parser = argparse.ArgumentParser(description="Shared prefixes against generate, question by question.")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--tiny", action="store_true", help="miniature shapes, to see that it works")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--questions", type=int, default=6, help="an image")
    parser.add_argument("--new-tokens", type=int, default=4, help="longest answer")
    parser.add_argument("--batch-tokens", type=int, default=16_384, help="positions that a batch may hold")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    figures = measure(parser.parse_args())
    if parser.parse_args().json:
        print(json.dumps(figures))
    else:
        print(
            f"{figures['images']} images with {figures['questions_an_image']} questions: "
            f"{figures['naive_seconds']:.1f} s by generate, {figures['ours_seconds']:.1f} s by shared prefixes, "
            f"{figures['ratio']:.1f}x; answers {'identical' if figures['identical'] else 'DIFFER'}"
        )
    return 0 if figures["identical"] else 1


if __name__ == "__main__":
    sys.exit(main())
