"""What each technique of the training step saves: ours against stock Llava with PEFT, one technique after another.

True shapes of CLIP ViT-L/14 and Gemma-3-270M with random weights, conversations as long as LLaVA's. Needs torch,
transformers and peft only, so it runs on a bare machine:

    PYTHONPATH=src python benchmarks/train_step.py --json      # one thread, process time, fp32
    PYTHONPATH=src python benchmarks/train_step.py --turns 3   # the naive and the last step alone, in turn: their ratio
    PYTHONPATH=src python benchmarks/train_step.py --tiny      # seconds, to see that it works
    PYTHONPATH=src python benchmarks/train_step.py --device cuda --json --out gpu.json

On a GPU it computes in bf16, adds compilation, and reports the share of the peak, memory and the time of the whole
recipe.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import torch
from peft import LoraConfig as PeftLora
from peft import get_peft_model
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionConfig, Gemma3TextConfig, LlavaConfig, LlavaForConditionalGeneration

from multimodal_gemma.config.schema import ModelConfig
from multimodal_gemma.model import attention
from multimodal_gemma.model.adapters import fuse, lora_pattern
from multimodal_gemma.model.forward import Encoder, SupervisedLoss
from multimodal_gemma.model.stream import Composer, Stream
from multimodal_gemma.planning.arithmetic import Shapes, Work, find_device
from multimodal_gemma.training.schedule import count_as_change

warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by an old name
OPENING, IMAGE_TOKEN = (2, 6, 7, 8), 5  # what every conversation begins with, as a chat template has it
RECIPE, EPOCHS = 473_136, 3  # RECIPE: samples of three epochs
IMAGES = 81_479 / 157_712  # of LLaVA-Instruct-150K: images a conversation
DROPOUT = 0.1  # of the naive step


@dataclasses.dataclass
class Sample:
    """A made-up conversation that begins with its image."""

    image_index: int
    input_ids: np.ndarray
    supervised: np.ndarray


@dataclasses.dataclass
class Bench:
    """The model and the samples that every rung of the ladder is timed with."""

    llava: LlavaForConditionalGeneration
    peft: Any
    encoder: Encoder
    samples: list[Sample]
    images: torch.Tensor  # uint8 (images, H, W, 3)
    device: torch.device
    budget: int
    optimiser: torch.optim.Optimizer
    loss: SupervisedLoss
    kernel: str
    features: torch.Tensor | None = None

    @property
    def image_tokens(self) -> int:
        """Patches an image becomes."""
        return int(self.llava.config.image_seq_length)


class LogitsOfAllWords(SupervisedLoss):
    """The loss with the head as stock Llava computes it, over the supervised tokens alone."""

    def head_loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the summed cross-entropy."""
        return functional.cross_entropy(self.llava.lm_head(hidden).float(), targets, reduction="sum")


def shapes(tiny: bool) -> tuple[CLIPVisionConfig, Gemma3TextConfig]:
    """CLIP ViT-L/14 and Gemma-3-270M, or toys."""
    if tiny:
        sizes = {"intermediate_size": 64, "num_hidden_layers": 2}
        vision = CLIPVisionConfig(hidden_size=32, num_attention_heads=2, image_size=28, patch_size=14, **sizes)
        text = Gemma3TextConfig(
            vocab_size=4000, hidden_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=16, **sizes
        )
        return vision, text
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
    )
    text = Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        query_pre_attn_scalar=256,
    )
    return vision, text


