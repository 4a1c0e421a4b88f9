"""The limit: PPO as one loop in one process, with plain AdamW, no Ray, no DeepSpeed and no driver.

    python -m ppo_sides.bare TASK

It has what makes a round fast (answers leave the batch as they end, next to no padding in training, the head runs on
action tokens only, log-probabilities of the rollout are used again) and nothing that a system needs: no ranks, no
shards, no checks, no checkpoints, no rewards that fail.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from camel_ray.models.cpu_linear import speed_up_linear_layers
from camel_ray.models.generation import Generation, generate
from camel_ray.models.value import ValueModel
from camel_ray.ppo.advantages import gae, whiten
from camel_ray.ppo.batching import balance, mini_batches
from camel_ray.ppo.experience import Experience, from_answers
from camel_ray.ppo.losses import policy_loss, value_loss
from camel_ray.ppo.policy import PolicyModule
from camel_ray.ppo.ragged import gather_index, last_index
from ppo_sides.gate import Gate
from ppo_sides.task import EOS, MICRO_BATCH_TOKENS, PAD, Task


class BarePpo:
    """Four models and two optimizers."""

    def __init__(self, task: Task) -> None:
        self.task = task
        policy, reference = (AutoModelForCausalLM.from_pretrained(task.path("policy")) for _ in range(2))
        value, reward = (AutoModelForSequenceClassification.from_pretrained(task.path("reward")) for _ in range(2))
        head = nn.Linear(value.score.in_features, 1)
        with torch.no_grad():
            head.weight.copy_(value.score.weight)
            head.bias.zero_()
        head.bias.requires_grad_(False)  # TRL has none
        for model in (policy, reference, value, reward):
            speed_up_linear_layers(model.eval())
        self.policy, self.reference = PolicyModule(policy), PolicyModule(reference)
        self.value, self.reward = ValueModel(value.model, head), reward
        options: dict[str, Any] = {"lr": task.learning_rate, "betas": (0.9, 0.95), "weight_decay": 0.0, "fused": True}
        self.policy_optimizer = torch.optim.AdamW(self.policy.parameters(), **options)
        self.value_optimizer = torch.optim.AdamW([p for p in self.value.parameters() if p.requires_grad], **options)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Time the body as `phase`."""
        start = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - start

    def step(self, prompts: list[list[int]], number: int) -> dict[str, float]:
        """One round; returns the seconds of its phases."""
        with self.clock("generate"):
            answers = generate(
                self.policy.model,
                prompts,
                max_new_tokens=self.task.response,
                temperature=1.0,
                stop_ids=[EOS],
                pad_id=PAD,
                generator=torch.Generator().manual_seed(number),
                batch_size=len(prompts),
            )
        with self.clock("score"):
            experience = self.judge(prompts, answers)
        with self.clock("train"):
            self.learn(experience, number)
        return self.seconds

    def judge(self, prompts: list[list[int]], answers: Sequence[Generation]) -> Experience:
        """Rewards, reference log-probabilities, values and advantages."""
        task, rows = self.task, range(len(prompts))
        experience = from_answers(
            prompts,
            [answer.tokens for answer in answers],
            [answer.logprobs for answer in answers],
            [answer.finished for answer in answers],
            groups=rows,
            policy_versions=[0 for _ in rows],
        )
        (cuts,) = balance(experience.lengths_B.tolist(), ranks=1, budget=MICRO_BATCH_TOKENS)
        reference, values = [], []
        scores_B = torch.zeros(len(prompts))
        with torch.no_grad():
            for cut in cuts:
                batch = experience.sequences.padded(cut)
                reference.append(self.reference(batch.input_BT, batch.index_A, batch.target_A, 1.0, "none")[0])
                values.append(self.value(batch.input_BT, batch.index_A))
                hidden_BTH = self.reward.model(input_ids=batch.input_BT, use_cache=False).last_hidden_state
                last_B = experience.lengths_B[cut] - 1
                scores_B[cut] = self.reward.score(hidden_BTH[torch.arange(len(cut)), last_B])[:, 0]
        order_B = torch.tensor([row for cut in cuts for row in cut])
        lengths_B = experience.action_lengths_B
        index_A = gather_index(lengths_B[order_B], order_B.argsort())
        reference_A, values_A = torch.cat(reference)[index_A], torch.cat(values)[index_A]
        rewards_A = -task.kl * (experience.rollout_logprobs_A - reference_A)
        rewards_A[last_index(lengths_B)] += scores_B
        advantages_A, returns_A = gae(rewards_A, values_A, lengths_B, gamma=task.gamma, lam=task.lam)
        return experience.with_(
            scores_B=scores_B,
            logprobs_A=experience.rollout_logprobs_A,
            reference_logprobs_A=reference_A,
            values_A=values_A,
            advantages_A=whiten(advantages_A),
            returns_A=returns_A,
        )

    def learn(self, experience: Experience, number: int) -> list[tuple[float, float]]:
        """All updates of a round; returns policy and value loss of each."""
        task, losses = self.task, []
        for epoch in range(task.epochs):
            for rows in mini_batches(len(experience), task.mini_batches, seed=number * task.epochs + epoch):
                part = experience.select(torch.tensor(rows))
                (cuts,) = balance(part.lengths_B.tolist(), ranks=1, budget=MICRO_BATCH_TOKENS)
                tokens = int(part.action_N.sum())
                losses.append(self.update(part, cuts, tokens))
        return losses

    def update(self, part: Experience, cuts: Sequence[list[int]], tokens: int) -> tuple[float, float]:
        """One step of both optimizers on the mean over `tokens` action tokens; returns policy and value loss."""
        totals = [0.0, 0.0]
        for cut in cuts:
            own = part.select(torch.tensor(cut))
            batch = part.sequences.padded(cut)
            logprobs_A, _ = self.policy(batch.input_BT, batch.index_A, batch.target_A, 1.0, "value")
            old_A, advantages_A = _known(own.logprobs_A), _known(own.advantages_A)
            result = policy_loss(logprobs_A, old_A, advantages_A, clip_low=self.task.clip, clip_high=self.task.clip)
            policy = result.loss_A.sum() / tokens
            policy.backward()
            values_A = self.value(batch.input_BT, batch.index_A)
            loss_A, _ = value_loss(values_A, _known(own.values_A), _known(own.returns_A), clip=self.task.value_clip)
            value = loss_A.sum() / tokens
            value.backward()
            totals[0] += float(policy.detach())
            totals[1] += float(value.detach())
        for optimizer in (self.policy_optimizer, self.value_optimizer):
            nn.utils.clip_grad_norm_(
                [p for group in optimizer.param_groups for p in group["params"]], self.task.max_grad_norm
            )
            optimizer.step()
            optimizer.zero_grad()
        return totals[0], totals[1]


def _known(values_A: Tensor | None) -> Tensor:
    assert values_A is not None
    return values_A


def main() -> None:
    """Speak with the benchmark."""
    gate = Gate()
    task = Task(**json.loads(sys.argv[1]))
    ppo, prompts = BarePpo(task), task.all_prompts()
    gate.ready(torch=torch.__version__)
    number = 0
    while True:
        start = number * task.prompts % len(prompts)
        gate.done(ppo.step(prompts[start : start + task.prompts], number))
        number += 1


if __name__ == "__main__":
    main()
