"""The training loop: a step, what is logged of it, when it is validated, saved and stopped.

An optimiser step is a fixed number of conversations, whatever the number of micro-batches and processes it is cut
into: each summed loss is divided by the supervised tokens of the whole step, so a long answer weighs as much in a
small micro-batch as in a large one.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.model import adapters
from multimodal_gemma.model.forward import Batch
from multimodal_gemma.progress import Progress
from multimodal_gemma.training import checkpoint, failures, meters, optimiser, sampler, sharding
from multimodal_gemma.training.curves import Curves
from multimodal_gemma.training.keeper import Keeper
from multimodal_gemma.training.plan import Job, Outcome, plan_steps, require_budget, validation_steps
from multimodal_gemma.training.preemption import EXIT_CODE, Watch

if TYPE_CHECKING:
    from multimodal_gemma.data.processed import Split
    from multimodal_gemma.model.shared_prefix import SharedBatch
    from multimodal_gemma.training.sharing import Sharing


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
        self.sharded = sharding.active(accelerator)
        if self.sharded:
            sharding.prepare(accelerator, job.loss)
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
                row = self.state.pending
                if row is None:
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

    def _end_if_asked(self, unvalidated: dict[str, Any] | None = None) -> None:
        """Save and end the process if any process of this training heard SIGTERM.

        Args:
            unvalidated: line of the step just taken, whose validation was left before its end.
        """
        asked = torch.tensor(float(self.watch.asked), device=self.accelerator.device)
        if not float(self.accelerator.reduce(asked, "sum")):
            return
        if unvalidated is not None:
            self.state.pending = unvalidated
        if unvalidated is not None or (self.state.step and self.state.step not in self.validations):
            self._save()  # after a validation, and where one is owed, it is saved already
        self.log.warning(
            f"stopped by SIGTERM; step {self.state.step:,} of {self.steps:,} is saved. Run the same command again to "
            "continue."
        )
        raise SystemExit(EXIT_CODE)

    def _step(self, step: int) -> dict[str, Any]:
        """Take one optimiser step; return its line of curves.jsonl."""
        start = time.perf_counter()
        samples, batches = self._batches(step)
        epoch = (step - 1) // self.an_epoch
        counts = self.meter.counts(batches)
        supervised = counts.supervised
        factor = optimiser.rate_factor(step, self.steps, self.training.warmup_fraction)
        rates = optimiser.set_rates(self.optimiser, self.training, factor)
        self.model.train()
        # Gradients are averaged over processes, the loss is divided by the tokens of all of them: hence the factor.
        scale = self.accelerator.num_processes / max(supervised, 1)
        total = torch.zeros((), device=self.accelerator.device)
        passes = sharding.evened(batches, batches[-1], self.accelerator)
        for number, (batch, counted) in enumerate(passes, start=1):
            last = number == len(passes)
            local = contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)
            with local, failures.out_of_memory(batch, self.job.budget):
                summed = self.model(batch.to(self.accelerator.device), self._pictures(batch, epoch)) * counted
                self.accelerator.backward(summed * scale)
            total += summed.detach()
        loss = float(self.accelerator.reduce(total, "sum")) / max(supervised, 1)
        if self.sharded and not counts.images:
            sharding.forget_pictures(self.job.loss.llava)
        clipped = self.accelerator.clip_grad_norm_(self.trainable, self.training.max_grad_norm or math.inf)
        norm = float(sharding.whole(clipped))
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

    def _batches(self, step: int) -> tuple[np.ndarray, list[Batch | SharedBatch]]:
        """Return all samples of a step, and this process's share of them as micro-batches."""
        epoch, place = divmod(step - 1, self.an_epoch)
        job, size = self.job, self.training.batch_size
        units = job.sharing.units if job.sharing is not None else None
        if self._epoch[0] != epoch:
            order = sampler.epoch_steps(job.train.lengths, size, seed=self.training.seed, epoch=epoch, units=units)
            self._epoch = (epoch, order)
        samples = self._epoch[1][place]
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        if len(samples) < ranks:
            raise InputError(
                f"train: step {step} has {len(samples)} conversations for {ranks} processes. Use fewer processes, or "
                "another training.batch_size."
            )
        share = sampler.share_of_rank(samples, rank, ranks, units)
        return samples, list(self._micro_batches(job.train, share, job.sharing))

    def _micro_batches(
        self, split: Split, indices: np.ndarray, sharing: Sharing | None
    ) -> Iterator[Batch | SharedBatch]:
        """Yield samples as micro-batches: those with an image in common together, the others by their length."""
        together = sharing.together(indices) if sharing is not None else np.zeros(len(indices), bool)
        if sharing is not None:
            for cut in sharing.cut(indices[together], self.job.budget):
                yield sharing.make_batch(split, cut)
        alone = indices[~together]
        alone = alone[np.argsort(-split.lengths[alone], kind="stable")]
        for cut in sampler.cut_by_tokens(alone, split.lengths, self.job.budget):
            yield self.job.make_batch(split, cut)

    def _pictures(self, batch: Batch | SharedBatch, epoch: int | None = None) -> Tensor | None:
        """Return what the loss takes of a batch's images, in training as that epoch shows them."""
        if not batch.image_indices:
            return None
        if epoch is not None and self.job.augmented is not None:
            return self.job.augmented(batch.image_indices, epoch)
        return self.job.pictures(batch.image_indices)

    @torch.no_grad()
    def _validate(self, row: dict[str, Any]) -> None:
        """Add the validation loss to a step's line, and say whether training should stop."""
        val = self.job.val
        if not len(val):
            self.state.finished = self.state.step >= self.steps
            return
        self.model.eval()
        order = np.argsort(-val.lengths, kind="stable")
        if self.job.val_sharing is not None:
            order = order[np.argsort(self.job.val_sharing.units[order], kind="stable")]
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        sums = torch.zeros(2, dtype=torch.float64)
        found = itertools.islice(self._micro_batches(val, order, self.job.val_sharing), rank, None, ranks)
        passes: Iterable[tuple[Batch | SharedBatch, float]] = ((batch, 1.0) for batch in found)
        if self.sharded:
            passes = sharding.evened(list(found), self.job.make_batch(val, [0]), self.accelerator)
        for batch, counted in passes:
            # Not through the distributed wrapper: processes may have different numbers of batches here.
            # A spot node leaves half a minute: this validation is for the next one, unless others wait for this one.
            if self.watch.asked and not self.sharded:
                break
            summed = self.job.loss(batch.to(self.accelerator.device), self._pictures(batch))
            sums += counted * torch.tensor([float(summed), len(batch.targets)], dtype=torch.float64)
        self._end_if_asked(unvalidated=row)
        self.state.finished, self.state.pending = self.state.step >= self.steps, None
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
        weights = sharding.whole(adapters.trained_weights(self.job.loss.llava))
        self.keeper.save(self.state, weights, sharding.whole(self.optimiser.state_dict()))

    def _resume(self) -> None:
        rank = self.accelerator.process_index
        torch.manual_seed(self.training.seed + rank)  # dropout
        found = self.keeper.newest()
        if found is None:
            self.log.info(f"{self.steps:,} steps of {self.training.batch_size} conversations")
            return
        self.state, weights, optimiser_state, random_states = found
        adapters.restore(self.job.loss.llava, weights, sharding.like)
        self.optimiser.load_state_dict(sharding.cut_state(self.optimiser, optimiser_state))
        if rank < len(random_states):
            checkpoint.set_random_state(random_states[rank])
        self.log.info(f"continuing from the checkpoint of step {self.state.step:,} of {self.steps:,}")


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """Return what a progress bar shows of a step."""
    rates = "/".join(f"{value:.1e}" for name, value in row.items() if name.endswith("_lr"))
    return {"loss": f"{row['loss']:.3f}", "lr": rates, "samples/s": f"{row['samples_per_second']:.0f}"}
