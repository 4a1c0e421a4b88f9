"""What `camel-ray run` shows: bars on a terminal, one line per stage elsewhere.

Both listen to the runner. The bars follow the progress file of the running stage, which the stage's processes append
to, so nothing of the stage knows about terminals.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from camel_ray.cli.figures import duration, figure, key_figures
from camel_ray.progress import ProgressReader, Rate

_SHOWN = ("loss", "reward", "kl", "accuracy", "perplexity")
"""Metrics worth a place beside the bar, in this order; the first three of them are shown."""
_POINTS = {"validate": "validation", "ppo-evaluate": "held-out"}
"""Tasks that are measured now and then and have no progress of their own: their figures stand in the stage's line."""


class _Bar(BarColumn):
    """A bar, and nothing for the line of the stage itself, whose length nobody knows."""

    def render(self, task: Task) -> Any:
        return Text("") if task.fields["is_stage"] else super().render(task)


class PlainDisplay:
    """One line when a stage starts and one when it ends; for logs and pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._reader: ProgressReader | None = None
        self._place = ""
        self.stage: str | None = None
        """Name of the running stage."""
        self.progress_path: Path | None = None
        """Progress file of the running stage."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing stays behind."""

    def stage_started(self, name: str, kind: str, index: int, total: int, progress_path: Path, attempt: int) -> None:
        """Say that a stage begins."""
        self.stage, self.progress_path = name, progress_path
        self._reader = ProgressReader(progress_path)
        self._reader.new_events()  # those of earlier attempts
        self._place = f"[{index + 1}/{total}] {name} ({kind})"
        self._say(f"{self._place} started" + (f", attempt {attempt}" if attempt > 1 else ""))

    def stage_skipped(self, name: str, kind: str, index: int, total: int, metrics: Mapping[str, Any]) -> None:
        """Say that a stage is done already."""
        self._say(_line(f"[{index + 1}/{total}] {name} ({kind}) is up to date", kind, metrics))

    def stage_finished(self, name: str, kind: str, seconds: float, metrics: Mapping[str, Any]) -> None:
        """Say what a stage achieved."""
        self._warnings()
        self._say(_line(f"{self._place} done in {duration(seconds)}", kind, metrics))
        self.stage = self.progress_path = None

    def stage_failed(self, name: str, error: BaseException) -> None:
        """Say that a stage failed; the error itself is reported where the command ends."""
        self._warnings()
        self._say(f"{self._place} {'stopped' if isinstance(error, KeyboardInterrupt) else 'failed'}")

    def run_finished(self, report: Path | None, seconds: float) -> None:
        """Say where the report is."""
        self._say(f"done in {duration(seconds)}" + (f"; report: {report}" if report is not None else ""))

    def _warnings(self) -> None:
        for event in self._reader.new_events() if self._reader else []:
            if event["event"] == "note" and event["level"] == "warning":
                self._say(f"{self._place} warning: {event['message']}")

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class TerminalDisplay:
    """A tick per finished stage, and bars with rate, time left and figures for the running one."""

    def __init__(self, pipeline: str, console: Console | None = None) -> None:
        self._pipeline = pipeline
        self._console = console or Console(highlight=False)
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            _Bar(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[speed]}", style="cyan"),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[figures]}", style="magenta"),
            console=self._console,
            transient=True,
        )
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress-display", daemon=True)
        self._reader: ProgressReader | None = None
        self._tasks: dict[str, TaskID] = {}
        self._rates: dict[str, Rate] = {}
        self._stage_task: TaskID | None = None
        self._began = 0.0
        self.stage: str | None = None
        """Name of the running stage."""
        self.progress_path: Path | None = None
        """Progress file of the running stage."""

    def __enter__(self) -> Self:
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)
        self._progress.stop()

    def stage_started(self, name: str, kind: str, index: int, total: int, progress_path: Path, attempt: int) -> None:
        """Open the stage's line; its tasks get bars of their own below it."""
        with self._lock:
            self._reader = ProgressReader(progress_path)
            self._reader.new_events()  # those of earlier attempts
            self._began = time.monotonic()
            self.stage, self.progress_path = name, progress_path
            place = f"[bold]{name}[/] [dim]{kind}, {index + 1} of {total}[/]" + (
                f" attempt {attempt}" if attempt > 1 else ""
            )
            self._stage_task = self._add(place, is_stage=True)

    def stage_skipped(self, name: str, kind: str, index: int, total: int, metrics: Mapping[str, Any]) -> None:
        """Print the tick of a stage that was done before."""
        self._print("[dim]✓[/]", name, "up to date", key_figures(kind, metrics))

    def stage_finished(self, name: str, kind: str, seconds: float, metrics: Mapping[str, Any]) -> None:
        """Replace the bars by a line with the tick, the time and the stage's figures."""
        self._close()
        self._print("[green]✓[/]", name, duration(seconds), key_figures(kind, metrics))

    def stage_failed(self, name: str, error: BaseException) -> None:
        """Replace the bars by a line with a cross; the error itself is reported where the command ends."""
        seconds = time.monotonic() - self._began
        stopped = isinstance(error, KeyboardInterrupt)
        stage, path = self.stage, self.progress_path
        self._close()
        self.stage, self.progress_path = stage, path
        self._print(
            "[yellow]■[/]" if stopped else "[red]✗[/]", name, duration(seconds), "stopped" if stopped else "failed"
        )

    def run_finished(self, report: Path | None, seconds: float) -> None:
        """Print the total time and where the report is."""
        self._console.print(f"\n[bold]{self._pipeline}[/] done in {duration(seconds)}")
        if report is not None:
            self._console.print(Text(f"report: {report}"), soft_wrap=True)

    def refresh(self) -> None:
        """Read what the stage has written since the last call."""
        with self._lock:
            if self._stage_task is not None:
                self._progress.update(self._stage_task, count=duration(time.monotonic() - self._began))
            for event in self._reader.new_events() if self._reader else []:
                if event["event"] == "update" and event["task"] in _POINTS:
                    figures = " ".join(_figures(event))
                    if figures and self._stage_task is not None:
                        self._progress.update(self._stage_task, figures=f"{_POINTS[event['task']]} {figures}")
                elif event["event"] == "update":
                    self._update(event)
                elif event["event"] == "finish" and event["task"] in self._tasks:
                    self._progress.remove_task(self._tasks.pop(event["task"]))
                elif event["event"] == "note":
                    style = "yellow" if event["level"] == "warning" else "dim"
                    self._console.print(Text(f"  {event['message']}", style=style))

    def _follow(self) -> None:
        while not self._stop.wait(0.2):
            self.refresh()

    def _update(self, event: Mapping[str, Any]) -> None:
        name, done, total = event["task"], event["done"], event.get("total")
        if name not in self._tasks:
            self._tasks[name] = self._add(f"  {name}")
            self._rates[name] = Rate()
        rate = self._rates[name]
        rate.add(event["time"], done, event.get("tokens") or 0)
        per_second, tokens_per_second = rate.per_second()
        left = (total - done) / per_second if total and per_second > 0 else None
        speed = f"{figure(tokens_per_second)} tokens/s" if tokens_per_second else ""
        if not speed and per_second:
            speed = f"{figure(per_second)} {event['unit']}/s"
        fields: dict[str, Any] = {
            "count": f"{done:,}/{total:,} {event['unit']}" if total else f"{done:,} {event['unit']}",
            "speed": speed,
            "left": f"{duration(left)} left" if left is not None else "",
        }
        if figures := _figures(event):
            fields["figures"] = "  ".join(figures)
        self._progress.update(self._tasks[name], completed=done, total=total, **fields)

    def _add(self, description: str, *, is_stage: bool = False) -> TaskID:
        return self._progress.add_task(
            description, total=None, count="", speed="", left="", figures="", is_stage=is_stage
        )

    def _close(self) -> None:
        self.refresh()
        with self._lock:
            for task in [*self._tasks.values(), *([self._stage_task] if self._stage_task is not None else [])]:
                self._progress.remove_task(task)
            self._tasks, self._rates, self._stage_task, self._reader = {}, {}, None, None
            self.stage = self.progress_path = None

    def _print(self, mark: str, name: str, when: str, figures: str) -> None:
        self._console.print(f"{mark} [bold]{name:<20}[/] {when:>10}  [dim]{figures}[/]")


def _figures(event: Mapping[str, Any]) -> list[str]:
    metrics = event.get("metrics") or {}
    return [f"{name} {figure(metrics[name])}" for name in _SHOWN if metrics.get(name) is not None][:3]


def _line(start: str, kind: str, metrics: Mapping[str, Any]) -> str:
    figures = key_figures(kind, metrics)
    return f"{start}: {figures}" if figures else start
