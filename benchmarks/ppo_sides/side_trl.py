"""TRL's PPO trainer on the task, in a process and environment of its own (see `trl_environment`).

    python -m ppo_sides.side_trl TASK

The trainer is used as it is; its functions are only wrapped to see how long they take.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import datasets
import torch
import transformers
import trl
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from ppo_sides.gate import Gate
from ppo_sides.task import Task


class Stops(TrainerCallback):
    """Stops at the gate after each step, and adds up the time of wrapped functions."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.seconds: dict[str, float] = defaultdict(float)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Everything is built."""
        self.gate.ready(trl=trl.__version__, transformers=transformers.__version__, torch=torch.__version__)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A round is over."""
        self.gate.done(dict(self.seconds))
        self.seconds.clear()

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time counts as `phase`."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            # Its `forward` serves both the reference and training.
            name = "train" if phase == "score" and torch.is_grad_enabled() else phase
            self.seconds[name] += time.perf_counter() - start
            return result

        return wrapped


def trainer(
    task: Task, directory: str, callbacks: list[TrainerCallback], *, rounds: int, prompts: list[list[int]]
) -> PPOTrainer:
    """The trainer with the settings of `task`."""
    arguments = PPOConfig(
        output_dir=directory,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=task.prompts // task.mini_batches,
        gradient_accumulation_steps=task.mini_batches,
        num_mini_batches=task.mini_batches,
        num_ppo_epochs=task.epochs,
        total_episodes=rounds * task.prompts,
        local_rollout_forward_batch_size=task.prompts,
        response_length=task.response,
        stop_token="eos" if task.ends else None,
        temperature=1.0,
        learning_rate=task.learning_rate,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        kl_coef=task.kl,
        cliprange=task.clip,
        cliprange_value=task.value_clip,
        vf_coef=1.0,
        gamma=task.gamma,
        lam=task.lam,
        num_sample_generations=0,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(task.path("policy"), padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(task.path("policy")) for _ in range(2))
    value, reward = (AutoModelForSequenceClassification.from_pretrained(task.path("reward")) for _ in range(2))
    rows = datasets.Dataset.from_dict({"input_ids": prompts})
    made = PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=rows,
        eval_dataset=rows.select(range(task.prompts)),
        callbacks=callbacks,
    )
    made.remove_callback(PrinterCallback)
    return made


def main() -> None:
    """Speak with the benchmark."""
    gate = Gate()
    task = Task(**json.loads(sys.argv[1]))
    stops = Stops(gate)
    with tempfile.TemporaryDirectory() as directory:
        made = trainer(task, directory, [stops], rounds=10_000, prompts=task.all_prompts())
        for phase, name in (("generate", "batch_generation"), ("score", "forward"), ("score", "get_reward")):
            setattr(ppo_trainer, name, stops.timed(phase, getattr(ppo_trainer, name)))
        made.accelerator.backward = stops.timed("train", made.accelerator.backward)
        made.optimizer.step = stops.timed("train", made.optimizer.step)
        made.train()


if __name__ == "__main__":
    main()
