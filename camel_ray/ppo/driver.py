"""The phases of a round as the driver runs them: which role does what, on which share, and how the answers come
together.

The driver holds experience on the CPU and no model. Calls to different roles are sent before any is waited for: they
run side by side where placement gives each its own process, and one after the other where roles share one.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from camel_ray.api.stages.ppo import PpoStageSpec, RoleName
from camel_ray.data.conversations import Message
from camel_ray.data.templates import encode_answer
from camel_ray.models.generation import Generation
from camel_ray.ppo import weights
from camel_ray.ppo.batching import mini_batches
from camel_ray.ppo.estimate import sequence_kl
from camel_ray.ppo.experience import Experience, Sequences, from_answers
from camel_ray.ppo.groups import HostGroup, Pending
from camel_ray.ppo.importance import Mismatch
from camel_ray.ppo.prompts import Prompt
from camel_ray.ppo.ptx import PtxText
from camel_ray.ppo.reward_function import RewardFunction
from camel_ray.ppo.score import Answered, ModelScores, combine
from camel_ray.ppo.settings import PolicySettings
from camel_ray.ppo.shares import Shares

_CHECKED = 8
"""Answers of a round whose log-probabilities are computed by the actor although rollout knows them."""


@dataclass(frozen=True)
class Judged:
    """Experience of a round after scoring, and what was found on the way."""

    experience: Experience
    mismatch: Mismatch
    failures: Counter[str]
    """Failed rewards by reason."""


@dataclass
class Driver:
    """All that the phases of a round need. `version` counts the policy's updates."""

    spec: PpoStageSpec
    groups: Mapping[RoleName, HostGroup]
    tokenizer: PreTrainedTokenizerBase
    reward_tokenizer: PreTrainedTokenizerBase | None
    """The reward model's, where it is another one than the policy's."""
    stop_ids: tuple[int, ...]
    function: RewardFunction | None
    ptx: PtxText | None
    shares_actor: bool
    """Rollout writes with the actor's own weights."""
    bf16: bool
    seed: int
    version: int = 0

    @property
    def exact_rollout(self) -> bool:
        """Whether rollout's log-probabilities are the policy's."""
        return self.shares_actor and not self.bf16

    def generate(self, prompts: Sequence[Prompt], *, samples: int, draw: str) -> tuple[Experience, list[Answered]]:
        """`samples` answers to each prompt. `draw` names the randomness: the same name gives the same numbers
        everywhere.
        """
        asked = [prompt for prompt in prompts for _ in range(samples)]
        sampling = self.spec.sampling
        uniforms_BT = torch.rand(
            (len(asked), sampling.max_response_length), generator=torch.Generator().manual_seed(_seed(self.seed, draw))
        )
        group = self.groups["rollout"]
        bounds = [len(asked) * rank // group.plan.size for rank in range(group.plan.size + 1)]
        longest = max(len(prompt.ids) for prompt in asked) + sampling.max_response_length
        pending = group.call(
            "rollout",
            "generate",
            lambda rank: (
                [prompt.ids for prompt in asked[bounds[rank] : bounds[rank + 1]]],
                uniforms_BT[bounds[rank] : bounds[rank + 1]],
                sampling,
                self.stop_ids,
            ),
            batch_size=max(1, self.spec.micro_batch_tokens // longest),
        )
        parts = pending.wait()
        answers: list[Generation] = [answer for part, _ in parts for answer in part]
        experience = from_answers(
            [prompt.ids for prompt in asked],
            [answer.tokens for answer in answers],
            [answer.logprobs for answer in answers],
            [answer.finished for answer in answers],
            groups=[number for number in range(len(prompts)) for _ in range(samples)],
            policy_versions=[version for part, version in parts for _ in part],
        )
        texts = [self._text(answer) for answer in answers]
        return experience, [Answered(p.text, text, p.row, p.messages) for p, text in zip(asked, texts, strict=True)]

    def judge(self, experience: Experience, answered: Sequence[Answered]) -> Judged:
        """Add scores, log-probabilities of policy and reference, and values; drop answers without a score."""
        temperature = {"temperature": self.spec.sampling.temperature}
        shares = {size: self._shares(experience, size) for size in {g.plan.size for g in self.groups.values()}}
        # Rollout with the actor's own weights in fp32 has computed the old log-probabilities already, to the last few
        # bits. A sample is computed again all the same: it would show a rollout that went wrong.
        checked = experience.select(torch.arange(min(_CHECKED, len(experience)))) if self.exact_rollout else experience
        actor = self.groups["actor"]
        to_check = self._shares(checked, actor.plan.size) if self.exact_rollout else shares[actor.plan.size]
        calls: list[tuple[str, Shares, Pending]] = [
            ("logprobs_A", to_check, actor.call("actor", "logprobs", to_check.of, **temperature))
        ]
        if "critic" in self.groups:
            own = shares[self.groups["critic"].plan.size]
            calls.append(("values_A", own, self.groups["critic"].call("critic", "values", own.of)))
        reference = self.groups["reference"]
        own = shares[reference.plan.size]
        calls.append(("reference_logprobs_A", own, reference.call("reference", "logprobs", own.of, **temperature)))
        model = self._model_scores(experience, answered) if "reward" in self.groups else None
        scores = combine(self.spec.reward, answered, model=model, function=self.function)
        found = {field: cut.join(answers.wait()) for field, cut, answers in calls}
        mismatch = weights.check(checked.with_(logprobs_A=found["logprobs_A"]), version=self.version, bf16=self.bf16)
        if self.exact_rollout:
            found["logprobs_A"] = experience.rollout_logprobs_A
        experience = experience.with_(scores_B=scores.scores_B, **found)
        if bool(scores.failed_B.any()):
            experience = experience.select((~scores.failed_B).nonzero().squeeze(1))
        return Judged(experience, mismatch, scores.failures)

    def learn(self, experience: Experience, *, round_number: int, kl_coefficient: float) -> dict[str, float]:
        """All optimizer steps of a round. Returns their mean metrics."""
        totals: dict[str, float] = defaultdict(float)
        updates = 0
        settings = PolicySettings(
            clip=self.spec.clip,
            temperature=self.spec.sampling.temperature,
            entropy_coefficient=self.spec.entropy_coefficient,
            kl_estimator=self.spec.kl.estimator,
            ptx_coefficient=0.0 if self.spec.ptx is None else self.spec.ptx.coefficient,
        )
        for epoch in range(self.spec.epochs):
            seed = _seed(self.seed, f"mini-batches/{round_number}/{epoch}")
            for rows in mini_batches(len(experience), self.spec.mini_batches, seed=seed):
                part = experience.select(torch.tensor(rows))
                metrics = self._update(part, settings, kl_coefficient, draw=f"{round_number}/{updates}")
                for name, value in metrics.items():
                    totals[name] += value
                updates += 1
        return {name: value / updates for name, value in totals.items()}

    def sync(self) -> None:
        """Give the policy's new weights a version and bring them to rollout."""
        self.version += 1
        weights.sync(self.groups["actor"], self.groups["rollout"], self.version, shared=self.shares_actor)

    def evaluate(self, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Mean and deviation of the reward, KL (nats per answer) and length of one answer to each prompt.

        Always the same draw: two policies are compared on the same prompts with the same luck.
        """
        experience, answered = self.generate(prompts, samples=1, draw="evaluation")
        experience = self.judge(experience, answered).experience
        assert experience.scores_B is not None
        scores_B = experience.scores_B
        return {
            "reward": float(scores_B.mean()),
            "reward_std": float(scores_B.std(unbiased=False)),
            "kl": float(sequence_kl(experience).mean()),
            "response_length": float(experience.action_lengths_B.float().mean()),
        }

    def save(self, path: Path) -> None:
        """Write the training state of all roles that train below `path`."""
        self._trained("save", path)

    def load(self, path: Path, version: int) -> None:
        """Read back what `save` wrote, and bring it to rollout as policy `version`."""
        self._trained("load", path)
        self.version = version - 1
        self.sync()

    def save_model(self, directory: Path) -> None:
        """Write the policy as a model directory."""
        self.groups["actor"].call_all("actor", "save_model", str(directory)).wait()

    def _trained(self, method: str, path: Path) -> None:
        roles: tuple[RoleName, ...] = ("actor", "critic")
        pending = [self.groups[role].call_all(role, method, str(path / role)) for role in roles if role in self.groups]
        for answers in pending:
            answers.wait()

    def _shares(self, sequences: Experience | Sequences, ranks: int) -> Shares:
        return Shares(sequences, ranks=ranks, budget=self.spec.micro_batch_tokens)

    def _update(
        self, part: Experience, settings: PolicySettings, kl_coefficient: float, *, draw: str
    ) -> dict[str, float]:
        tokens = int(part.action_N.sum())
        actor = self.groups["actor"]
        shares = {actor.plan.size: self._shares(part, actor.plan.size)}
        pending = []
        if "critic" in self.groups:
            critic = self.groups["critic"]
            if critic.plan.size not in shares:
                shares[critic.plan.size] = self._shares(part, critic.plan.size)
            pending.append(
                critic.call("critic", "update", shares[critic.plan.size].of, tokens=tokens, clip=self.spec.value_clip)
            )
        text = None if self.ptx is None else self.ptx.batch(_seed(self.seed, f"ptx/{draw}"))
        ptx = None if text is None else self._shares(text, actor.plan.size)

        def arguments(rank: int) -> tuple[object, ...]:
            own = (*shares[actor.plan.size].of(rank), settings)
            return own if ptx is None else (*own, *ptx.of(rank))

        pending.append(
            actor.call(
                "actor",
                "update",
                arguments,
                tokens=tokens,
                kl_coefficient=kl_coefficient if self.spec.kl.place == "loss" else 0.0,
                ptx_tokens=1 if text is None else int(text.action_N.sum()),
            )
        )
        summed: dict[str, float] = defaultdict(float)
        for answers in pending:
            for share_of_rank in answers.wait():
                for name, value in share_of_rank.items():
                    summed[name] += value
        return dict(summed)

    def _model_scores(self, experience: Experience, answered: Sequence[Answered]) -> ModelScores:
        if self.reward_tokenizer is None:
            sequences = [p.tolist() for p in torch.split(experience.tokens_N, experience.lengths_B.tolist())]
        else:
            sequences = []
            for a in answered:
                prompt_ids, answer_ids = encode_answer(
                    self.reward_tokenizer,
                    [Message(role=role, content=content) for role, content in a.messages],
                    a.answer,
                )
                sequences.append([*prompt_ids, *answer_ids])
        group = self.groups["reward"]
        bounds = [len(sequences) * rank // group.plan.size for rank in range(group.plan.size + 1)]
        pending = group.call("reward", "scores", lambda rank: (sequences[bounds[rank] : bounds[rank + 1]],))
        return lambda: [score for part in pending.wait() for score in part]

    def _text(self, answer: Generation) -> str:
        ids = answer.tokens[:-1] if answer.finished else answer.tokens
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def _seed(seed: int, purpose: str) -> int:
    """A seed for one purpose: a digest, so that neighbouring seeds and rounds have nothing in common."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:7], "big")
