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
from accelerate.utils import gather_object
from torch import Tensor

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.model import adapters
from multimodal_gemma.model.forward import Batch
from multimodal_gemma.progress import Progress
from multimodal_gemma.training import checkpoint, optimiser, sampler
from multimodal_gemma.training.curves import Curves
from multimodal_gemma.training.plan import Job, Outcome, plan_steps, require_budget, validation_steps

_NAMED = 8  # conversations that an error names


class Trainer:
    """Runs a job to its end, from its last checkpoint where there is one.

    Args:
        job: what to train.
        accelerator: the process's device, rank and precision.

    Raises:
        InputError: a sample is longer than the token budget.
    """

    def __init__(self, job: Job, accelerator: Accelerator) -> None:
        self.job, self.accelerator, self.training = job, accelerator, job.training
        self.log = logs.get("train")
        for split in (job.train, job.val):
            require_budget(split, self.training.batch_tokens)
        self.steps, self.an_epoch = plan_steps(self.training, len(job.train))
        self.validations = validation_steps(self.steps, self.an_epoch, self.training.validations_per_epoch)
        self.checkpoints = job.folder / "checkpoints"
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
        curves = Curves(self.job.folder / "curves.jsonl", resume_at=self.state.step) if self._leads else None
        size = self.training.batch_size
        with Progress("train", self.steps * size, "sample", done=self.state.step * size) as progress:
            while not self.state.finished:
                row = self._step(self.state.step + 1)
                self.state.step += 1
                validated = self.state.step in self.validations
                if validated:
                    self._validate(row)
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

    def _step(self, step: int) -> dict[str, Any]:
        """Take one optimiser step; return its line of curves.jsonl."""
        start = time.perf_counter()
        samples, batches = self._batches(step)
        counts = torch.tensor(
            [sum(len(batch.targets) for batch in batches), sum(batch.input_ids.numel() for batch in batches)],
            device=self.accelerator.device,
        )
        supervised, positions = self.accelerator.reduce(counts, "sum").tolist()
        factor = optimiser.rate_factor(step, self.steps, self.training.warmup_fraction)
        rates = optimiser.set_rates(self.optimiser, self.training, factor)
        self.model.train()
        # Gradients are averaged over processes, the loss is divided by the tokens of all of them: hence the factor.
        scale = self.accelerator.num_processes / max(supervised, 1)
        total = torch.zeros((), device=self.accelerator.device)
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                summed = self.model(batch.to(self.accelerator.device), self._pictures(batch))
                self.accelerator.backward(summed * scale)
            total += summed.detach()
        loss = float(self.accelerator.reduce(total, "sum")) / max(supervised, 1)
        norm = float(self.accelerator.clip_grad_norm_(self.trainable, self.training.max_grad_norm or math.inf))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise InputError(self._not_finite(step, loss, samples))
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
            "tokens_per_second": round(positions / seconds),
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
        cuts = sampler.cut_by_tokens(share, lengths, self.training.batch_tokens)
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
        cuts = sampler.cut_by_tokens(order, val.lengths, self.training.batch_tokens)
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
        random_states = gather_object([checkpoint.random_state()])
        if self._leads:
            weights = adapters.trained_weights(self.job.loss.llava)
            checkpoint.save(
                self.checkpoints, self.state, weights, self.optimiser.state_dict(), random_states, self.job.identity
            )
            checkpoint.prune(self.checkpoints, {self.state.step, *(step for _, step in self.state.best)})
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        rank = self.accelerator.process_index
        torch.manual_seed(self.training.seed + rank)  # dropout
        checkpoint.refuse_other(self.checkpoints, self.job.identity)
        found = checkpoint.steps(self.checkpoints)
        if not found:
            self.log.info(f"{self.steps:,} steps of {self.training.batch_size} conversations")
            return
        self.state, weights, optimiser_state, random_states = checkpoint.load(self.checkpoints, found[-1])
        adapters.restore(self.job.loss.llava, weights)
        self.optimiser.load_state_dict(optimiser_state)
        if rank < len(random_states):
            checkpoint.set_random_state(random_states[rank])
        if self._leads:
            checkpoint.prune(self.checkpoints, {self.state.step, *(step for _, step in self.state.best)})
        self.log.info(f"continuing from the checkpoint of step {self.state.step:,} of {self.steps:,}")

    def _not_finite(self, step: int, loss: float, samples: np.ndarray) -> str:
        ids = [self.job.train.ids[index] for index in samples[:_NAMED]]
        more = f" and {len(samples) - _NAMED} more" if len(samples) > _NAMED else ""
        what = (
            f"the loss of step {step} is {loss}"
            if not math.isfinite(loss)
            else f"the gradient of step {step} is no number"
        )
        return (
            f"train: {what}. Its conversations: {', '.join(ids)}{more}. Look at them, or lower training.projector_lr "
            "and training.lora_lr; what was learnt until the last checkpoint is kept."
        )


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """Return what a progress bar shows of a step."""
    rates = "/".join(f"{value:.1e}" for name, value in row.items() if name.endswith("_lr"))
    return {"loss": f"{row['loss']:.3f}", "lr": rates, "samples/s": f"{row['samples_per_second']:.0f}"}
