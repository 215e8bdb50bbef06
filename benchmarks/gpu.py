"""Whether the recipe reaches its goal on this GPU, and what bounds it: one JSON object.

    python benchmarks/gpu.py --json                     # all phases, each in a process of its own: about ten minutes
    python benchmarks/gpu.py --out gpu.json             # `mmgemma plan --benchmark gpu.json` takes its mfu
    python benchmarks/gpu.py --phase main --steps 60    # one phase
    python benchmarks/gpu.py --tiny --cpu --json        # toys on a processor, to see that it works

Needs torch, transformers, peft, accelerate, psutil, pillow, numpy and safetensors, so it runs on a bare machine.
Phases:

env     what there is
main    the project's own Trainer, with its loop, optimiser, checkpoints and validation, on conversations as long as
        LLaVA-Instruct-150K's; samples a second of the wall clock, and what the GPU spent its time on
loss    the head over all words, ours beside the plain one
sdpa    attention in a stream, by the kernel for all lengths and by groups
naive   stock Llava with PEFT: eager attention, random batches padded to the longest, all logits, the encoder every time
encode  images a second into the cache of features
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by an old name
PHASES = {"env": 25, "main": 240, "loss": 60, "sdpa": 60, "naive": 110, "encode": 80}  # seconds that each may take
RECIPE, IMAGES = 473_136, 81_479  # samples of three epochs; pictures that are encoded once
GOAL_MINUTES = {"H200": 10, "A100": 25}
OPENING, IMAGE_TOKEN = (2, 6, 7, 8), 5  # what every conversation begins with, as a chat template has it
BATCH = 40  # conversations an optimiser step


class Split:
    """Made-up conversations as long as LLaVA's, two an image, as the trainer reads a split of a processed dataset."""

    def __init__(self, count: int, image_tokens: int, vocabulary: int, seed: int, shorter: int) -> None:
        draw = np.random.default_rng(seed)
        words = np.clip(draw.lognormal(np.log(200), 0.6, count), 40, 1024).astype(int) // shorter
        self._ids = [np.array([*OPENING, IMAGE_TOKEN, *draw.integers(10, vocabulary, n)], np.int32) for n in words]
        self.image_indices = np.arange(count) // 2
        self.lengths = np.array([len(ids) + image_tokens - 1 for ids in self._ids])
        self.ids = [f"c{number}" for number in range(count)]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: int) -> SimpleNamespace:
        ids = self._ids[row]
        learnt = np.arange(len(ids)) > len(OPENING) + 1 + len(ids) // 4
        return SimpleNamespace(image_index=int(self.image_indices[row]), input_ids=ids, supervised=learnt)


class Dataset:
    """A training and a validation split of such conversations, with noise instead of photographs."""

    image_token_id = IMAGE_TOKEN

    def __init__(self, train: int, side: int, image_tokens: int, vocabulary: int, shorter: int) -> None:
        self.image_tokens = image_tokens
        made = {"train": (train, 1), "val": (200 // shorter, 2)}
        self._splits = {
            name: Split(count, image_tokens, vocabulary, seed, shorter) for name, (count, seed) in made.items()
        }
        self._pixels = np.random.default_rng(0).integers(0, 256, (64, side, side, 3)).astype(np.uint8)

    def split(self, name: str) -> Split:
        """Return "train" or "val"."""
        return self._splits[name]

    def image(self, index: int) -> np.ndarray:
        """Return uint8 (H, W, 3)."""
        return self._pixels[index % len(self._pixels)]


def joined(args: argparse.Namespace, dropout: float) -> tuple[Any, Any]:
    """CLIP-L/14 and Gemma-3-270M at random weights with LoRA of rank 64, frozen weights in bf16 on a GPU."""
    from peft import LoraConfig, get_peft_model
    from transformers import CLIPVisionConfig, Gemma3TextConfig, LlavaConfig, LlavaForConditionalGeneration

    from multimodal_gemma.config.schema import ModelConfig
    from multimodal_gemma.model.adapters import lora_pattern

    torch.manual_seed(0)
    if args.tiny:
        sizes = {"intermediate_size": 64, "num_hidden_layers": 2}
        vision = CLIPVisionConfig(hidden_size=32, num_attention_heads=2, image_size=28, patch_size=14, **sizes)
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 16}
        text = Gemma3TextConfig(vocab_size=900, hidden_size=32, **heads, **sizes)
    else:
        sizes = {"intermediate_size": 4096, "num_hidden_layers": 24}
        vision = CLIPVisionConfig(hidden_size=1024, num_attention_heads=16, image_size=224, patch_size=14, **sizes)
        heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512}
        sizes = {"intermediate_size": 2048, "num_hidden_layers": 18, "query_pre_attn_scalar": 256}
        text = Gemma3TextConfig(vocab_size=262_144, hidden_size=640, **heads, **sizes)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        tie_word_embeddings=True,
    )
    with args.device:
        llava = LlavaForConditionalGeneration(config).requires_grad_(False)
    lora = ModelConfig().lora
    rank = 4 if args.tiny else lora.rank
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=lora_pattern(lora.targets))
    peft = get_peft_model(llava, settings)
    llava.model.multi_modal_projector.requires_grad_(True)
    if args.device.type == "cuda":
        for weight in llava.parameters():
            weight.data = weight.data.to(torch.float32 if weight.requires_grad else torch.bfloat16)
    return llava.to(args.device), peft


