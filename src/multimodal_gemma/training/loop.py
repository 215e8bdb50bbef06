"""The training loop: a step, what is logged of it, when it is validated, saved and stopped.

An optimiser step is a fixed number of conversations, whatever the number of streams and processes it is cut into: each
summed loss is divided by the supervised tokens of the whole step, so a long answer weighs as much in a small stream as
in a large one.

On a GPU nothing here waits for it: losses stay on the device and are read about once a second, before each validation
and before whatever is saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from multimodal_gemma import logs
from multimodal_gemma.model import adapters
from multimodal_gemma.model.forward import SupervisedLoss, YesOrNo, balanced_accuracy
from multimodal_gemma.model.stream import Composer
from multimodal_gemma.progress import Progress
from multimodal_gemma.training import checkpoint, failures, schedule
from multimodal_gemma.training.ahead import Sender, Step, ahead, optimiser_steps
from multimodal_gemma.training.checkpoint import Validated
from multimodal_gemma.training.curves import Curves, Meter, shown
from multimodal_gemma.training.failures import EXIT_CODE, Watch

if TYPE_CHECKING:
    from pathlib import Path

    from multimodal_gemma.config.schema import TrainingConfig
    from multimodal_gemma.data.processed import Split
    from multimodal_gemma.planning.arithmetic import Work
    from multimodal_gemma.training.features import Pictures
    from multimodal_gemma.training.samples import Samples
    from multimodal_gemma.training.trackers import Reporter

_READ_EVERY = 1.0  # seconds between looks at what a GPU has computed
_STEPS_TOGETHER = 10  # between looks that several processes take together: clocks differ, step numbers do not


@dataclasses.dataclass(frozen=True)
class Job:
    """What one training is made of.

    Attributes:
        training: the optimiser, its schedule and the shape of a step.
        loss: the model with its summed loss; what learns is marked, all of it on the accelerator's device.
        train: conversations to learn from.
        val: conversations to validate on; may be empty.
        image_tokens: positions that an image takes.
        image_token_id: its placeholder.
        pictures: what `loss` takes of images.
        kernel: of the attention.
        folder: gets checkpoints/ and curves.jsonl.
        settings: of the training; see `checkpoint.Settings`.
        budget: positions a stream may have.
        work: floating-point operations of the model's parts.
        samples: asks for answers to look at, at every validation; None: nobody does.
        reporter: shows the training while it runs; None: nobody does.
        copies: where checkpoints outlive this machine; None: nowhere.
        yes_or_no: reads the answers that the best checkpoint is found by; None: it is found by the validation loss.
    """

    training: TrainingConfig
    loss: SupervisedLoss
    train: Split
    val: Split
    image_tokens: int
    image_token_id: int
    pictures: Pictures
    kernel: str
    folder: Path
    settings: checkpoint.Settings
    budget: int
    work: Work
    samples: Samples | None = None
    reporter: Reporter | None = None
    copies: checkpoint.Copies | None = None
    yes_or_no: YesOrNo | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        steps: optimiser steps done.
        best_step: whose checkpoint is the best, see `checkpoint.Validated`; the last one where nothing was validated.
        validation_loss: of that step; None where nothing was validated.
        stopped_early: validations no longer got better.
        rows: the lines of curves.jsonl.
        yes_no_accuracy: of `best_step`; None where the loss decides.
    """

    steps: int
    best_step: int
    validation_loss: float | None
    stopped_early: bool
    rows: list[dict[str, Any]]
    yes_no_accuracy: float | None = None

    @property
    def samples_per_second(self) -> float:
        """Throughput over all steps."""
        return sum(row["samples"] for row in self.rows) / max(sum(row["seconds"] for row in self.rows), 1e-9)


@dataclasses.dataclass(frozen=True)
class _Taken:
    """A step that was taken and is not read yet.

    Attributes:
        step: the step, without its passes.
        streams: which conversations each of this process's streams held.
        line: what is known of its line of curves.jsonl.
        figures: float32 (2,) on the device: this process's summed loss, and the gradient's norm.
        counts: positions, pairs and images of this process.
    """

    step: Step
    streams: list[list[int]]
    line: dict[str, Any]
    figures: Tensor
    counts: tuple[int, int, int]


