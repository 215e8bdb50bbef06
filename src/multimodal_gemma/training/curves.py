"""What is written down of every step, and the page that shows it.

curves.jsonl grows by a line a step. A resumed run forgets the lines after its checkpoint, so each step stands there
once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from multimodal_gemma import files
from multimodal_gemma.planning.arithmetic import find_device
from multimodal_gemma.training.checkpoint import Validated

if TYPE_CHECKING:
    from multimodal_gemma.planning.arithmetic import Work
    from multimodal_gemma.reporting.page import Page

LOSSES = "Both fall together while the model learns; validation that turns up again is memorising."
_SMOOTHING = 0.05  # share of the newest step in the smoothed loss, of a 20th of the run at least


class Curves:
    """The lines of curves.jsonl.

    Args:
        path: the file.
        resume_at: step of the checkpoint that the run continues from; later lines are dropped.
    """

    def __init__(self, path: Path, *, resume_at: int) -> None:
        kept = files.read_jsonl(path, "curves") if resume_at and path.is_file() else []
        self.rows: list[dict[str, Any]] = [row for row in kept if row["step"] <= resume_at]
        files.write_jsonl(path, self.rows)
        try:
            self._stream = path.open("a", encoding="utf-8")
        except OSError as error:
            raise files.unwritable(path, error) from error

    def add(self, row: Mapping[str, float | int]) -> None:
        """Write one step down."""
        self.rows.append(dict(row))
        self._stream.write(json.dumps(dict(row)) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class Meter:
    """What a step cost: tokens, memory, and which share of the hardware's peak it used.

    Args:
        work: floating-point operations of the model's parts.
        accelerator: the process's device, and how many there are.
    """

    def __init__(self, work: Work, accelerator: Accelerator) -> None:
        self._work, self._device = work, accelerator.device
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else ""
        known = find_device(name) if accelerator.mixed_precision == "bf16" else None
        self._peak = known.tflops * 1e12 * accelerator.num_processes if known else None

    def scalars(self, positions: int, pairs: int, supervised: int, images: int, seconds: float) -> dict[str, float]:
        """Return a step's figures: tokens_per_second, memory_gb and, on a GPU whose peak is known, mfu.

        MFU as Chowdhery et al. (2022) define it: the operations that the mathematics needs, over what the hardware
        could have done in that time; recomputation is not counted.

        Args:
            positions: of all processes, as are the other counts.
            pairs: see `attention.Runs.pairs`.
            supervised: tokens with a loss.
            images: pictures that the projector sees.
            seconds: of the step.
        """
        found: dict[str, float] = {
            "tokens_per_second": round(positions / seconds),
            "memory_gb": round(self._memory() / 1e9, 3),
        }
        if self._peak is not None:
            needed = self._work.step(positions, pairs, supervised, images)
            found["mfu"] = round(needed / seconds / self._peak, 4)
        return found

    def _memory(self) -> int:
        """Return the most that the GPU held so far, or what this process holds where there is none."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        import psutil

        return int(psutil.Process().memory_info().rss)


def shown(row: dict[str, Any]) -> dict[str, str]:
    """Return what a progress bar shows of a step."""
    rates = "/".join(f"{value:.1e}" for name, value in row.items() if name.endswith("_lr"))
    return {"loss": f"{row['loss']:.3f}", "lr": rates, "samples/s": f"{row['samples_per_second']:.0f}"}


def smoothed(values: list[float]) -> list[float]:
    """Return the exponential moving average of `values`, corrected for its start (Kingma and Ba, 2015)."""
    weight = max(_SMOOTHING, min(1.0, 20 / max(len(values), 1)))
    average, result = 0.0, []
    for count, value in enumerate(values, start=1):
        average += weight * (value - average)
        result.append(average / (1 - (1 - weight) ** count))
    return result


