"""How the state of a pipeline looks on a terminal: a tree of its stages, or one line per change.

Pure: status in, text out. Messages come from pods, so they are shown as plain text without control characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from rich.text import Text

from camel_ray.cli.figures import duration, figure, key_figures

if TYPE_CHECKING:
    from camel_ray.api.status import FailureClass, PipelineStatus, Progress, StageStatus

_MARKS = {
    "Waiting": ("·", "dim"),
    "Starting": ("◌", "cyan"),
    "Queued": ("◌", "cyan"),
    "Provisioning": ("◌", "cyan"),
    "Running": ("●", "cyan"),
    "Stopping": ("■", "yellow"),
    "Backoff": ("↻", "yellow"),
    "Suspended": ("■", "yellow"),
    "Succeeded": ("✓", "green"),
    "Failed": ("✗", "red"),
    "Cancelled": ("■", "yellow"),
    "Pending": ("◌", "cyan"),
    "Suspending": ("■", "yellow"),
}
_SHOWN = ("loss", "reward", "kl", "accuracy", "perplexity")
_BAR = 24
NOT_SEEN = "the operator has not looked at it yet; if this stays, see whether it runs"

_EXIT_CODES: dict[FailureClass, int] = {
    "UserError": 10,
    "Infrastructure": 20,
    "OutOfMemory": 23,
    "Preemption": 24,
    "Error": 1,
}


def tree(name: str, status: PipelineStatus, now: datetime) -> Text:
    """The pipeline, its stages, and what is worth knowing about each."""
    mark, style = _MARKS[status.phase]
    lines = [_join((f"{mark} ", style), (name, "bold"), (f"  {status.phase}", style), f"  {status.progress}")]
    lines[0].append(_took(status.started, status.ended, now), style="dim")
    if message := one_line(status.message) or (NOT_SEEN if not status.stages else ""):
        lines.append(_join(f"  {message}"))
    width = max((len(stage.name) for stage in status.stages), default=0)
    kinds = max((len(stage.kind) for stage in status.stages), default=0)
    for stage in status.stages:
        mark, style = _MARKS[stage.phase]
        head = _join(
            "  ", (f"{mark} ", style), (stage.name.ljust(width), "bold"), (f"  {stage.kind.ljust(kinds)}", "dim")
        )
        if stage.phase != "Waiting":
            head.append(f"  {stage.phase}", style=style)
            head.append(_took(stage.started, stage.ended, now), style="dim")
        head.append(_counts(stage), style="dim")
        head.rstrip()
        lines.append(head)
        lines += [_join("      ", part) for part in _details(stage, status, now)]
    return Text("\n").join(lines)


def changes(before: PipelineStatus | None, after: PipelineStatus, name: str) -> Iterator[str]:
    """One line for everything that is different, in plain text. Progress counts in steps of ten percent."""
    for number, stage in enumerate(after.stages, 1):
        old = before.stage_named(stage.name) if before else None
        place = f"[{number}/{len(after.stages)}] {stage.name} ({stage.kind})"
        quiet = stage.phase in ("Waiting", "Running")
        told = (stage.phase, stage.attempts, "" if quiet else stage.message)
        known = (old.phase, old.attempts, "" if quiet else old.message) if old else ("Waiting", 0, "")
        if told != known:
            attempt = f", attempt {stage.attempts}" if stage.attempts > 1 else ""
            words = one_line(stage.message) if not quiet else ""
            figures = (
                key_figures(stage.kind, stage.result.metrics) if stage.phase == "Succeeded" and stage.result else ""
            )
            yield f"{place} {stage.phase}{attempt}" + "".join(f": {text}" for text in (figures or words,) if text)
        if (progress := live_progress(stage)) and progress.percentage is not None:
            seen = live_progress(old) if old else None
            if seen is None or (seen.percentage or 0) // 10 != progress.percentage // 10:
                yield f"{place} {progress.percentage}%" + "".join(f", {text}" for text in _progress_words(progress))
    if before is None or before.phase != after.phase:
        message = one_line(after.message) or (NOT_SEEN if not after.stages else "")
        yield f"{name} {after.phase}" + (f": {message}" if message else "")


def exit_code(status: PipelineStatus) -> int:
    """What a command ends with that waited for the end: 0, the code of the failed attempt, or 130 if cancelled."""
    if status.phase == "Succeeded":
        return 0
    if status.phase == "Cancelled":
        return 130
    failed = next((stage for stage in status.stages if stage.phase == "Failed"), None)
    if failed is None or not failed.history:  # the spec was refused before anything started
        return 11
    last = failed.history[-1]
    if failed.result is not None and failed.result.attempt == last.number and failed.result.code:
        return failed.result.code
    return next((code for kind, code in _EXIT_CODES.items() if kind == last.outcome), 1)


def live_progress(stage: StageStatus) -> Progress | None:
    """What the attempt that is under way reported; an earlier one's report says nothing about it."""
    progress = stage.progress
    return progress if progress and stage.current and progress.attempt == stage.current.number else None