class Trainer:
    """Runs a job to its end, from its last checkpoint where there is one.

    Args:
        job: what to train.
        accelerator: the process's device, rank and precision.
        watch: hears SIGTERM.
    """

    def __init__(self, job: Job, accelerator: Accelerator, watch: Watch) -> None:
        self.job, self.accelerator, self.training, self.watch = job, accelerator, job.training, watch
        self.log, self.device = logs.get("train"), accelerator.device
        self.rank, self.ranks = accelerator.process_index, accelerator.num_processes
        self.leads = bool(accelerator.is_main_process)
        self.steps, self.an_epoch = schedule.plan_steps(self.training, len(job.train))
        self.validations = schedule.validation_steps(self.steps, self.an_epoch, self.training.validations_per_epoch)
        self.keeper = checkpoint.Keeper(job.folder / "checkpoints", job.settings, job.copies, accelerator)
        self.meter = Meter(job.work, accelerator)
        self.sender = Sender(self.device, job.kernel, job.pictures)
        bare = schedule.make_optimiser(job.loss.llava, self.training, self.device)
        self.model, self.optimiser = accelerator.prepare(job.loss, bare)
        self.trainable = [parameter for parameter in job.loss.llava.parameters() if parameter.requires_grad]
        self.state, self.saved_step = checkpoint.State(), 0
        self.curves: Curves | None = None  # of the process that leads, once it runs
        self.taken: list[_Taken] = []
        self.stop = self.due = False  # SIGTERM came; a checkpoint is due by the clock
        self.read_at = self.saved_at = time.monotonic()

    def run(self) -> Outcome:
        """Train, and return how it ended.

        Raises:
            InputError: the loss is no number any more, a checkpoint cannot be written or read, or belongs to another
                training.
        """
        self._resume()
        if self.leads and self.job.samples is not None:
            self.job.samples.begin(self.state.step)
        if self.leads:
            self.curves = Curves(self.job.folder / "curves.jsonl", resume_at=self.state.step)
            if self.job.reporter is not None:
                self.job.reporter.begin(self.curves.rows, self.steps)
        size = self.training.batch_size
        coming = optimiser_steps(self.job, self.sender, self.state.step + 1, self.rank, self.ranks)
        total = Progress("train", self.steps * size, "sample", done=self.state.step * size)
        with (
            self.watch.deferred(),
            total as progress,
            contextlib.closing(ahead(coming, self.device)) as prepared,
        ):
            self.read_at = self.saved_at = time.monotonic()
            self.model.train()
            while not self.state.finished:
                self._end_if_asked()
                rows = [] if self.state.pending is None else [self.state.pending]
                if not rows:
                    self._take(next(prepared))
                    self.state.step += 1
                validated = self.state.step in self.validations
                if not rows and (validated or self._reads()):
                    rows = self._read()
                if validated:
                    self._validate(rows[-1], rows[:-1])
                    if self.leads and self.job.samples is not None:
                        self.job.samples.ask(self.state.step)
                    self.model.train()
                self._tell(rows)
                progress.advance(size, **(shown(rows[-1]) if rows else {}))
                if validated or self.due:
                    self._save()
        if self.curves is not None:
            self.curves.close()
        best = self.state.best[0] if self.state.best else None
        return Outcome(
            steps=self.state.step,
            best_step=best.step if best else self.state.step,
            validation_loss=best.loss if best else None,
            stopped_early=self.state.step < self.steps,
            rows=self.curves.rows if self.curves is not None else [],
            yes_no_accuracy=best.accuracy if best else None,
        )

    def _take(self, step: Step) -> None:
        """Take one optimiser step."""
        factor = schedule.rate_factor(step.number, self.steps, self.training.warmup_fraction)
        rates = schedule.set_rates(self.optimiser, self.training, factor)
        # Gradients are averaged over processes, the loss is divided by the tokens of all of them: hence the factor.
        scale = self.ranks / max(step.supervised, 1)
        total = torch.zeros((), device=self.device)
        for number, ready in enumerate(step.passes, start=1):
            stream, fetched = ready.arrived()
            # Processes exchange their sums once a step: with the last of its backward passes.
            local = contextlib.nullcontext() if number == len(step.passes) else self.accelerator.no_sync(self.model)
            with local, failures.out_of_memory(stream, self.job.budget):
                pictures = None if fetched is None else self.job.pictures.finish(fetched)
                summed = self.model(stream, pictures)
                self.accelerator.backward(summed * scale)
            total += summed.detach()
        norm = self.accelerator.clip_grad_norm_(self.trainable, self.training.max_grad_norm or math.inf)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        streams = [ready.stream for ready in step.passes]
        line = {
            "step": step.number,
            "epoch": round(step.number / self.an_epoch, 4),
            **{f"{part}_lr": rate for part, rate in rates.items()},
            "samples": len(step.samples),
        }
        self.taken.append(
            _Taken(
                step=dataclasses.replace(step, passes=[]),
                streams=[stream.sample_indices for stream in streams],
                line=line,
                figures=torch.stack([total, norm.to(total.dtype)]),
                counts=(
                    sum(stream.positions for stream in streams),
                    sum(stream.runs.pairs for stream in streams),
                    sum(len(stream.image_indices) for stream in streams),
                ),
            )
        )

    def _reads(self) -> bool:
        """Tell whether what was computed is to be looked at now."""
        if self.device.type == "cpu" or (self.watch.asked and self.ranks == 1):
            return True
        if self.ranks > 1:
            return self.state.step % _STEPS_TOGETHER == 0
        return time.monotonic() - self.read_at >= _READ_EVERY

    def _read(self) -> list[dict[str, Any]]:
        """Wait for the steps that were taken and return their lines of curves.jsonl; all processes do so together.

        Raises:
            InputError: a loss or a gradient is no number.
        """
        clock = time.monotonic() - self.saved_at >= 60 * self.training.checkpoint_minutes
        flags = torch.tensor([float(self.watch.asked), float(clock and self.leads)], device=self.device)
        if not self.taken:
            self.stop, self.due = (bool(flag) for flag in self.accelerator.reduce(flags, "sum").tolist())
            return []
        counts = torch.tensor([taken.counts for taken in self.taken], dtype=torch.float64, device=self.device)
        own = torch.cat([torch.stack([taken.figures for taken in self.taken]).double(), counts], dim=1)  # (steps, 5)
        own[:, 1] /= self.ranks  # the norm is of the gradients of all: the same everywhere
        both = self.accelerator.reduce(torch.cat([own.flatten(), flags.double()]), "sum").cpu()
        self.stop, self.due = (bool(flag) for flag in both[-2:].tolist())
        now = time.monotonic()
        seconds = max(now - self.read_at, 1e-9) / len(self.taken)
        self.read_at = now
        rows = []
        for taken, (summed, norm, positions, pairs, images) in zip(
            self.taken, both[:-2].view(len(self.taken), -1).tolist(), strict=True
        ):
            loss = summed / max(taken.step.supervised, 1)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise failures.not_finite(self.job, taken.step.number, loss, norm, taken.streams, taken.step.samples)
            rows.append(
                {
                    **taken.line,
                    "loss": loss,
                    "grad_norm": norm,
                    "seconds": round(seconds, 4),
                    "samples_per_second": round(taken.line["samples"] / seconds, 2),
                    **self.meter.scalars(int(positions), int(pairs), taken.step.supervised, int(images), seconds),
                }
            )
        self.taken = []
        return rows

    def _tell(self, rows: list[dict[str, Any]]) -> None:
        """Write lines down, and have them sent to the trackers."""
        if self.curves is None:
            return
        for row in rows:
            self.curves.add(row)
            if self.job.reporter is not None:
                self.job.reporter.send(row)

    @torch.no_grad()
    def _validate(self, row: dict[str, Any], before: list[dict[str, Any]]) -> None:
        """Add what validation finds to the line of the step just taken, and say whether training should stop.

        SIGTERM ends it; then the lines `before` that one, not written down yet, are.
        """
        val, state = self.job.val, self.state
        if not len(val):
            state.finished = state.step >= self.steps
            return
        self.model.eval()
        order = np.lexsort((-val.lengths, val.image_indices))  # an image's conversations are neighbours
        composer = Composer(val, self.job.image_tokens, self.job.image_token_id)
        streams = itertools.islice(composer.streams(order, self.job.budget), self.rank, None, self.ranks)
        loss, reader = self.job.loss, self.job.yes_or_no
        total, tokens = torch.zeros((), dtype=torch.float64, device=self.device), 0
        told = torch.zeros(4, dtype=torch.float64, device=self.device)  # see `YesOrNo.tally`
        for ready in ahead((self.sender.send(stream, None) for stream in streams), self.device):
            # A spot node leaves half a minute: this validation is for the next one.
            if self.watch.asked:
                break
            stream, fetched = ready.arrived()
            pictures = None if fetched is None else self.job.pictures.finish(fetched)
            # Not through the distributed wrapper: processes may have different numbers of streams here.
            with self.accelerator.autocast():
                hidden = loss.states(stream, pictures)
                total += loss.head_loss(hidden, stream.targets).double()
                if reader is not None:
                    told += reader.tally(hidden, stream, loss.llava)
            tokens += len(stream.targets)
        counted = torch.tensor([float(tokens), float(self.watch.asked)], dtype=torch.float64, device=self.device)
        sums = self.accelerator.reduce(torch.cat([total[None], counted, told]), "sum").tolist()
        self.stop = bool(sums[2])
        if self.stop:
            self._tell(before)
            state.pending = row
            self._end_if_asked()
        state.finished, state.pending = state.step >= self.steps, None
        row["validation_loss"] = sums[0] / max(sums[1], 1)
        if reader is not None:
            row["validation_yes_no_accuracy"] = balanced_accuracy(*sums[3:])
        found = Validated.of(row)
        state.best = sorted([*state.best, found], key=lambda one: one.rank)[: self.training.keep_best]
        falls = state.best_loss is None or found.loss < state.best_loss
        if falls:
            state.best_loss = found.loss
        state.stale = 0 if falls or state.best[0] == found else state.stale + 1
        if state.stale >= self.training.patience and not state.finished:
            self.log.info(f"stopped early at step {state.step:,}: {state.stale} validations without a better one")
            state.finished = True
        self.read_at = time.monotonic()  # the time of a validation is no step's

    def _end_if_asked(self) -> None:
        """Save and end the process if any process of this training heard SIGTERM."""
        if not (self.watch.asked if self.ranks == 1 else self.stop):
            return
        if self.state.step != self.saved_step:
            self._save()
        self.log.warning(
            f"stopped by SIGTERM; step {self.state.step:,} of {self.steps:,} is saved. Run the same command again to "
            "continue."
        )
        raise SystemExit(EXIT_CODE)

    def _save(self) -> None:
        """Save where training stands; what it has computed until here is looked at first."""
        self._tell(self._read())
        self.saved_step = self.state.step
        weights = adapters.trained_weights(self.job.loss.llava)
        self.keeper.save(self.state, weights, self.optimiser.state_dict())
        self.saved_at, self.due = time.monotonic(), False
        self.read_at = self.saved_at

    def _resume(self) -> None:
        torch.manual_seed(self.training.seed + self.rank)  # dropout
        found = self.keeper.newest()
        if found is None:
            self.log.info(f"{self.steps:,} steps of {self.training.batch_size} conversations")
            return
        self.state, weights, optimiser_state, random_states = found
        self.saved_step = self.state.step
        adapters.restore(self.job.loss.llava, weights)
        self.optimiser.load_state_dict(optimiser_state)
        if self.rank < len(random_states):
            checkpoint.set_random_state(random_states[self.rank])
        self.log.info(f"continuing from the checkpoint of step {self.state.step:,} of {self.steps:,}")
