"""What a run shows, on a terminal and elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from camel_ray.cli.display import PlainDisplay, TerminalDisplay
from camel_ray.cli.figures import duration, figure, key_figures
from camel_ray.progress import Progress, Rate


def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system=None, width=140, highlight=False, _environ={})


def written(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def test_elsewhere_each_stage_has_a_line_at_its_start_and_end(tmp_path: Path) -> None:
    target = io.StringIO()
    progress = Progress(tmp_path / "progress.jsonl")
    with PlainDisplay(target) as display:
        display.stage_skipped("text", "data", 0, 3, {"rows_train": 4812, "rows_validation": 200})
        display.stage_started("base", "pretrain", 1, 3, progress.path, 2)
        progress.update("train", 1, 10, metrics={"loss": 3.0})
        progress.note("a checkpoint is not used", level="warning")
        display.stage_finished("base", "pretrain", 75.0, {"perplexity": 45.2, "perplexity_untrained": 2051.0})
        display.run_finished(Path("report.html"), 80.0)
    assert target.getvalue().splitlines() == [
        "[1/3] text (data) is up to date: 4,812 rows to train on, 200 held out",
        "[2/3] base (pretrain) started, attempt 2",
        "[2/3] base (pretrain) warning: a checkpoint is not used",
        "[2/3] base (pretrain) done in 1:15 min: perplexity 2,051 → 45.2",
        "done in 1:20 min; report: report.html",
    ]


def test_a_failed_stage_is_named_and_stays_known_for_the_last_word(tmp_path: Path) -> None:
    for display in (PlainDisplay(io.StringIO()), TerminalDisplay("demo", console())):
        with display:
            display.stage_started("base", "pretrain", 0, 1, tmp_path / "progress.jsonl", 1)
            display.stage_failed("base", KeyboardInterrupt())
        assert display.stage == "base"
        assert display.progress_path == tmp_path / "progress.jsonl"


def test_a_terminal_shows_bars_and_keeps_a_line_per_finished_stage(tmp_path: Path) -> None:
    target = console()
    progress = Progress(tmp_path / "progress.jsonl")
    progress.update("train", 90, 100, metrics={"loss": 99.0})  # an earlier attempt: not shown
    with TerminalDisplay("demo", target) as display:
        display.stage_started("base", "pretrain", 1, 3, progress.path, 1)
        progress.update("train", 120, 400, tokens=1000, metrics={"loss": 2.345, "learning_rate": 1e-3})
        progress.update("validate", 120, metrics={"loss": 2.5})
        progress.note("something to know")
        display.refresh()
        display._progress.refresh()
        shown = written(target)
        progress.finish("train")
        display.stage_finished("base", "pretrain", 75.0, {"perplexity": 45.2})
    assert "120/400 steps" in shown
    assert "loss 2.35" in shown or "loss 2.34" in shown
    assert "validation loss 2.50" in shown
    assert "something to know" in shown
    assert "99" not in shown
    assert "✓ base" in written(target)
    assert "perplexity 45.2" in written(target)


def test_square_brackets_in_messages_are_not_markup(tmp_path: Path) -> None:
    target = console()
    progress = Progress(tmp_path / "progress.jsonl")
    with TerminalDisplay("demo", target) as display:
        display.stage_started("base", "pretrain", 0, 1, progress.path, 1)
        progress.note("row [red]3[/red] is empty")
        display.refresh()
    assert "row [red]3[/red] is empty" in written(target)


def test_rates_are_means_over_the_window() -> None:
    rate = Rate()
    assert rate.per_second() == (0.0, 0.0)
    for second in range(100):
        rate.add(float(second), 2 * second if second < 50 else 100 + 4 * (second - 50), 10 * second)
    assert rate.per_second() == (4.0, 10.0)


def test_a_rate_starts_over_when_a_new_attempt_goes_back() -> None:
    rate = Rate()
    rate.add(0.0, 100, 1000)
    rate.add(1.0, 110, 1100)
    rate.add(2.0, 50, 500)
    rate.add(4.0, 60, 700)
    assert rate.per_second() == (5.0, 100.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3, "3"),
        (2.3456, "2.35"),
        (45.2, "45.2"),
        (123.4, "123"),
        (12345.6, "12,346"),
        (0.0123, "0.0123"),
        (0.00001, "1.0e-05"),
        (-0.5, "-0.500"),
    ],
)
def test_figures_have_three_significant_digits(value: float, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.24, "4.2 s"),
        (59.99, "60.0 s"),
        (60, "1:00 min"),
        (185, "3:05 min"),
        (3600, "1:00 h"),
        (7830, "2:10 h"),
        (7199, "2:00 h"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("kind", "metrics", "text"),
    [
        ("data", {"rows_train": 10, "rejected": {"empty": 2, "duplicate": 3}}, "10 rows to train on, 5 rejected"),
        (
            "tokenizer",
            {"vocab_size": 2048, "bytes_per_token": 3.8712},
            "2,048 tokens in the vocabulary, 3.87 bytes per token",
        ),
        ("sft", {"validation_loss": 1.5}, "loss 1.50"),
        (
            "reward",
            {"accuracy": 0.823, "accuracy_longer_wins": 0.6},
            "right on 82 % of held-out pairs, 'the longer wins' on 60 %",
        ),
        (
            "ppo",
            {"reward_before": -0.12, "reward_after": 0.71, "kl": 3.3, "kl_target": 6.0},
            "reward -0.120 → 0.710, KL 3.30 of 6",
        ),
        ("evaluate", {"perplexity": float("nan"), "win_rate": 0.75}, "wins 75 %"),
        ("evaluate", {}, ""),
    ],
)
def test_key_figures_leave_out_what_is_missing(kind: str, metrics: dict[str, object], text: str) -> None:
    assert key_figures(kind, metrics) == text