def build(tiny: bool, count: int, device: torch.device) -> Bench:
    """Join random models, put LoRA of rank 64 on the language model, and draw `count` samples."""
    torch.manual_seed(0)
    vision, text = shapes(tiny)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        tie_word_embeddings=True,
    )
    llava = LlavaForConditionalGeneration(config).requires_grad_(False)
    lora = ModelConfig().lora
    rank = 4 if tiny else lora.rank
    settings = PeftLora(r=rank, lora_alpha=2 * rank, lora_dropout=DROPOUT, target_modules=lora_pattern(lora.targets))
    peft = get_peft_model(llava, settings)
    llava.model.multi_modal_projector.requires_grad_(True)
    if device.type == "cuda":
        for weight in llava.parameters():
            if not weight.requires_grad:
                weight.data = weight.data.to(torch.bfloat16)
    llava.to(device).train()
    llava.model.vision_tower.eval()
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(200), 0.6, count), 40, 600).astype(int)
    samples = []
    begin = len(OPENING) + 1
    for number, length in enumerate(lengths // (4 if tiny else 1)):
        words = generator.integers(10, text.vocab_size, length)
        ids = np.array([*OPENING, IMAGE_TOKEN, *words], np.int32)
        supervised = np.arange(len(ids)) > begin + length * 0.25
        samples.append(Sample(int(number * IMAGES), ids, supervised))
    side, distinct = vision.image_size, samples[-1].image_index + 1
    images = torch.from_numpy(generator.integers(0, 256, (distinct, side, side, 3)).astype(np.uint8))
    encoder = Encoder(llava, [0.5] * 3, [0.5] * 3, 1 / 255).to(device)
    learnt = [weight for weight in llava.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=1e-5, fused=True)
    optimiser.register_step_post_hook(count_as_change)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    kernel = attention.choose_kernel("auto", llava.model.language_model, device, dtype)
    budget = 16_384 if device.type == "cuda" else 2048  # larger ones gain nothing on a CPU
    return Bench(llava, peft, encoder, samples, images, device, budget, optimiser, LogitsOfAllWords(llava), kernel)


def naive_pass(bench: Bench, indices: list[int]) -> None:
    """Stock Llava with PEFT: encoder, padding to the longest, mask, logits everywhere."""
    rows = []
    for index in indices:
        sample = bench.samples[index]
        ids, labels = sample.input_ids.tolist(), np.where(sample.supervised, sample.input_ids, -100).tolist()
        place = len(OPENING)
        ids[place : place + 1] = [IMAGE_TOKEN] * bench.image_tokens
        labels[place : place + 1] = [-100] * bench.image_tokens
        rows.append((ids, labels))
    width = max(len(ids) for ids, _ in rows)
    device = bench.device
    shown = [bench.samples[index].image_index for index in indices]
    pixels = (bench.images[shown].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    loss = bench.peft(
        input_ids=torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows], device=device),
        attention_mask=torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows], device=device),
        labels=torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows], device=device),
        pixel_values=pixels.to(device, bench.llava.model.vision_tower.dtype),
    ).loss
    loss.backward()


def our_pass(bench: Bench, stream: Stream) -> None:
    """Logits where a token is supervised; features from the cache where there is one, else from the encoder."""
    stream = stream.to(bench.device, bench.kernel)
    if bench.features is not None:
        pictures = bench.features[stream.image_indices].to(bench.device, non_blocking=True)
    else:
        with torch.no_grad():
            pictures = bench.encoder(bench.images[stream.image_indices].to(bench.device))
    (bench.loss(stream, pictures) / len(stream.targets)).backward()


def timed(bench: Bench, naive: int, rounds: int) -> float:
    """Return seconds for all samples and one optimiser step: process time, on a GPU the clock's, least of `rounds`.

    Args:
        bench: the model and the samples.
        naive: rows of a naive pass; 0 for our streams.
        rounds: how often.
    """
    on_gpu, every = bench.device.type == "cuda", range(len(bench.samples))
    clock = time.perf_counter if on_gpu else time.process_time
    autocast = torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext()
    found = []
    for _ in range(rounds):
        if on_gpu:
            torch.cuda.synchronize()
        start = clock()
        with autocast:
            if naive:
                for at in every[::naive]:
                    naive_pass(bench, list(every[at : at + naive]))
            else:
                for stream in Composer(bench.samples, bench.image_tokens, IMAGE_TOKEN).streams(every, bench.budget):
                    our_pass(bench, stream)
        bench.optimiser.step()
        bench.optimiser.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.synchronize()
        found.append(clock() - start)
    return min(found)


def drop_nothing(bench: Bench) -> None:
    """Set the adapters' dropout to 0, as PEFT does where it is configured so."""
    for module in bench.llava.modules():
        if "lora_dropout" in getattr(module, "_modules", {}):
            module.lora_dropout["default"] = nn.Identity()


def encode(bench: Bench) -> float:
    """Fill the cache of features, and return the seconds that it took."""
    clock = time.perf_counter if bench.device.type == "cuda" else time.process_time
    start = clock()
    with torch.no_grad():
        bench.features = torch.cat([bench.encoder(part.to(bench.device)).cpu() for part in bench.images.split(4)])
    return clock() - start


def in_turn(make: Callable[[], Bench], turns: int, batch: int) -> list[dict[str, Any]]:
    """Time the naive step and the last rung of a CPU one after the other, again and again.

    A machine that has other work is slower at one time than at another; two steps beside each other meet the same time.

    Args:
        make: builds a model and its samples.
        turns: how often.
        batch: rows of the naive step.

    Returns:
        Seconds a sample of both, and their ratio, of each turn.
    """
    naive, fast = make(), make()
    naive.llava.set_attn_implementation("eager")
    fast.llava.model.vision_tower.set_attn_implementation("sdpa")
    attention.use_streams(fast.llava.model.language_model)
    fast.loss, count, found = SupervisedLoss(fast.llava), len(fast.samples), []
    drop_nothing(fast)
    fuse(fast.llava)
    for _ in range(turns):
        once = encode(fast) / EPOCHS
        pair = (timed(naive, batch, 1) / count, (timed(fast, 0, 1) + once) / count)
        ratio = round(pair[0] / pair[1], 2)
        found.append({"naive_seconds_per_sample": pair[0], "seconds_per_sample": pair[1], "ratio": ratio})
        sys.stderr.write(f"{pair[0]:.4f} and {pair[1]:.4f} s a sample: {ratio}\n")
    return found