def age(since: str, now: datetime) -> str:
    """How long ago, as kubectl writes it: `45s`, `12m`, `3h`, `5d`."""
    from camel_ray.operator.clock import seconds_since

    seconds = int(seconds_since(since, now))
    for limit, size, unit in ((120, 1, "s"), (120 * 60, 60, "m"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds // size}{unit}"
    return f"{seconds // 86400}d"


def one_line(text: str) -> str:
    """Text from elsewhere on one line, without control characters."""
    return "".join(char for char in " ".join(text.split()) if char.isprintable())


def _details(stage: StageStatus, status: PipelineStatus, now: datetime) -> Iterator[Text]:
    progress = live_progress(stage)
    if progress is not None:
        yield _bar(progress)
    message = one_line(stage.message)
    if message and stage.phase not in ("Succeeded", "Running") and message not in one_line(status.message):
        yield Text(message)
    if stage.phase == "Backoff" and stage.retry:
        from camel_ray.operator.clock import moment

        left = max(0.0, (moment(stage.retry) - now).total_seconds())
        yield Text(f"next attempt in {duration(left)}", style="yellow")
    if stage.phase == "Succeeded" and stage.result and (words := key_figures(stage.kind, stage.result.metrics)):
        yield Text(words, style="dim")
    for ended in stage.history:
        if ended.outcome != "Succeeded":
            after = _took(ended.started, ended.ended, now).replace("  ", " after ", 1)
            yield Text(f"attempt {ended.number}: {ended.outcome}{after}: {one_line(ended.message)}", style="dim")


def _bar(progress: Progress) -> Text:
    line = Text()
    if progress.percentage is not None:
        full = progress.percentage * _BAR // 100
        line.append("━" * full, style="cyan")
        line.append("─" * (_BAR - full), style="dim")
        line.append(f" {progress.percentage}%")
    words = _progress_words(progress)
    if progress.remaining_seconds is not None:
        words.append(f"{duration(float(progress.remaining_seconds))} left")
    return line.append("".join(f"  {text}" for text in words)[0 if line else 2 :])


def _progress_words(progress: Progress) -> list[str]:
    words = []
    if progress.done is not None:
        total = f"/{progress.total:,}" if progress.total else ""
        words.append(f"{one_line(progress.task)} {progress.done:,}{total} {one_line(progress.unit)}".strip())
    words += [f"{name} {figure(progress.metrics[name])}" for name in _SHOWN if name in progress.metrics][:3]
    if (rate := progress.metrics.get("tokens_per_second")) is not None:
        words.append(f"{figure(rate)} tokens/s")
    return words


def _counts(stage: StageStatus) -> str:
    parts = [f"attempt {stage.attempts}"] if stage.attempts > 1 else []
    for count, word in ((stage.failures, "failure"), (stage.preemptions, "preemption")):
        parts += [f"{count} {word}{'s' if count > 1 else ''}"] if count else []
    return "".join(f"  {part}" for part in [", ".join(parts)] if part)


def _took(started: str | None, ended: str | None, now: datetime) -> str:
    from camel_ray.operator.clock import moment

    if started is None:
        return ""
    end = moment(ended) if ended else now
    return f"  {duration(max(0.0, (end - moment(started)).total_seconds()))}"


def _join(*parts: str | Text | tuple[str, str]) -> Text:
    return Text.assemble(*parts)
