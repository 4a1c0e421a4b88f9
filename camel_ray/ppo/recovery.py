"""How a run begins: anew, from its last checkpoint, or from it once more because something broke."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from camel_ray.errors import ModelError
from camel_ray.ppo.checkpoint import Checkpoints
from camel_ray.ppo.driver import Driver
from camel_ray.ppo.groups import GroupLost
from camel_ray.ppo.prompts import Prompts
from camel_ray.ppo.scoring import Answers
from camel_ray.ppo.state import State, first_state
from camel_ray.progress import Progress


@dataclass(frozen=True)
class Start:
    """Where the rounds go on."""

    state: State
    ahead: Answers | None = None
    """Answers of the next round that were written already."""


@dataclass
class Recovery:
    """Brings driver and roles to a state from which rounds can go on."""

    driver: Driver
    prompts: Prompts
    checkpoints: Checkpoints
    restart: Callable[[], None]
    """Starts the groups that train again, with the weights the stage began with."""
    evaluate: Callable[[int], dict[str, float]]
    progress: Progress
    _before: dict[str, float] | None = field(default=None, init=False)

    def start(self) -> Start:
        """After the newest sound checkpoint, or at the beginning."""
        found = self.checkpoints.newest(self.progress)
        if found is None:
            if self._before is None:
                self._before = self.evaluate(0)
            return Start(first_state(self.driver.spec, self._before))
        step, values, path = found
        state = State(**values)
        self.driver.load(path, version=step)
        self.progress.note(f"continues after round {step} from {path.name}")
        return Start(state, self._ahead(state, path))

    def save(self, state: State, ahead: Answers | None) -> None:
        """Commit a checkpoint of everything."""
        self.checkpoints.write(state.step, asdict(state), lambda path: self.driver.save(path, ahead))

    def after_loss(self) -> None:
        """Start the groups that train again. What is lost meanwhile counts too, so this ends."""
        while True:
            try:
                self.restart()
                return self.driver.begin()
            except GroupLost:
                continue

    def roll_back(self, state: State) -> Start:
        """Go back to the last checkpoint and leave out the data since then.

        Raises ModelError where that was done too often already.
        """
        guard = self.driver.spec.guard
        if state.rollbacks >= guard.rollbacks:
            raise ModelError(
                f"round {state.step}: {state.broken} rounds in a row had a broken update (not a number, or beyond the "
                f"guard's limits), after {state.rollbacks} rollbacks; lower the learning rates or clip.high, and run "
                "again"
            )
        self.progress.note(
            f"{state.broken} rounds in a row had a broken update: goes back to the last checkpoint and leaves out the "
            "prompts since then",
            level="warning",
        )
        if self.checkpoints.newest(self.progress) is None:
            self.after_loss()
        again = self.start().state
        again.left_out = state.left_out + state.step - again.step
        again.rollbacks, again.skipped_updates = state.rollbacks + 1, state.skipped_updates
        # Answers written ahead belong to data that is left out.
        return Start(again)

    def _ahead(self, state: State, path: Path) -> Answers | None:
        spec = self.driver.spec
        if not spec.rollout.staleness or state.step == spec.steps:
            return None
        prompts = self.prompts.of_round(state.next_data - 1, spec.prompts_per_step)
        return self.driver.load_ahead(path, prompts, samples=spec.samples_per_prompt)
