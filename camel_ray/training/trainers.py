"""The trainers of Hugging Face and TRL, reading our batches and writing our checkpoints.

What each of them computes (losses, gradients, schedules) is theirs. `Streamed` replaces what exact resume and honest
figures need differently: the order of rows is a function of the step, validation is a mean over tokens (not over
batches), and a checkpoint holds DeepSpeed's state once instead of a second copy of the weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOTrainer, RewardTrainer, SFTTrainer

from camel_ray.manifest import write_atomically
from camel_ray.training.arguments import TrainingKind
from camel_ray.training.batches import BatchPlan, RankBatches, validation_batches
from camel_ray.training.collate import IGNORED, VALIDATION_PASS, StreamRows
from camel_ray.training.tokens import TokenRows


class _TrainingStart(TrainerCallback):
    """Calls the trainer when the model is wrapped, and a checkpoint loaded, but no step is made."""

    def __init__(self, trainer: Streamed) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.begin()


def _window_name(rank: int) -> str:
    return f"loss_window_{rank}.json"


class Streamed(Trainer):
    """Mix-in for a trainer. Call `stream` before training."""

    control: TrainerControl

    def stream(self, plan: BatchPlan, *, train: datasets.Dataset, validation: datasets.Dataset, work: Path) -> None:
        """Read training rows in the order of `plan`. `work`: where the figures of the untrained model are kept."""
        self.plan, self.train_rows, self.validation_rows = plan, train, validation
        self.untrained: dict[str, float] = {}
        self.began = time.perf_counter()
        self._untrained_file = work / "untrained.json"
        self._last_loss = torch.tensor(0.0)
        self.remove_callback(PrinterCallback)
        self.add_callback(_TrainingStart(self))

    # -- batches

    def get_train_dataloader(self) -> DataLoader[Any]:
        """All micro-batches of this worker, from the first step to the last; the trainer skips what a checkpoint has
        seen.
        """
        args = self.args
        batches = RankBatches(
            self.plan,
            micro_batch_size=args.per_device_train_batch_size,
            workers=args.world_size,
            rank=args.process_index,
        )
        return DataLoader(
            StreamRows(self.train_rows),
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            # A generator of its own: the loader must not draw from the state that dropout uses and checkpoints keep.
            generator=torch.Generator(),
        )

    def validation_inputs(self) -> Iterator[tuple[dict[str, Any], list[int], bool]]:
        """Inputs of each validation forward pass of this worker, their rows, and whether they count."""
        batches = validation_batches(
            TokenRows.lengths(self.validation_rows).tolist(),
            micro_batch_size=self.args.per_device_eval_batch_size,
            workers=self.args.world_size,
            rank=self.args.process_index,
        )
        for batch in batches:
            columns = self.validation_rows[batch.rows]
            rows = [
                {**{name: values[i] for name, values in columns.items()}, "stream": (VALIDATION_PASS, row)}
                for i, row in enumerate(batch.rows)
            ]
            yield self._prepare_inputs(self.data_collator(rows)), batch.rows, batch.counted

    def _prepare_dataset(self, dataset: datasets.Dataset, *_: Any, **__: Any) -> datasets.Dataset:
        """TRL's hook. Rows arrive tokenised, masked and cut (see tokens.py)."""
        return dataset

    # -- figures

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass; keeps the loss for the guard against not-a-number."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._last_loss = loss
        return loss

    def figures(self) -> tuple[float, float | None]:
        """Loss of the last forward pass, and the gradient's norm at the last optimizer step (None where nobody knows
        it).
        """
        norm = (
            self.model_wrapped.get_global_grad_norm() if hasattr(self.model_wrapped, "get_global_grad_norm") else None
        )
        return float(self._last_loss), None if norm is None else float(norm)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss over all validation tokens (pairs, for preference data), the same for any number of workers."""
        if not len(self.validation_rows):
            return {"eval_loss": math.nan}
        model = self.model_wrapped
        was_training = model.training
        model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            for inputs, rows, counted in self.validation_inputs():
                weight = self._weight(inputs, len(rows)) if counted else 0
                loss = self.compute_loss(model, inputs)
                if weight:
                    total += torch.stack([loss.detach().double() * weight, torch.tensor(float(weight)).to(total)])
            dist.all_reduce(total)
        metrics = {"eval_loss": float(total[0] / total[1])}
        self.log(metrics)
        model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def begin(self) -> None:
        """At the start of training: validate the untrained model or, after a resume, remember what it gave."""
        if self.state.global_step:
            self.untrained = json.loads(self._untrained_file.read_text(encoding="utf-8"))
            self._restore_window()
        else:
            self.untrained = self.evaluate()
            if self.is_world_process_zero():
                write_atomically(self._untrained_file, json.dumps(self.untrained))
        self.began = time.perf_counter()

    def _weight(self, inputs: Mapping[str, Any], rows: int) -> int:
        """What a batch's mean loss is a mean over: predicted tokens, or pairs where there are no labels."""
        labels = inputs.get("labels")
        if labels is None:
            return rows
        return int((labels[..., 1:] if self._loss_shifts_labels else labels).ne(IGNORED).sum())

    # -- checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Nothing: DeepSpeed's checkpoint has the weights, and the finished model is written once, at the end."""
        Path(str(output_dir)).mkdir(parents=True, exist_ok=True)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: a card describes a finished model, not a checkpoint."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        directory = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        window = {
            "loss": float(self._tr_loss),
            "logged": self._globalstep_last_logged,
            "total": self._total_loss_scalar,
        }
        (directory / _window_name(self.args.process_index)).write_text(json.dumps(window), encoding="utf-8")

    def _restore_window(self) -> None:
        """Continue the mean of the losses since the last log line, so that a resumed run logs what an unbroken one
        would.
        """
        file = (
            Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / _window_name(self.args.process_index)
        )
        window = json.loads(file.read_text(encoding="utf-8"))
        self._tr_loss = torch.tensor(window["loss"], device=self.args.device)
        self._globalstep_last_logged = window["logged"]
        self._total_loss_scalar = window["total"]

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: nothing here reads the estimate, and it costs a pass over the parameters per micro-batch."""
        return 0


class TextTrainer(Streamed):
    """`pretrain`."""


class AnswerTrainer(Streamed, SFTTrainer):
    """`sft`."""


class PreferenceTrainer(Streamed, DPOTrainer):
    """`dpo`."""


class ScoreTrainer(Streamed, RewardTrainer):
    """`reward`."""

    def pair_scores(self) -> dict[int, tuple[float, float]]:
        """Raw scores (chosen, rejected) of all validation pairs by row, on every worker."""
        model = self.model_wrapped
        model.eval()
        mine: dict[int, tuple[float, float]] = {}
        with torch.no_grad():
            for inputs, rows, counted in self.validation_inputs():
                chosen_B, rejected_B = model(**inputs, use_cache=False).logits.float().squeeze(-1).chunk(2)
                if counted:
                    mine |= dict(zip(rows, zip(chosen_B.tolist(), rejected_B.tolist(), strict=True), strict=True))
        shared: list[dict[int, tuple[float, float]] | None] = [None] * self.args.world_size
        dist.all_gather_object(shared, mine)
        return dict(sorted(item for part in shared if part for item in part.items()))


TRAINERS: Mapping[TrainingKind, type[Streamed]] = {
    "pretrain": TextTrainer,
    "sft": AnswerTrainer,
    "reward": ScoreTrainer,
    "dpo": PreferenceTrainer,
}
"""Kind of stage to its trainer."""
