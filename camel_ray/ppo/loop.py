"""The whole of PPO: one round after the other, from prompts to new weights.

    prompts -> write -> judge (reward, reference, critic, old log-probabilities, advantages) -> learn -> sync -> report

Everything a round draws is seeded by its number, so a run that stopped goes on as if it had not (see `checkpoint.py`).
The same holds inside a run: when processes that train are lost, they start again and the loop goes back to the last
checkpoint (`recovery.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from camel_ray.errors import Stopped
from camel_ray.ppo.advantages import Baseline
from camel_ray.ppo.driver import Driver, Writing
from camel_ray.ppo.groups import GroupLost
from camel_ray.ppo.phases import Clock
from camel_ray.ppo.prompts import Prompts
from camel_ray.ppo.recording import Recording
from camel_ray.ppo.recovery import Recovery
from camel_ray.ppo.scoring import Answers, Scored
from camel_ray.ppo.state import State, account
from camel_ray.progress import Progress
from camel_ray.stop import StopRequest


@dataclass(frozen=True)
class Loop:
    """The parts of a run."""

    driver: Driver
    prompts: Prompts
    recovery: Recovery
    recording: Recording
    progress: Progress
    stop: StopRequest

    def run(self, output: Path) -> tuple[State, dict[str, float]]:
        """All rounds that are not done yet, and the policy written to `output`; returns the final state and the
        evaluation after the last round. Raises Stopped after a round if that was asked for.
        """
        while True:
            try:
                return self._run(output)
            except GroupLost:
                self.recovery.after_loss()

    def _run(self, output: Path) -> tuple[State, dict[str, float]]:
        spec, start = self.driver.spec, self.recovery.start()
        state, ahead = start.state, start.ahead
        while state.step < spec.steps:
            ahead = self._round(state, ahead)
            if state.broken >= spec.guard.patience:
                start = self.recovery.roll_back(state)
                state, ahead = start.state, start.ahead
                continue
            last = state.step == spec.steps
            stopping = self.stop.asked and not last
            # The last round's state too: an attempt that stops while the model is written has nothing to repeat.
            if (last or stopping or state.step % spec.checkpoint.every_steps == 0) and not state.broken:
                self.recovery.save(state, ahead)
            if stopping:
                raise Stopped(f"stopped on request after round {state.step}; the next attempt continues")
            if spec.evaluate_every_steps and state.step % spec.evaluate_every_steps == 0 and not last:
                self.recovery.evaluate(state.step)
        self.progress.finish("ppo")
        after = self.recovery.evaluate(spec.steps)
        self.driver.save_model(output)
        return state, after

    def _round(self, state: State, ahead: Answers | None) -> Answers | None:
        """One round. Returns the answers of the next one where they were written while this one was learned from."""
        spec, driver, clock = self.driver.spec, self.driver, Clock()
        number, coefficient = state.next_data, state.kl_coefficient
        with clock("generate"):
            answers, scored = ahead or driver.collect(self._write(number)), None
            if spec.skip_uniform_groups:
                answers, scored = self._with_signal(answers, number)
        writing = self._write(number + 1) if spec.rollout.staleness and state.step + 1 < spec.steps else None
        with clock("score"):
            baseline = Baseline(**state.baseline)
            judged = driver.judge(answers, scored=scored, kl_coefficient=coefficient, baseline=baseline)
        with clock("train"):
            learned = driver.learn(judged, number=number, kl_coefficient=coefficient)
        with clock("generate"):
            following = None if writing is None else driver.collect(writing)
        with clock("sync"):
            driver.sync(judged)
        account(state, spec, judged, learned)
        if spec.record:
            with clock("record"):
                self.recording.write(
                    state.step, number, coefficient, learned, lambda path: driver.record(judged.ref, path)
                )
        state.last |= clock.seconds | driver.usage(clock.total)
        self.progress.update("ppo", state.step, spec.steps, metrics=state.last)
        return following

    def _write(self, number: int) -> Writing:
        spec = self.driver.spec
        prompts = self.prompts.of_round(number - 1, spec.prompts_per_step)
        return self.driver.write(prompts, samples=spec.samples_per_prompt, draw=f"round/{number}")

    def _with_signal(self, answers: Answers, number: int) -> tuple[Answers, Scored]:
        """Replace prompts whose answers all got the same reward by other prompts, as often as allowed."""
        spec, driver = self.driver.spec, self.driver
        everything = answers, driver.scorer.score(answers)
        kept, scored = driver.with_signal(*everything)
        for attempt in range(1, spec.skip_uniform_groups + 1):
            missing = spec.prompts_per_step - len(set(kept.index.groups))
            if missing == 0:
                break
            extra = self.prompts.extra(number - 1, attempt, missing)
            draw = f"round/{number}/extra/{attempt}"
            more = driver.collect(driver.write(extra, samples=spec.samples_per_prompt, draw=draw))
            kept, scored = driver.join(kept, scored, *driver.with_signal(more, driver.scorer.score(more)))
        # Without any signal the round is learned from as it is: advantages are 0, the KL penalty's part is not.
        return (kept, scored) if len(kept.index) else everything
