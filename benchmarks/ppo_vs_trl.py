"""Samples per second of the `ppo` stage against TRL's last PPO trainer and a bare torch loop, on the same work.

    python benchmarks/ppo_vs_trl.py [--quick]

Three sides, each a process of its own, work on the same models (Llama: hidden 256, 4 layers, vocabulary 1024), prompts
(32 of 32 tokens) and settings, and take turns for several rounds: this engine as the stage runs it (one host on a
local Ray), TRL 1.12.0 in a thin environment of its own as its users run it, and the limit (`ppo_sides/bare.py`): one
loop with plain AdamW and everything that makes a round fast, and without Ray, DeepSpeed and driver. Once with answers
of exactly 64 tokens, once with answers that end at random (geometric, mean 16, at most 64). Before that, both losses
are compared on the same rollouts. The driver's own time is measured with simulated hosts (`ppo_sides/driver.py`).

The last line printed is one JSON object: `ratio_fixed` and `ratio_ragged` (samples/s over TRL's),
`share_of_limit_fixed` and `share_of_limit_ragged` (over the limit's), `driver_ms_256` (milliseconds per step).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from camel_ray.runtime.process import available_cores, prepare_process

CORES = available_cores()
PLAIN = {**os.environ, "OMP_NUM_THREADS": str(CORES)}
"""Environment of TRL's process: torch's defaults, and as many threads as the others."""
prepare_process(cores=CORES)

from ppo_sides.driver import milliseconds_per_step  # noqa: E402
from ppo_sides.task import Task, make  # noqa: E402
from ppo_sides.trl_environment import RELEASE, NoTrl, trl_python  # noqa: E402

HERE = Path(__file__).parent
ENGINE, TRL, LIMIT = "camel-ray", f"TRL {RELEASE}", "limit"
TOLERANCE = 1e-4


class Side:
    """A process that runs steps when asked to."""

    def __init__(self, name: str, module: str, task: Task, *, python: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = task.path(f"{name}.log")
        self.file = self.log.open("w")
        self.process = subprocess.Popen(
            [str(python), "-m", f"ppo_sides.{module}", task.wire()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.file,
            text=True,
            env={**environment, "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent)))},
        )
        self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.file.close()

    def steps(self, count: int) -> list[dict[str, float]]:
        """Seconds by phase of `count` steps, after one that is not counted: the caches were another side's."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"steps": count + 1}) + "\n")
        self.process.stdin.flush()
        found: list[dict[str, float]] = self.answer()["steps"]
        return found[1:]

    def answer(self) -> dict[str, Any]:
        """What the side says next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended:\n{self.log.read_text()[-3000:]}")
        said: dict[str, Any] = json.loads(line)
        return said


def main() -> None:
    """Run everything and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and steps")
    rounds, steps = (3, 4) if parser.parse_args().quick else (7, 8)
    try:
        theirs: Path | None = trl_python()
    except NoTrl as error:
        theirs = None
        print(f"*** {error}: there is nothing to compare with, only the limit. ***", flush=True)
    figures: dict[str, float | None] = {}
    for case in ("fixed", "ragged"):
        with tempfile.TemporaryDirectory() as directory:
            task = Task(directory=directory, ends=case == "ragged", threads=CORES)
            make(task)
            if case == "fixed" and theirs is not None:
                compare_losses(task, theirs)
            seconds = measure(task, theirs, rounds, steps)
        print(f"\n{case} lengths: median seconds per step of {task.prompts} answers")
        for name, found in seconds.items():
            report(name, found, task)
        figures[f"ratio_{case}"] = ratio(seconds, TRL) if theirs is not None else None
        figures[f"share_of_limit_{case}"] = ratio(seconds, LIMIT)
    short, long = (milliseconds_per_step(ranks=256, answers=4, length=length) for length in (64, 1024))
    print(f"\ndriver, 256 ranks, 4 answers each: {short:.1f} ms a step at 64 tokens, {long:.1f} ms at 1024")
    figures["driver_ms_256"] = round(max(short, long), 1)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "deepspeed", "ray"))
    print(f"Python {platform.python_version()}, {libraries}; {CORES} cores, {cpu()}")
    order = ("ratio_fixed", "ratio_ragged", "share_of_limit_fixed", "share_of_limit_ragged", "driver_ms_256")
    print(json.dumps({name: figures[name] for name in order}))


def measure(task: Task, theirs: Path | None, rounds: int, steps: int) -> dict[str, list[list[dict[str, float]]]]:
    """Steps of each side by round. The sides take turns, and who goes first changes."""
    own = Path(sys.executable)
    with (
        Side(LIMIT, "bare", task, python=own, environment=os.environ) as limit,
        Side(ENGINE, "side_engine", task, python=own, environment=os.environ) as engine,
    ):
        sides = [engine, limit]
        if theirs is None:
            return _rounds(sides, rounds, steps)
        with Side(TRL, "side_trl", task, python=theirs, environment=PLAIN) as trl:
            return _rounds([engine, trl, limit], rounds, steps)


def _rounds(sides: list[Side], rounds: int, steps: int) -> dict[str, list[list[dict[str, float]]]]:
    found: dict[str, list[list[dict[str, float]]]] = {side.name: [] for side in sides}
    for side in sides:
        side.steps(2)
    for number in range(rounds):
        first = number % len(sides)
        for side in (*sides[first:], *sides[:first]):
            found[side.name].append(side.steps(steps))
    return found


def report(name: str, rounds: list[list[dict[str, float]]], task: Task) -> None:
    """One line: seconds by phase, and samples per second."""
    steps = [step for found in rounds for step in found]
    total = statistics.median(step["total"] for step in steps)
    phases = {phase: statistics.median(step.get(phase, 0.0) for step in steps) for phase in steps[0]}
    rest = total - sum(value for phase, value in phases.items() if phase != "total")
    split = ", ".join(f"{phase} {value:.3f}" for phase, value in phases.items() if phase != "total")
    print(f"{name}: {total:.3f} ({split}, rest {rest:.3f}) = {task.prompts / total:.1f} samples/s", flush=True)


def ratio(seconds: Mapping[str, list[list[dict[str, float]]]], other: str) -> float:
    """Samples per second of the engine over those of `other`: the median over rounds."""
    return round(
        statistics.median(
            statistics.median(step["total"] for step in b) / statistics.median(step["total"] for step in a)
            for a, b in zip(seconds[ENGINE], seconds[other], strict=True)
        ),
        3,
    )


def compare_losses(task: Task, theirs: Path) -> None:
    """Both losses over two updates on the same rollouts, by TRL's trainer and by us. Ends the run if they differ."""
    found = {}
    for name, python in ((LIMIT, Path(sys.executable)), (TRL, theirs)):
        done = subprocess.run(
            [str(python), "-m", f"ppo_sides.{'check_ours' if name == LIMIT else 'check_trl'}", task.wire()],
            capture_output=True,
            text=True,
            env={**PLAIN, "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent)))},
        )
        if done.returncode != 0:
            raise SystemExit(f"the losses of {name} could not be computed:\n{done.stderr[-3000:]}")
        found[name] = json.loads(done.stdout.splitlines()[-1])
    for loss, ours in found[LIMIT].items():
        other = found[TRL][loss]
        print(f"{loss} on the same rollouts: ours {ours:.6f}, TRL's trainer {other:.6f}", flush=True)
        if abs(ours - other) > TOLERANCE * max(1.0, abs(other)):
            raise SystemExit(f"{loss} differs by more than {TOLERANCE}")


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