def encoder_of(llava: Any) -> Any:
    """The encoder, with the normalisation of noise."""
    from multimodal_gemma.model.forward import Encoder

    return Encoder(llava, [0.5] * 3, [0.5] * 3, 1 / 255).to(llava.device)


def made_up(args: argparse.Namespace, llava: Any, train: int) -> Dataset:
    """Conversations that fit a model."""
    config = llava.config
    side, shorter = config.vision_config.image_size, 8 if args.tiny else 1
    return Dataset(train, side, config.image_seq_length, config.text_config.vocab_size, shorter)


def milliseconds(args: argparse.Namespace, work: Callable[[], object]) -> float:
    """Least time of five, after one that is not counted."""
    work()
    found = []
    for _ in range(5):
        settle(args)
        start = time.perf_counter()
        work()
        settle(args)
        found.append(time.perf_counter() - start)
    return round(min(found) * 1000, 3)


def settle(args: argparse.Namespace) -> None:
    """Wait for the GPU."""
    if args.device.type == "cuda":
        torch.cuda.synchronize()


def env(args: argparse.Namespace) -> dict[str, Any]:
    """What there is."""
    modules = [torch, *map(importlib.import_module, ("transformers", "peft", "accelerate"))]
    found: dict[str, Any] = {"versions": {module.__name__: module.__version__ for module in modules}}
    found["cores"] = os.cpu_count()
    if args.device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability()}
        found["memory_gb"] = round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1)
    return found


