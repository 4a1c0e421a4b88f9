"""The whole of PPO: one round after the other, from prompts to new weights.

    prompts -> generate -> judge (reward, reference, critic, old log-probabilities) -> advantages -> learn -> sync ->
    report

Everything a round draws is seeded by its number, so a run that stopped goes on as if it had not (see `checkpoint.py`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from camel_ray.api.stages.ppo import KlSpec
from camel_ray.errors import ModelError
from camel_ray.ppo.advantages import Baseline
from camel_ray.ppo.checkpoint import Checkpoints
from camel_ray.ppo.driver import Driver
from camel_ray.ppo.estimate import estimate_advantages, sequence_kl
from camel_ray.ppo.kl import AdaptiveKl, FixedKl, KlController
from camel_ray.ppo.prompts import Prompts
from camel_ray.progress import Progress


@dataclass
class State:
    """What the driver itself has to remember between rounds. JSON values only: a checkpoint keeps it."""

    step: int = 0
    """Rounds done."""
    kl_coefficient: float = 0.0
    baseline: dict[str, Any] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    """Evaluation before the first round."""
    failures: dict[str, int] = field(default_factory=dict)
    """Failed rewards by reason."""
    last: dict[str, float] = field(default_factory=dict)
    """Metrics of the last round."""


@dataclass(frozen=True)
class Loop:
    """The parts of a run."""

    driver: Driver
    prompts: Prompts
    held_out: Prompts
    checkpoints: Checkpoints
    progress: Progress

    def run(self) -> tuple[State, dict[str, float]]:
        """All rounds that are not done yet; returns the final state and the evaluation after the last round."""
        spec, driver = self.driver.spec, self.driver
        state = self._resume() or State(kl_coefficient=spec.kl.coefficient, before=self._evaluate(0))
        controller = _controller(spec.kl, state.kl_coefficient)
        baseline = Baseline(**state.baseline) if state.baseline else Baseline("batch_mean")
        failures = Counter(state.failures)
        while state.step < spec.steps:
            clock = Clock()
            step = state.step + 1
            with clock("generate"):
                prompts = self.prompts.of_round(state.step, spec.prompts_per_step)
                experience, answered = driver.generate(prompts, samples=spec.samples_per_prompt, draw=f"round/{step}")
            with clock("score"):
                judged = driver.judge(experience, answered)
                experience = estimate_advantages(
                    judged.experience, spec, kl_coefficient=controller.coefficient, baseline=baseline
                )
            with clock("train"):
                learned = driver.learn(experience, round_number=step, kl_coefficient=controller.coefficient)
            with clock("sync"):
                driver.sync()
            _refuse_nan(learned, step)
            kl = float(sequence_kl(experience).mean())
            failures += judged.failures
            assert experience.scores_B is not None
            state.last = {
                "reward": float(experience.scores_B.mean()),
                "reward_std": float(experience.scores_B.std(unbiased=False)),
                "kl": kl,
                "kl_coefficient": controller.coefficient,
                "response_length": float(experience.action_lengths_B.float().mean()),
                "finished": float(experience.finished_B.float().mean()),
                "logprob_mismatch": judged.mismatch.abs_mean,
                **learned,
                **clock.seconds,
            }
            self.progress.update("ppo", step, spec.steps, metrics=state.last)
            controller.update(kl, len(experience))
            state.step, state.kl_coefficient = step, controller.coefficient
            state.baseline, state.failures = asdict(baseline), dict(failures)
            if step % spec.checkpoint.every_steps == 0 and step < spec.steps:
                self.checkpoints.write(step, asdict(state), driver.save)
            if spec.evaluate_every_steps and step % spec.evaluate_every_steps == 0 and step < spec.steps:
                self._evaluate(step)
        # The last round's state too: an attempt that stops while the model is written has nothing to repeat.
        if not self.checkpoints.holds(spec.steps):
            self.checkpoints.write(spec.steps, asdict(state), driver.save)
        self.progress.finish("ppo")
        return state, self._evaluate(spec.steps)

    def _evaluate(self, step: int) -> dict[str, float]:
        metrics = self.driver.evaluate(self.held_out.prompts)
        self.progress.update("ppo-evaluate", step, self.driver.spec.steps, metrics=metrics)
        return metrics

    def _resume(self) -> State | None:
        found = self.checkpoints.newest(self.progress)
        if found is None:
            return None
        step, state, path = found
        self.driver.load(path, version=step)
        self.progress.note(f"continues after round {step} from {path.name}")
        return State(**state)


class Clock:
    """Seconds per phase of a round, as metrics `seconds_<phase>`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the body as `phase`."""
        start = time.monotonic()
        yield
        self.seconds[f"seconds_{phase}"] = time.monotonic() - start


def _controller(spec: KlSpec, coefficient: float) -> KlController:
    if spec.controller == "fixed":
        return FixedKl(coefficient)
    return AdaptiveKl(coefficient, target=spec.target, horizon=spec.horizon)


def _refuse_nan(metrics: dict[str, float], step: int) -> None:
    for name in ("policy_loss", "value_loss"):
        value = metrics.get(name, 0.0)
        if value != value:
            raise ModelError(
                f"round {step}: {name} is not a number; lower the learning rates or clip.high, and run again"
            )
