"""The phases of a round as the driver runs them: which role does what, on which share, and how the answers come
together.

The driver holds no model and no tokens: it passes references to experience in Ray's object store, and decides from a
few figures per answer (`Index`). What it costs depends on ranks and answers, not on their length. Calls to different
roles are sent before any is waited for: they run side by side where placement gives each its own process, and one
after the other where roles share one.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.api.stages.ppo_roles import RoleName
from camel_ray.ppo import weights
from camel_ray.ppo.advantages import Baseline
from camel_ray.ppo.batching import mini_batches
from camel_ray.ppo.experience import Index, join_indices
from camel_ray.ppo.filters import rows_with_signal
from camel_ray.ppo.groups import TRAINED, Answering, Group, Losses
from camel_ray.ppo.prompts import Prompt
from camel_ray.ppo.roles.buffer import Found, Summary, Verdict
from camel_ray.ppo.scoring import Answers, Scored, Scorer, rewards_of
from camel_ray.ppo.settings import Batch, CriticSettings, PolicySettings
from camel_ray.ppo.shares import Shares, divide

_AHEAD, _AHEAD_INDEX = "ahead.safetensors", "ahead.json"
_SAMPLE = 4
"""Answers on which trainer and rollout are compared."""


@dataclass(frozen=True)
class Writing:
    """Answers that rollout is writing."""

    pending: Answering
    prompts: list[Prompt]


@dataclass(frozen=True)
class Judged:
    """Experience of a round that can be learned from, and what was found on the way."""

    ref: Any
    summary: Summary
    rewards: list[float]
    """Of the answers that are learned from, what environments gave included."""
    failures: Counter[str]
    """Failed rewards by reason."""


@dataclass
class Driver:
    """All that the phases of a round need. `version` counts the policy's updates."""

    spec: PpoStageSpec
    groups: Mapping[RoleName, Group]
    losses: Losses
    scorer: Scorer
    shares_actor: bool
    """Rollout writes with the actor's own weights."""
    bf16: bool
    seed: int
    version: int = 0
    moved_bytes: int = field(default=0, init=False)
    """By the last weight sync, to each rollout host."""

    @property
    def exact_rollout(self) -> bool:
        """Whether rollout's log-probabilities are the policy's."""
        return self.shares_actor and not self.bf16 and self.spec.rollout.staleness == 0

    @property
    def off_policy(self) -> bool:
        """Whether answers may come from another policy than the one that learns from them."""
        return self.bf16 or self.spec.rollout.staleness > 0 or self.spec.rollout.engine != "transformers"

    def write(self, prompts: Sequence[Prompt], *, samples: int, draw: str) -> Writing:
        """Ask rollout for `samples` answers to each prompt. `draw` names the randomness: the same name gives the same
        numbers everywhere.
        """
        asked = [prompt for prompt in prompts for _ in range(samples)]
        numbers = [number for number in range(len(prompts)) for _ in range(samples)]
        seeds = [_seed(self.seed, f"{draw}/{row}") for row in range(len(asked))]
        group = self.groups["rollout"]
        bounds = [len(asked) * rank // group.plan.size for rank in range(group.plan.size + 1)]

        def part(rank: int) -> tuple[list[Prompt], list[int], list[int]]:
            own = slice(bounds[rank], bounds[rank + 1])
            return asked[own], numbers[own], seeds[own]

        return Writing(group.call("rollout", "generate", part, keep=True, texts=self.scorer.reads_text), asked)

    def collect(self, written: Writing) -> Answers:
        """Wait for answers; the parts of several ranks become one experience."""
        index = join_indices(written.pending.wait())
        refs = written.pending.kept
        if len(refs) == 1:
            return Answers(refs[0], index, written.prompts)
        joined = self.groups["actor"].call_first("buffer", "collect", index.groups, *refs, keep=True)
        joined.wait()
        return Answers(joined.kept[0], index, written.prompts)

    def with_signal(self, answers: Answers, scored: Scored) -> tuple[Answers, Scored]:
        """Only the answers of prompts whose answers did not all get the same reward."""
        index = answers.index
        rewards = rewards_of(index, scored.scores)
        useful = rows_with_signal([rewards[row] for row in scored.keep], [index.groups[row] for row in scored.keep])
        rows = [scored.keep[row] for row in useful]
        if len(rows) == len(answers.index):
            return answers, scored
        chosen = self.groups["actor"].call_first("buffer", "select", rows, answers.ref, keep=True)
        chosen.wait()
        kept = Answers(chosen.kept[0], answers.index.select(rows), [answers.prompts[row] for row in rows])
        return kept, Scored([scored.scores[row] for row in rows], list(range(len(rows))), scored.failures)

    def join(
        self, first: Answers, first_scored: Scored, second: Answers, second_scored: Scored
    ) -> tuple[Answers, Scored]:
        """Two sets of answers as one."""
        offset = max(first.index.groups, default=-1) + 1
        renumbered = replace(second.index, groups=[offset + group for group in second.index.groups])
        index = join_indices([first.index, renumbered])
        count = len(first.index)
        joined = self.groups["actor"].call_first("buffer", "collect", index.groups, first.ref, second.ref, keep=True)
        joined.wait()
        scored = Scored(
            first_scored.scores + second_scored.scores,
            first_scored.keep + [count + row for row in second_scored.keep],
            first_scored.failures + second_scored.failures,
        )
        return Answers(joined.kept[0], index, first.prompts + second.prompts), scored

    def judge(
        self, answers: Answers, *, scored: Scored | None = None, kl_coefficient: float, baseline: Baseline
    ) -> Judged:
        """Add scores, log-probabilities of policy and reference, and values; leave out answers without a score;
        compute advantages. Returns what can be learned from.
        """
        weights.require_fresh(
            answers.index.policy_versions, version=self.version, staleness=self.spec.rollout.staleness
        )
        temperature = {"temperature": self.spec.sampling.temperature}
        cuts = {size: self._divide(answers.index, size) for size in {g.plan.size for g in self.groups.values()}}
        actor = self.groups["actor"]
        # Rollout with the actor's own weights in fp32 has computed the old log-probabilities already, to the last few
        # bits. A sample is computed again all the same: it would show a rollout that went wrong.
        own = self._sample(answers.index) if self.exact_rollout else cuts[actor.plan.size]
        calls = [("logprobs_A", own, self._call("actor", "logprobs", answers, own, **temperature))]
        if "critic" in self.groups:
            cut = cuts[self.groups["critic"].plan.size]
            calls.append(("values_A", cut, self._call("critic", "values", answers, cut)))
        if "reference" in self.groups:
            cut = cuts[self.groups["reference"].plan.size]
            calls.append(
                ("reference_logprobs_A", cut, self._call("reference", "logprobs", answers, cut, **temperature))
            )
        scored = scored or self.scorer.score(answers)
        refs = []
        for _, _, pending in calls:
            pending.wait()
            refs += pending.kept
        found = [Found(name, len(cut.by_rank), cut.order) for name, cut, _ in calls]
        verdict = Verdict(scored.scores, scored.keep, self.exact_rollout, self.off_policy)
        result = actor.call_first(
            "buffer", "judge", self.spec, found, verdict, kl_coefficient, baseline, answers.ref, *refs, keep=True
        )
        summary: Summary = result.wait()[0]
        if self.spec.rollout.staleness == 0:
            weights.require(summary.mismatch, limit=self._mismatch_limit)
        rewards = rewards_of(answers.index, scored.scores)
        return Judged(result.kept[0], summary, [rewards[row] for row in scored.keep], scored.failures)

    def learn(self, judged: Judged, *, number: int, kl_coefficient: float) -> dict[str, float]:
        """All optimizer steps of round `number`. Returns their mean metrics, of those that were not skipped."""
        index, updates = judged.summary.index, 0
        totals: dict[str, float] = defaultdict(float)
        counted: Counter[str] = Counter()
        for epoch in range(self.spec.epochs):
            seed = _seed(self.seed, f"mini-batches/{number}/{epoch}")
            for rows in mini_batches(len(index), self.spec.mini_batches, seed=seed):
                metrics = self._update(judged, rows, kl_coefficient, draw=f"ptx/{number}/{updates}")
                updates += 1
                for name, value in metrics.items():
                    if math.isfinite(value):
                        totals[name] += value
                        counted[name] += 1
        mean = {name: total / counted[name] for name, total in totals.items()}
        for name in ("skipped", "value_skipped"):
            if name in totals:
                mean[name] = totals[name]
        return mean

    def sync(self, judged: Judged | None) -> None:
        """Give the policy's new weights a version, bring them to rollout, and check on answers of `judged` that they
        arrived.
        """
        self.version += 1
        actor, rollout = self.groups["actor"], self.groups["rollout"]
        self.moved_bytes = weights.sync(actor, rollout, self.version, shared=self.shares_actor)
        if judged is not None and not self.shares_actor:
            sample = weights.Sample(judged.ref, self._sample(judged.summary.index))
            weights.verify(
                actor, rollout, sample, temperature=self.spec.sampling.temperature, limit=self._mismatch_limit
            )

    def evaluate(self, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Mean and deviation of the reward, KL (nats per answer) and length of one answer to each prompt.

        Always the same draw: two policies are compared on the same prompts with the same luck.
        """
        answers = self.collect(self.write(prompts, samples=1, draw="evaluation"))
        judged = self.judge(answers, kl_coefficient=0.0, baseline=Baseline("none"))
        return answer_figures(judged)

    def usage(self, seconds: float) -> dict[str, float]:
        """Remote calls, and the share of the last `seconds` each group spent idle, since the last look."""
        groups = set(self.groups.values())
        figures = {
            "remote_calls": float(sum(group.usage.calls for group in groups)),
            "sync_bytes": float(self.moved_bytes),
        }
        for group in groups:
            figures[f"idle_{group.plan.name}"] = max(0.0, 1.0 - group.usage.busy_seconds / seconds)
            group.usage.calls, group.usage.busy_seconds = 0, 0.0
        return figures

    def begin(self) -> None:
        """Bring the weights the stage begins with to rollout, after groups were started again."""
        self.version = -1
        self.sync(None)

    def save(self, path: Path, ahead: Answers | None) -> None:
        """Write the training state of all roles that train below `path`, and answers written ahead."""
        self._for_trained("save", path)
        if ahead is not None:
            self.record(ahead.ref, path / _AHEAD)
            (path / _AHEAD_INDEX).write_text(json.dumps(asdict(ahead.index)) + "\n", encoding="utf-8")

    def load(self, path: Path, *, version: int) -> None:
        """Read back what `save` wrote, and bring the weights to rollout."""
        self.load_trained(path)
        self.version = version - 1
        self.sync(None)

    def load_trained(self, path: Path) -> None:
        """Read back the state of the roles that train."""
        self._for_trained("load", path)

    def load_ahead(self, path: Path, prompts: Sequence[Prompt], *, samples: int) -> Answers:
        """Read back the answers written ahead to `prompts`."""
        pending = self.groups["actor"].call_first("buffer", "load", str(path / _AHEAD), keep=True)
        pending.wait()
        index = Index(**json.loads((path / _AHEAD_INDEX).read_text(encoding="utf-8")))
        return Answers(pending.kept[0], index, [prompt for prompt in prompts for _ in range(samples)])

    def record(self, ref: Any, path: Path) -> None:
        """Write an experience to storage."""
        self.groups["actor"].call_first("buffer", "save", str(path), ref).wait()

    def save_model(self, path: Path) -> None:
        """Write the policy as a model directory."""
        self.groups["actor"].call_all("actor", "save_model", str(path)).wait()

    @property
    def _mismatch_limit(self) -> float:
        return weights.limit_of(self.spec.rollout.mismatch_limit, bf16=self.bf16)

    def _call(self, role: RoleName, method: str, answers: Answers, shares: Shares, **kwargs: Any) -> Answering:
        return self.groups[role].call(role, method, lambda rank: (answers.ref, *shares.of(rank)), keep=True, **kwargs)

    def _for_trained(self, method: str, path: Path) -> None:
        pending = [
            self.groups[role].call_all(role, method, str(path / role)) for role in TRAINED if role in self.groups
        ]
        for answers in pending:
            answers.wait()

    def _divide(self, index: Index, ranks: int, rows: Sequence[int] | None = None) -> Shares:
        lengths = index.lengths if rows is None else [index.lengths[row] for row in rows]
        return divide(lengths, ranks=ranks, budget=self.spec.micro_batch_tokens, rows=rows)

    def _sample(self, index: Index) -> Shares:
        return self._divide(index, self.groups["actor"].plan.size, range(min(_SAMPLE, len(index))))

    def _update(self, judged: Judged, rows: list[int], kl_coefficient: float, *, draw: str) -> dict[str, float]:
        spec, index = self.spec, judged.summary.index
        actions = [index.action_lengths[row] for row in rows]
        batch = Batch(sum(actions), sum(1 for count in actions if count), _seed(self.seed, draw))
        cuts = {
            self.groups[role].plan.size: self._divide(index, self.groups[role].plan.size, rows)
            for role in TRAINED
            if role in self.groups
        }
        pending = []
        if "critic" in self.groups:
            critic = CriticSettings(spec.value_clip, spec.loss_aggregation)
            pending.append(self._send_update("critic", judged, cuts, critic, batch))
        policy = PolicySettings(
            clip=spec.clip,
            temperature=spec.sampling.temperature,
            entropy_coefficient=spec.entropy_coefficient,
            kl_estimator=spec.kl.estimator,
            ptx_coefficient=0.0 if spec.ptx is None else spec.ptx.coefficient,
            loss_aggregation=spec.loss_aggregation,
        )
        in_loss = kl_coefficient if spec.kl.place == "loss" else 0.0
        pending.append(self._send_update("actor", judged, cuts, policy, batch, kl_coefficient=in_loss))
        summed: dict[str, float] = defaultdict(float)
        for answers in pending:
            for share_of_rank in answers.wait():
                for name, value in share_of_rank.items():
                    summed[name] += value
        return dict(summed)

    def _send_update(
        self, role: RoleName, judged: Judged, cuts: Mapping[int, Shares], settings: Any, batch: Batch, **kwargs: Any
    ) -> Answering:
        group = self.groups[role]
        shares = cuts[group.plan.size]
        return group.call(role, "update", lambda rank: (judged.ref, *shares.of(rank), settings, batch), **kwargs)


def answer_figures(judged: Judged) -> dict[str, float]:
    """Mean and deviation of the reward, KL in nats per answer where there is a reference, mean length in tokens, and
    the share of answers that ended by themselves.
    """
    index, kl = judged.summary.index, judged.summary.kl
    return {
        "reward": statistics.fmean(judged.rewards),
        "reward_std": statistics.pstdev(judged.rewards),
        **({} if kl is None else {"kl": kl}),
        "response_length": statistics.fmean(index.action_lengths),
        "finished": statistics.fmean(index.finished),
    }


def _seed(seed: int, purpose: str) -> int:
    """A seed for one purpose: a digest, so that neighbouring seeds and rounds have nothing in common."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:7], "big")
