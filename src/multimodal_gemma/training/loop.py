"""The training loop: a step, what is logged of it, when it is validated, saved and stopped.

An optimiser step is a fixed number of conversations, whatever the number of micro-batches and processes it is cut
into: each summed loss is divided by the supervised tokens of the whole step, so a long answer weighs as much in a
small micro-batch as in a large one.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.model import adapters
from multimodal_gemma.model.forward import Batch
from multimodal_gemma.progress import Progress
from multimodal_gemma.training import checkpoint, failures, meters, optimiser, sampler
from multimodal_gemma.training.curves import Curves
from multimodal_gemma.training.keeper import Keeper
from multimodal_gemma.training.plan import Job, Outcome, plan_steps, require_budget, validation_steps
from multimodal_gemma.training.preemption import EXIT_CODE, Watch


class Trainer:
    """Runs a job to its end, from its last checkpoint where there is one.

    Args:
        job: what to train.
        accelerator: the process's device, rank and precision.
        watch: hears SIGTERM.

    Raises:
        InputError: a sample is longer than the token budget.
    """

    def __init__(self, job: Job, accelerator: Accelerator, watch: Watch) -> None:
        self.job, self.accelerator, self.training, self.watch = job, accelerator, job.training, watch
        self.log = logs.get("train")
        for split in (job.train, job.val):
            require_budget(split, job.budget)
        self.steps, self.an_epoch = plan_steps(self.training, len(job.train))
        self.validations = validation_steps(self.steps, self.an_epoch, self.training.validations_per_epoch)
        self.keeper = Keeper(job.folder / "checkpoints", job.identity, self.training.checkpoint_uri, accelerator)
        self.meter = meters.Meter(job.work, accelerator)
        bare = optimiser.make_optimiser(job.loss.llava, self.training, accelerator.device)
        self.model, self.optimiser = accelerator.prepare(job.loss, bare)
        self.trainable = [parameter for parameter in job.loss.llava.parameters() if parameter.requires_grad]
        self.state = checkpoint.State()
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def run(self) -> Outcome:
        """Train, and return how it ended.

        Raises:
            InputError: the loss is no number any more, a checkpoint cannot be written or read, or belongs to another
                training.
        """
        self._resume()
        if self._leads and self.job.samples is not None:
            self.job.samples.forget_after(self.state.step)
        curves = Curves(self.job.folder / "curves.jsonl", resume_at=self.state.step) if self._leads else None
        size = self.training.batch_size
        total = Progress("train", self.steps * size, "sample", done=self.state.step * size)
        with self.watch.deferred(), total as progress:
            while not self.state.finished:
                self._end_if_asked()
                row = self._step(self.state.step + 1)
                self.state.step += 1
                validated = self.state.step in self.validations
                if validated:
                    self._validate(row)
                    if self._leads and self.job.samples is not None:
                        self.job.samples.ask(self.state.step)
                if curves is not None:
                    curves.add(row)
                    progress.advance(size, **_shown(row))
                self.accelerator.log(
                    {name: value for name, value in row.items() if name != "step"}, step=self.state.step
                )
                if validated:
                    self._save()
        if curves is not None:
            curves.close()
        best = self.state.best
        return Outcome(
            steps=self.state.step,
            best_step=best[0][1] if best else self.state.step,
            validation_loss=best[0][0] if best else None,
            stopped_early=self.state.step < self.steps,
            rows=curves.rows if curves is not None else [],
        )

    @property
    def _leads(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def _end_if_asked(self) -> None:
        """Save and end the process if any process of this training heard SIGTERM."""
        asked = torch.tensor(float(self.watch.asked), device=self.accelerator.device)
        if not float(self.accelerator.reduce(asked, "sum")):
            return
        if self.state.step and self.state.step not in self.validations:  # else it is saved already
            self._save()
        self.log.warning(
            f"stopped by SIGTERM; step {self.state.step:,} of {self.steps:,} is saved. Run the same command again to "
            "continue."
        )
        raise SystemExit(EXIT_CODE)

    def _step(self, step: int) -> dict[str, Any]:
        """Take one optimiser step; return its line of curves.jsonl."""
        start = time.perf_counter()
        samples, batches = self._batches(step)
        counts = self.meter.counts(batches, self.job.train.lengths)
        supervised = counts.supervised
        factor = optimiser.rate_factor(step, self.steps, self.training.warmup_fraction)
        rates = optimiser.set_rates(self.optimiser, self.training, factor)
        self.model.train()
        # Gradients are averaged over processes, the loss is divided by the tokens of all of them: hence the factor.
        scale = self.accelerator.num_processes / max(supervised, 1)
        total = torch.zeros((), device=self.accelerator.device)
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            local = contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)
            with local, failures.out_of_memory(batch, self.job.budget):
                summed = self.model(batch.to(self.accelerator.device), self._pictures(batch))
                self.accelerator.backward(summed * scale)
            total += summed.detach()
        loss = float(self.accelerator.reduce(total, "sum")) / max(supervised, 1)
        norm = float(self.accelerator.clip_grad_norm_(self.trainable, self.training.max_grad_norm or math.inf))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise failures.not_finite(self.job, step, loss, norm, batches, samples)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - start
        return {
            "step": step,
            "epoch": round(step / self.an_epoch, 4),
            "loss": loss,
            **{f"{part}_lr": rate for part, rate in rates.items()},
            "grad_norm": norm,
            "samples": len(samples),
            "seconds": round(seconds, 4),
            "samples_per_second": round(len(samples) / seconds, 2),
            **self.meter.scalars(counts, seconds),
        }

    def _batches(self, step: int) -> tuple[np.ndarray, list[Batch]]:
        """Return all samples of a step, and this process's share of them as micro-batches."""
        epoch, place = divmod(step - 1, self.an_epoch)
        lengths = self.job.train.lengths
        if self._epoch[0] != epoch:
            order = sampler.epoch_steps(lengths, self.training.batch_size, seed=self.training.seed, epoch=epoch)
            self._epoch = (epoch, order)
        samples = self._epoch[1][place]
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        if len(samples) < ranks:
            raise InputError(
                f"train: step {step} has {len(samples)} conversations for {ranks} processes. Use fewer processes, or "
                "another training.batch_size."
            )
        share = sampler.share_of_rank(samples, rank, ranks)
        cuts = sampler.cut_by_tokens(share, lengths, self.job.budget)
        return samples, [self.job.make_batch(self.job.train, cut) for cut in cuts]

    def _pictures(self, batch: Batch) -> Tensor | None:
        return self.job.pictures(batch.image_indices) if batch.image_indices else None

    @torch.no_grad()
    def _validate(self, row: dict[str, Any]) -> None:
        """Add the validation loss to a step's line, and say whether training should stop."""
        self.state.finished = self.state.step >= self.steps
        val = self.job.val
        if not len(val):
            return
        self.model.eval()
        order = np.argsort(-val.lengths, kind="stable")
        cuts = sampler.cut_by_tokens(order, val.lengths, self.job.budget)
        sums = torch.zeros(2, dtype=torch.float64)
        for cut in cuts[self.accelerator.process_index :: self.accelerator.num_processes]:
            batch = self.job.make_batch(val, cut)
            # Not through the distributed wrapper: processes may have different numbers of batches here.
            summed = self.job.loss(batch.to(self.accelerator.device), self._pictures(batch))
            sums += torch.tensor([float(summed), len(batch.targets)], dtype=torch.float64)
        summed_loss, tokens = self.accelerator.reduce(sums.to(self.accelerator.device), "sum").tolist()
        loss = row["validation_loss"] = summed_loss / max(tokens, 1)
        state = self.state
        if state.best_loss is None or loss < state.best_loss:
            state.best_loss, state.stale = loss, 0
        else:
            state.stale += 1
        state.best = sorted([*state.best, (loss, state.step)])[: self.training.keep_best]
        if state.stale >= self.training.patience and not state.finished:
            self.log.info(f"stopped early at step {state.step:,}: {state.stale} validations without a better loss")
            state.finished = True

    def _save(self) -> None:
        self.keeper.save(self.state, adapters.trained_weights(self.job.loss.llava), self.optimiser.state_dict())

    def _resume(self) -> None:
        rank = self.accelerator.process_index
        torch.manual_seed(self.training.seed + rank)  # dropout
        found = self.keeper.newest()
        if found is None:
            self.log.info(f"{self.steps:,} steps of {self.training.batch_size} conversations")
            return
        self.state, weights, optimiser_state, random_states = found
        adapters.restore(self.job.loss.llava, weights)
        self.optimiser.load_state_dict(optimiser_state)
        if rank < len(random_states):
            checkpoint.set_random_state(random_states[rank])
        self.log.info(f"continuing from the checkpoint of step {self.state.step:,} of {self.steps:,}")


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """Return what a progress bar shows of a step."""
    rates = "/".join(f"{value:.1e}" for name, value in row.items() if name.endswith("_lr"))
    return {"loss": f"{row['loss']:.3f}", "lr": rates, "samples/s": f"{row['samples_per_second']:.0f}"}