def ladder(bench: Bench, rounds: int, batch: int) -> list[dict[str, Any]]:
    """Time the naive step, then add one technique after the other."""
    count, on_gpu = len(bench.samples), bench.device.type == "cuda"
    rungs: list[dict[str, Any]] = []

    def rung(name: str, *, naive: int = 0, extra: float = 0.0) -> None:
        if on_gpu:  # a first pass that is not counted compiles
            timed(bench, naive, 1)
        seconds = timed(bench, naive, rounds) + extra
        before = rungs[-1]["seconds_per_sample"] if rungs else seconds / count
        share = 1 - seconds / count / before
        rungs.append(
            {"name": name, "seconds_per_sample": seconds / count, "samples_per_second": count / seconds, "saved": share}
        )
        sys.stderr.write(f"{name}: {seconds / count:.4f} s a sample\n")

    bench.llava.set_attn_implementation("eager")
    rung("stock Llava with PEFT, eager attention, dropout 0.1", naive=batch)
    bench.llava.model.vision_tower.set_attn_implementation("sdpa")
    attention.use_streams(bench.llava.model.language_model)
    rung("one stream: no padding, no mask, an image's conversations read it once, logits where supervised")
    bench.loss = SupervisedLoss(bench.llava)
    rung("the head's loss and gradient in one pass, without logits")
    once = encode(bench) / EPOCHS
    rung("each image encoded once (its share counted)", extra=once)
    drop_nothing(bench)
    rung("no dropout in the adapters", extra=once)
    if on_gpu:
        bench.llava.model.language_model.compile(dynamic=True)
        torch.cuda.reset_peak_memory_stats()
        rung("language model compiled", extra=once)
    else:
        fuse(bench.llava)
        rung("adapters and their layers in one product", extra=once)
    return rungs


def gpu_figures(bench: Bench, rungs: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of the peak, memory and the recipe's time of the last rung."""
    name = torch.cuda.get_device_name(bench.device)
    lengths = [len(sample.input_ids) + bench.image_tokens - 1 for sample in bench.samples]
    config = bench.llava.config
    work = Work.of(Shapes.of(config.vision_config, config.text_config), ModelConfig())
    targets = sum(int(sample.supervised.sum()) for sample in bench.samples)
    needed = work.step(sum(lengths), sum(length**2 for length in lengths), targets, len(lengths)) / len(lengths)
    known = find_device(name)
    fast = rungs[-1]["samples_per_second"]
    return {
        "device": name,
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "projected_minutes": round(RECIPE / fast / 60, 1),
        "naive_projected_minutes": round(RECIPE / rungs[0]["samples_per_second"] / 60, 1),
        "mfu": round(needed * fast / (known.tflops * 1e12), 3) if known else None,
    }


def main() -> None:
    """Run the ladder and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--tiny", action="store_true", help="toy shapes: only to see that it works")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--samples", type=int, help="conversations a measurement (default: 12 on a CPU, 320 on a GPU)")
    parser.add_argument(
        "--batch", type=int, default=4, help="rows of the naive step; its logits take 3 GB a row on a CPU"
    )
    parser.add_argument("--rounds", type=int, default=1, help="measurements of which the least counts")
    parser.add_argument("--turns", type=int, default=0, help="time the first and the last rung alone, so often in turn")
    parser.add_argument("--out", type=Path, help="write the JSON object here as well; `mmgemma plan` can read it")
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no usable NVIDIA GPU")
    if args.device == "cpu":
        torch.set_num_threads(1)
    elif args.turns:
        parser.error("--turns is for a CPU: a GPU's ladder runs alone")
    samples, rungs = args.samples or (12 if args.device == "cpu" else 320), []
    figures: dict[str, Any]
    if args.turns:
        turns = in_turn(lambda: build(args.tiny, samples, device), args.turns, args.batch)
        figures = {"ratio": sorted(turn["ratio"] for turn in turns)[len(turns) // 2], "turns": turns}
    else:
        bench = build(args.tiny, samples, device)
        rungs = ladder(bench, args.rounds, args.batch)
        ratio = round(rungs[-1]["samples_per_second"] / rungs[0]["samples_per_second"], 2)
        figures = {"ratio": ratio, "naive": rungs[0], "fast": rungs[-1], "rungs": rungs}
    result = {
        "benchmark": "train_step",
        **figures,
        "samples": samples,
        "naive_batch": args.batch,
        "tiny": args.tiny,
        "device": platform.processor() or platform.machine(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        result |= gpu_figures(bench, rungs)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.json:
        print(json.dumps(result))
        return
    for entry in rungs:
        print(f"{entry['seconds_per_sample']:9.4f} s a sample  {entry['saved']:6.1%} saved  {entry['name']}")
    print(f"ratio {result['ratio']}")


if __name__ == "__main__":
    main()
