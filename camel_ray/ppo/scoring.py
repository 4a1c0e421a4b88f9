"""The reward of answers: from the reward model, the sources of `rewards/`, and environments, under one policy for what
fails.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.api.stages.ppo_roles import RoleName
from camel_ray.errors import RewardError
from camel_ray.ppo.experience import Index
from camel_ray.ppo.groups import Group
from camel_ray.ppo.prompts import Prompt
from camel_ray.ppo.rewards.baseline import RewardBaseline
from camel_ray.ppo.rewards.score import Answered
from camel_ray.ppo.rewards.sources import ModelScores, RewardSources
from camel_ray.ppo.shares import divide


@dataclass(frozen=True)
class Answers:
    """Answers in the object store, and what the driver knows of them."""

    ref: Any
    index: Index
    prompts: list[Prompt]
    """The prompt of each answer."""


@dataclass(frozen=True)
class Scored:
    """What rewards say about answers."""

    scores: list[float]
    """Of each answer; 0 for one without a score."""
    keep: list[int]
    """Rows that have a score."""
    failures: Counter[str]
    """Failed rewards by reason."""


@dataclass
class Scorer:
    """Asks all rewards of a stage."""

    spec: PpoStageSpec
    groups: Mapping[RoleName, Group]
    sources: RewardSources
    own_tokens: bool
    """The reward model reads other tokens than the policy writes."""
    baseline: RewardBaseline | None = None
    """What `reward.normalise` subtracts."""

    @property
    def reads_text(self) -> bool:
        """Whether a reward reads the answers' text."""
        return self.sources.needs_text or self.own_tokens

    def measure_demonstrations(self, prompts: Sequence[Prompt]) -> None:
        """Score the data's own answers to `prompts` (numbered from 0); what `reward.normalise` says of them is
        subtracted from all rewards from now on.
        """
        assert self.spec.reward.normalise != "none"
        spoken = [(prompt, prompt.demonstration) for prompt in prompts if prompt.demonstration is not None]
        own: dict[int, list[float]] = defaultdict(list)
        # In parts of a round's size: that is what the sources' time limits are for.
        size = max(self.spec.prompts_per_step * self.spec.samples_per_prompt, 1)
        for start in range(0, len(spoken), size):
            part = spoken[start : start + size]
            answered = [Answered(p.text, answer, p.row, p.messages) for p, answer in part]
            model = self._text_scores([(p.messages, answer) for p, answer in part]) if "reward" in self.groups else None
            found = self.sources.score(answered, model)
            for (prompt, _), score, failed in zip(part, found.scores_B.tolist(), found.failed_B.tolist(), strict=True):
                if not failed:
                    own[prompt.number].append(score)
        self.baseline = RewardBaseline.of(own, normalise=self.spec.reward.normalise)

    def score(self, answers: Answers) -> Scored:
        """Ask all rewards for the score of each answer."""
        pending = self._model_scores(answers) if "reward" in self.groups else None
        texts = answers.index.texts or [""] * len(answers.index)
        answered = [Answered(p.text, text, p.row, p.messages) for p, text in zip(answers.prompts, texts, strict=True)]
        found = self.sources.score(answered, pending)
        scores = found.scores_B.tolist()
        if self.baseline is not None:
            scores = self.baseline.subtract(scores, [prompt.number for prompt in answers.prompts])
        keep = [row for row, failed in enumerate(found.failed_B.tolist()) if not failed]
        return self._without_failed_conversations(answers, Scored(scores, keep, found.failures))

    def _without_failed_conversations(self, answers: Answers, scored: Scored) -> Scored:
        """Environments that failed, under the same policy as rewards that failed."""
        failed = {row: failure for row, failure in enumerate(answers.index.failures or ()) if failure is not None}
        if not failed:
            return scored
        spec, environment = self.spec.reward, self.spec.environment
        assert environment is not None
        first = next(iter(failed))
        sentence = f"environment '{environment.name}' of {environment.path}: {failed[first][1]}"
        if spec.on_failure == "fail":
            raise RewardError(
                f"{sentence}, for the prompt {answers.prompts[first].text[:60]!r}; fix it, or set reward.onFailure to "
                "drop or value"
            )
        scores, keep = list(scored.scores), scored.keep
        if spec.on_failure == "value":
            for row in failed:
                scores[row] = spec.failure_value
        else:
            keep = [row for row in keep if row not in failed]
            if not keep:
                raise RewardError(f"all conversations of a round failed: {sentence}; fix it, nothing can be learned")
        counted = Counter(f"environment: {reason}" for reason, _ in failed.values())
        return Scored(scores, keep, scored.failures + counted)

    def _model_scores(self, answers: Answers) -> ModelScores:
        """Ask the reward model; returns what waits for its scores, in the order of the answers."""
        if self.own_tokens:
            texts = answers.index.texts or []
            return self._text_scores([(p.messages, text) for p, text in zip(answers.prompts, texts, strict=True)])
        group = self.groups["reward"]
        shares = divide(answers.index.lengths, ranks=group.plan.size, budget=self.spec.micro_batch_tokens)
        pending = group.call("reward", "scores", lambda rank: (answers.ref, *shares.of(rank)))

        def wait() -> list[float]:
            flat = [score for part in pending.wait() for score in part]
            scores = [0.0] * len(flat)
            for row, score in zip(shares.order, flat, strict=True):
                scores[row] = score
            return scores

        return wait

    def _text_scores(self, conversations: Sequence[tuple[Any, str]]) -> ModelScores:
        """Ask the reward model about conversations in text."""
        group = self.groups["reward"]
        bounds = [len(conversations) * rank // group.plan.size for rank in range(group.plan.size + 1)]
        pending = group.call(
            "reward", "scores_of_texts", lambda rank: (conversations[bounds[rank] : bounds[rank + 1]],)
        )
        return lambda: [score for part in pending.wait() for score in part]


def rewards_of(index: Index, scores: Sequence[float]) -> list[float]:
    """Scores with what environments gave."""
    if index.turn_rewards is None:
        return list(scores)
    return [score + turns for score, turns in zip(scores, index.turn_rewards, strict=True)]