def main_phase(args: argparse.Namespace) -> dict[str, Any]:
    """The project's own Trainer for some steps; then what it spent its time on."""
    import torch._dynamo.utils as dynamo

    from multimodal_gemma.config.schema import Config, ModelConfig, TrainingConfig
    from multimodal_gemma.model.forward import SupervisedLoss
    from multimodal_gemma.planning.arithmetic import Shapes, Work, find_device
    from multimodal_gemma.training import checkpoint, features, loop, session
    from multimodal_gemma.training.device import choose_budget, make_accelerator
    from multimodal_gemma.training.failures import Watch

    steps, on_gpu = args.steps, args.device.type == "cuda"
    training = TrainingConfig(
        epochs=1,
        batch_size=BATCH,
        max_steps=steps,
        validations_per_epoch=1,
        trackers=[],
        device=args.device.type,
        feature_cache="memory" if not on_gpu else "auto",
    )
    for setting in args.set:
        name, _, value = setting.partition("=")
        kind = type(getattr(training, name))
        setattr(training, name, kind(value) if value.isdigit() or kind is float else value)
    config = Config(model=ModelConfig(), training=training)
    config.model.lora.dropout = args.dropout
    folder = Path(tempfile.mkdtemp())
    accelerator = make_accelerator(training, [], folder)
    llava, _ = joined(args, args.dropout)
    data, encoder = made_up(args, llava, max(BATCH * steps, 8 * BATCH)), encoder_of(llava)
    kernel = session.speed_up(config, llava, accelerator)
    loss = SupervisedLoss(llava)
    pictures = features.open_pictures(config, data, encoder, accelerator, folder / "features", {})
    begun = time.perf_counter()
    budget = choose_budget(training, accelerator, loss, kernel, data)
    searched = time.perf_counter() - begun
    work = Work.of(Shapes.of(llava.config.vision_config, llava.config.text_config), config.model)
    job = loop.Job(
        training=training,
        loss=loss,
        train=data.split("train"),
        val=data.split("val"),
        image_tokens=data.image_tokens,
        image_token_id=IMAGE_TOKEN,
        pictures=pictures,
        kernel=kernel,
        folder=folder,
        settings=checkpoint.Settings({}, steps=steps),
        budget=budget,
        work=work,
    )
    taken: list[tuple[float, int, int, int, int]] = []  # when, and what the step held
    take, spent = loop.Trainer._take, {}

    def noted(self: Any, step: Any) -> None:
        with profiled(spent) if on_gpu and steps - 8 <= step.number < steps - 5 else contextlib.nullcontext():
            take(self, step)
        streams = [ready.stream for ready in step.passes]
        held = (sum(stream.positions for stream in streams), sum(stream.runs.pairs for stream in streams))
        taken.append((time.perf_counter(), *held, step.supervised, sum(len(s.image_indices) for s in streams)))

    loop.Trainer._take = noted
    with Watch() as watch:
        outcome = loop.Trainer(job, accelerator, watch).run()
    # After compilation and before the profiler; the queue of a GPU is short, so that steps begin as fast as they end.
    calm = taken[steps // 2 : max(steps - 9, steps // 2 + 2)]
    seconds = calm[-1][0] - calm[0][0]
    rate = BATCH * (len(calm) - 1) / seconds
    needed = sum(work.step(*counts) for _, *counts in calm[1:])
    name = torch.cuda.get_device_name() if on_gpu else ""
    known = find_device(name) if on_gpu else None
    goal = next((minutes for mark, minutes in GOAL_MINUTES.items() if mark in name), None)
    minutes = RECIPE / rate / 60
    return {
        "kernel": kernel,
        "budget": budget,
        "budget_and_compile_seconds": round(searched, 1),
        "samples_per_second": round(rate, 1),
        "projected_minutes": round(minutes, 1),
        "goal_minutes": goal,
        "goal_met": None if goal is None else minutes <= goal,
        "mfu": round(needed / seconds / known.tflops / 1e12, 3) if known else None,
        "gflop_a_sample": round(needed / BATCH / (len(calm) - 1) / 1e9, 1),
        "first_and_last_loss": [outcome.rows[0]["loss"], outcome.rows[-1]["loss"]],
        "memory_gb": outcome.rows[-1]["memory_gb"],
        "graphs": dict(dynamo.counters["stats"]),
        "graph_breaks": sum(dynamo.counters["graph_break"].values()),
        **spent,
    }


@contextlib.contextmanager
def profiled(spent: dict[str, Any]) -> Iterator[None]:
    """Look at one step: which share of its time the GPU was busy, and in which kernels; the last one counts."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        yield
        torch.cuda.synchronize()
    microseconds = (time.perf_counter() - start) * 1e6
    kernels = [event for event in profile.key_averages() if event.self_device_time_total > 0]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    spent["busy_share"] = round(sum(event.self_device_time_total for event in kernels) / microseconds, 3)
    spent["kernels"] = [
        {"name": event.key[:80], "calls": event.count, "ms": round(event.self_device_time_total / 1000, 2)}
        for event in kernels[:30]
    ]


def loss_phase(args: argparse.Namespace) -> dict[str, Any]:
    """The head: the supervised tokens of a step over all words, frozen and learning."""
    from multimodal_gemma.model import vocabulary_loss as ours

    rows, width, words = (200, 32, 900) if args.tiny else (6880, 640, 262_144)
    dtype = torch.bfloat16 if args.device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, device=args.device, dtype=dtype, requires_grad=True)
    weight = (torch.randn(words, width, device=args.device) * 0.05).to(dtype)
    learning = weight.clone().requires_grad_()
    targets = torch.randint(0, words, (rows,), device=args.device)

    def of_rows(size: int) -> Callable[[], object]:
        def work() -> object:
            before, ours._ROWS_ON_GPU = ours._ROWS_ON_GPU, size
            try:
                return torch.autograd.grad(ours.vocabulary_loss(hidden, weight, targets), hidden)
            finally:
                ours._ROWS_ON_GPU = before

        return work

    def plain(head: Tensor, *of: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(
            functional.cross_entropy((hidden @ head.T).float(), targets, reduction="sum"), of
        )

    cases = {f"ours, pieces of {size}": of_rows(size) for size in (1024, 2048, 3440)}
    cases["ours, a head that learns"] = lambda: torch.autograd.grad(
        ours.vocabulary_loss(hidden, learning, targets), (hidden, learning)
    )
    cases["plain"] = plain(weight, hidden)
    cases["plain, a head that learns"] = plain(learning, hidden, learning)
    cases["the two products alone"] = lambda: (hidden.detach() @ weight.T) @ weight
    found: dict[str, Any] = {}
    for name, work in cases.items():
        if args.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            found[name] = {"ms": milliseconds(args, work)}
        except torch.OutOfMemoryError as error:
            found[name] = str(error).splitlines()[0]
            continue
        if args.device.type == "cuda":
            found[name]["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    part = hidden[: rows // 10].detach().requires_grad_()
    exact_loss = functional.cross_entropy(part.float() @ weight.float().T, targets[: rows // 10], reduction="sum")
    (exact,) = torch.autograd.grad(exact_loss, part)
    (got,) = torch.autograd.grad(ours.vocabulary_loss(part, weight, targets[: rows // 10]), part)
    found["relative_error_of_our_gradient"] = float((got.float() - exact.float()).norm() / exact.float().norm())
    return found


def sdpa_phase(args: argparse.Namespace) -> dict[str, Any]:
    """Attention of one layer over a stream of a whole step, forward and back."""
    from multimodal_gemma.model import attention
    from multimodal_gemma.model.stream import Composer

    llava, _ = joined(argparse.Namespace(**{**vars(args), "tiny": True}), 0.0)
    tokens, shorter = (4, 8) if args.tiny else (256, 1)
    split = Split(BATCH, tokens, 900, 3, shorter)
    stream = Composer(split, tokens, IMAGE_TOKEN).stream(range(BATCH))
    heads, width, window = (2, 16, 16) if args.tiny else (4, 256, 512)
    dtype = torch.bfloat16 if args.device.type == "cuda" else torch.float32
    shapes = [(1, count, stream.positions, width) for count in (heads, 1, 1)]
    parts = [torch.randn(shape, device=args.device, dtype=dtype, requires_grad=True) for shape in shapes]
    found: dict[str, Any] = {"positions": stream.positions, "runs": len(stream.runs.own)}
    kernels = {"sdpa": stream.runs.groups(args.device)}
    reason = attention.obstacle(llava.config.text_config, args.device, dtype)
    if reason is None:
        kernels["varlen"] = stream.runs.packed(args.device)
    else:
        found["varlen"] = reason
    for name, runs in kernels.items():
        for kind, seen in (("causal", None), ("window", window)):

            def work(runs: Any = runs, seen: int | None = seen) -> object:
                out, _ = attention.attend(llava, *parts, None, runs=runs, scaling=width**-0.5, sliding_window=seen)
                return torch.autograd.grad(out.sum(), parts)

            found[f"{name}_{kind}_ms"] = milliseconds(args, work)
    return found


def naive_phase(args: argparse.Namespace) -> dict[str, Any]:
    """Stock Llava with PEFT, in as large batches as the memory holds."""
    rows = 4 if args.tiny else 20
    while True:
        try:
            return {**naive(args, rows), "rows_a_pass": rows}
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        torch.cuda.empty_cache()
        rows //= 2


def naive(args: argparse.Namespace, rows: int) -> dict[str, Any]:
    """Time the naive step."""
    llava, peft = joined(args, 0.1)
    llava.set_attn_implementation("eager")
    llava.train()
    data = made_up(args, llava, 10 * BATCH)
    split, tokens = data.split("train"), data.image_tokens
    learnt = [weight for weight in llava.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=1e-4)
    order, found = np.random.default_rng(0).permutation(len(split)), []
    for start in range(0, min(args.steps, 8) * BATCH, BATCH):
        begun = time.perf_counter()
        step = [int(index) for index in np.take(order, range(start, start + BATCH), mode="wrap")]
        for at in range(0, BATCH, rows):
            taken = [split[index] for index in step[at : at + rows]]
            skip = len(OPENING) + 1
            ids = [[*OPENING, *[IMAGE_TOKEN] * tokens, *row.input_ids[skip:].tolist()] for row in taken]
            ignored = [-100] * (len(OPENING) + tokens)
            labels = [ignored + np.where(row.supervised, row.input_ids, -100)[skip:].tolist() for row in taken]
            width = max(map(len, ids))
            pixels = torch.from_numpy(np.stack([data.image(row.image_index) for row in taken])).to(args.device)
            padded = [row + [0] * (width - len(row)) for row in ids]
            mask = [[1] * len(row) + [0] * (width - len(row)) for row in ids]
            with torch.autocast(args.device.type, torch.bfloat16, enabled=args.device.type == "cuda"):
                peft(
                    input_ids=torch.tensor(padded, device=args.device),
                    attention_mask=torch.tensor(mask, device=args.device),
                    labels=torch.tensor([row + [-100] * (width - len(row)) for row in labels], device=args.device),
                    pixel_values=(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).to(llava.model.vision_tower.dtype),
                ).loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0).item()
        optimiser.step()
        optimiser.zero_grad()
        settle(args)
        found.append(time.perf_counter() - begun)
    rate = BATCH / statistics.median(found[1:] or found)
    return {"samples_per_second": round(rate, 1), "projected_minutes": round(RECIPE / rate / 60, 1)}


def encode_phase(args: argparse.Namespace) -> dict[str, Any]:
    """Images a second into the cache of features in the machine's memory, as training fills it."""
    from accelerate import Accelerator

    from multimodal_gemma.training import features

    llava, _ = joined(args, 0.0)
    accelerator = Accelerator(cpu=args.cpu)
    count = 128 if args.tiny else 4096
    for images in (64, count):  # the first is not counted
        kept = features.Encoding(made_up(args, llava, 2), encoder_of(llava), accelerator, np.arange(images))
        start = time.perf_counter()
        kept.into(torch.device("cpu"))
        settle(args)
    rate = count / (time.perf_counter() - start)
    return {"images_per_second": round(rate), "minutes_for_all": round(IMAGES / rate / 60, 2)}


RUN = {
    "env": env,
    "main": main_phase,
    "loss": loss_phase,
    "sdpa": sdpa_phase,
    "naive": naive_phase,
    "encode": encode_phase,
}


def one(args: argparse.Namespace) -> dict[str, Any]:
    """Run one phase here; what went wrong is a result too."""
    start = time.perf_counter()
    try:
        found = RUN[args.phase](args)
    except Exception:  # noqa: BLE001 - whatever went wrong
        found = {"error": traceback.format_exc()[-3000:]}
    return {"seconds": round(time.perf_counter() - start, 1), **found}


def every(args: argparse.Namespace) -> dict[str, Any]:
    """Run all phases, each in a process of its own: one that fails or hangs costs nothing but itself."""
    result: dict[str, Any] = {"benchmark": "gpu", "date": datetime.date.today().isoformat(), "tiny": args.tiny}
    for phase, limit in PHASES.items():
        sys.stderr.write(f"{phase} …\n")
        given = [argument for argument in sys.argv[1:] if argument != "--json"]
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "phase.json"
            command = [sys.executable, __file__, *given, "--phase", phase, "--out", str(out)]
            try:
                subprocess.run(command, timeout=limit, check=False, stdout=subprocess.DEVNULL)
                result[phase] = json.loads(out.read_text()) if out.is_file() else {"error": "the process died"}
            except subprocess.TimeoutExpired:
                result[phase] = {"error": f"not done after {limit} s"}
    main, plain = result["main"], result["naive"]
    result |= {"device": result["env"].get("gpu") or "cpu", "mfu": main.get("mfu")}
    if "samples_per_second" in main and "samples_per_second" in plain:
        result["ratio"] = round(main["samples_per_second"] / plain["samples_per_second"], 2)
    return result


def main() -> None:
    """Run one phase or all, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phase", choices=RUN, help="one phase, in this process; default: all")
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    parser.add_argument("--tiny", action="store_true", help="toy shapes: only to see that it works")
    parser.add_argument("--cpu", action="store_true", help="on a processor")
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of phase main (default: 60)")
    parser.add_argument("--dropout", type=float, default=0.1, help="of the adapters in phase main (default: 0.1)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of section training in phase main")
    parser.add_argument("--out", type=Path, help="write the JSON object here as well; `mmgemma plan` can read it")
    args = parser.parse_args()
    if not args.cpu and not torch.cuda.is_available():
        parser.error("this machine has no usable NVIDIA GPU. Give --tiny --cpu to see that it works")
    args.device = torch.device("cpu" if args.cpu else "cuda")
    result = one(args) if args.phase else every(args)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if args.json else json.dumps(result, indent=1))
    phases = [result] if args.phase else [result[phase] for phase in PHASES]
    sys.exit(any("error" in phase for phase in phases))


if __name__ == "__main__":
    main()