def best_so_far(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return the step whose validation was the best so far, the last one where nothing was validated."""
    validated = [Validated.of(row) for row in rows if "validation_loss" in row]
    return min(validated, key=lambda one: one.rank).step if validated else int(rows[-1]["step"])


def page(
    rows: list[dict[str, Any]],
    *,
    best_step: int,
    stopped_early: bool,
    running_to: int = 0,
    samples: Sequence[Mapping[str, Any]] = (),
    image: Callable[[int], Any] | None = None,
) -> str:
    """Return curves.html: losses, learning rates and throughput over the steps.

    Args:
        rows: the lines of curves.jsonl.
        best_step: whose weights became the model.
        stopped_early: validations no longer got better.
        running_to: the step at which a training that still runs will end; 0: it has ended.
        samples: the lines of samples.jsonl.
        image: the pixels of an image index, uint8 (H, W, 3).
    """
    from multimodal_gemma.reporting import charts
    from multimodal_gemma.reporting.page import Page

    steps = [row["step"] for row in rows]
    validated = [Validated.of(row) for row in rows if "validation_loss" in row]
    answered = [(one.step, one.accuracy) for one in validated if one.accuracy is not None]
    if running_to:
        now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        told = f"Step {steps[-1]:,} of {running_to:,} at {now}; written anew every minute while the training runs. "
        told += f"The best so far is step {best_step:,}."
    else:
        end = "stopped early, as validations no longer got better" if stopped_early else "ran to its end"
        told = f"{steps[-1]:,} steps; it {end}. The model holds the weights of step {best_step:,}, "
        reason = "which told yes from no best" if answered else "of the lowest validation loss"
        told += f"{reason if validated else 'the last'}."
    view = Page("Training", told)
    best = next((one for one in validated if one.step == best_step), None)
    seconds = sum(row["seconds"] for row in rows)
    view.cards(
        [
            (
                "last training loss",
                f"{smoothed([row['loss'] for row in rows])[-1]:.3f}",
                "nats a supervised token, smoothed",
            ),
            ("validation loss", "none" if best is None else f"{best.loss:.3f}", f"step {best_step:,}"),
            (
                "time in steps",
                f"{seconds:,.0f} s",
                f"{sum(row['samples'] for row in rows) / max(seconds, 1e-9):,.1f} samples/s",
            ),
        ]
    )
    view.section("Loss", LOSSES)
    view.figure(losses(rows))
    if answered:
        view.section(
            "Yes or no",
            "Held-out answers that begin with a yes or a no and are told right, both kinds weighing alike; a constant "
            "answer scores 0.5. The best step becomes the model, of equal whole points the lower loss.",
        )
        accuracies = {"validation": ([step for step, _ in answered], [value for _, value in answered])}
        view.figure(charts.lines(accuracies, "step", "balanced accuracy"))
    rates = {
        name.removesuffix("_lr"): (steps, [row[name] for row in rows])
        for name in sorted(rows[0])
        if name.endswith("_lr")
    }
    view.section("Learning rates", "Linear warm-up, then linear to zero.")
    view.figure(charts.lines(rates, "step", "learning rate"))
    view.section("Gradient norm", "Before clipping, smoothed; a rise that stays is a warning.")
    view.figure(charts.lines({"norm": (steps, smoothed([row["grad_norm"] for row in rows]))}, "step", "gradient norm"))
    if samples and image is not None:
        _answers(view, samples, image)
    return view.html()


def losses(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw the losses of curves.jsonl over the steps."""
    from multimodal_gemma.reporting import charts

    series = {"training (smoothed)": ([row["step"] for row in rows], smoothed([row["loss"] for row in rows]))}
    if validated := [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]:
        series["validation"] = ([step for step, _ in validated], [loss for _, loss in validated])
    return charts.lines(series, "step", "loss (nats a token)")


def _answers(view: Page, samples: Sequence[Mapping[str, Any]], image: Callable[[int], Any]) -> None:
    """Show what was answered about each validation image, from before the first step to the last validation."""
    from PIL import Image

    from multimodal_gemma.reporting.page import GalleryItem

    steps = sorted({row["step"] for row in samples})
    shown = {steps[0], steps[len(steps) // 2], steps[-1]}
    asked: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for row in samples:
        asked.setdefault((row["image_index"], row["question"]), []).append(row)
    items = []
    for (index, question), answers in asked.items():
        said = {row["step"]: row["answer"] for row in answers if row["step"] in shown}
        lines = [(f"step {step:,}: {text}" if step else f"before training: {text}", "") for step, text in said.items()]
        lines.append((f"expected: {answers[0]['expected']}", "good"))
        items.append(GalleryItem(Image.fromarray(image(index)), question, lines))
    view.section("Answers", "The same validation images before training, at a middle and at the last validation.")
    view.gallery(items)
