"""The report as a document: safe, self-contained, the same every time, and there at every moment of a run."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from camel_ray.evaluation.record import RunRecord, StageRecord
from camel_ray.evaluation.report import build_report

VOID = {"meta", "br", "hr"}


class Page(HTMLParser):
    """Parsed report: text by tag, all attributes, and whether every tag was closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def page(run: RunRecord) -> Page:
    parsed = Page(build_report(run))
    assert parsed.open == []
    return parsed


def stage_of(run: RunRecord, name: str) -> StageRecord:
    return next(s for s in run.stages if s.name == name)


def with_stage(run: RunRecord, name: str, **changes: Any) -> RunRecord:
    return replace(run, stages=tuple(replace(s, **changes) if s.name == name else s for s in run.stages))


def test_the_verdict_states_the_three_results_with_their_comparisons(finished: RunRecord) -> None:
    words = page(finished).words
    assert "All 9 stages done in 4 min 10 s." in words
    assert "56.2×" in words and "2,096 untrained, 37.3 after base" in words
    assert "83.5 %" in words and "“the longer answer wins”: 51.2 %" in words
    assert "+0.82 σ" in words and "KL 5.4 of 6 nats" in words
    assert "PPO raised the reward within its KL target" in words
    assert "73.4" in words and "95 % interval 63.0" in words


def test_a_run_that_went_wrong_is_not_praised(finished: RunRecord) -> None:
    run = with_stage(finished, "ppo", metrics={**stage_of(finished, "ppo").metrics, "reward_after": -0.5, "kl": 9.0})
    run = with_stage(run, "reward", metrics={"accuracy": 0.5, "accuracy_longer_wins": 0.6})
    run = with_stage(run, "base", metrics={"perplexity_untrained": 50.0, "perplexity": 80.0})
    words = page(run).words
    assert "Pretraining did not lower perplexity" in words
    assert "the reward model does not beat “the longer answer wins”" in words
    assert "PPO did not raise the reward, with KL above its target" in words
    assert build_report(run).count('class="value bad"') == 3


def test_the_same_record_gives_the_same_bytes(finished: RunRecord) -> None:
    assert build_report(finished) == build_report(finished)


def test_nothing_is_fetched_from_anywhere(finished: RunRecord) -> None:
    source = build_report(finished)
    parsed = page(finished)
    assert not {"link", "img", "iframe", "object", "base"} & {tag for tag, _ in parsed.tags}
    assert not [a for _, attrs in parsed.tags for a in attrs if a in ("src", "href", "srcset", "action")]
    assert "@import" not in source and not re.search(r"url\((?!#)", source)
    policy = next(a["content"] for t, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'") and "sha256-" in policy


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\" onmouseover='alert(3)' \x00\ud800"


def test_text_from_anywhere_in_a_run_stays_text(finished: RunRecord) -> None:
    rejected = dict.fromkeys(("file", "line", "reason", "detail"), HOSTILE)
    run = replace(
        finished,
        name=HOSTILE,
        yaml=HOSTILE,
        storage=HOSTILE,
        environment={HOSTILE: HOSTILE},
        evaluation={**(finished.evaluation or {}), "model": HOSTILE, "left_out": {HOSTILE: HOSTILE}},
        samples=[
            {
                "prompt": [{"role": HOSTILE, "content": HOSTILE}, {"role": "user", "content": HOSTILE}],
                "reference": {"answer": HOSTILE},
                "model": {"answer": HOSTILE},
            }
        ],
        stages=tuple(
            replace(
                stage,
                name=f"{HOSTILE}{i}",
                state="failed",
                message=HOSTILE,
                metrics={**stage.metrics, HOSTILE: HOSTILE, "dropped": {HOSTILE: 3}},
                data_report={"rows_read": 1, "rejected": {HOSTILE: 1}, "examples": [rejected]},
                artifacts={HOSTILE: HOSTILE},
                events=[*stage.events, {"event": "note", "level": "warning", "message": HOSTILE}],
            )
            for i, stage in enumerate(finished.stages)
        ),
    )  # fmt: skip
    source = build_report(run)
    parsed = Page(source)
    assert parsed.count("script") == 1 and parsed.count("img") == 0
    assert not [a for _, attrs in parsed.tags for a in attrs if a.startswith("on")]
    assert "\x00" not in source
    source.encode("utf-8")


def test_a_run_half_way_shows_what_there_is(half_way: RunRecord) -> None:
    words = page(half_way).words
    assert "7 of 9 stages done" in words
    assert "stage ppo is running" in words
    assert "KL to the reference" in words and "target 6" in words  # from the file: the stage has no figures yet
    assert "Before and after" not in words and "Results" not in words


def test_a_failed_stage_is_named_with_its_message_at_the_top(finished: RunRecord) -> None:
    run = with_stage(finished, "ppo", state="failed", message="the reward function raised KeyError", metrics={})
    words = page(run).words
    assert "Stage ppo failed; 8 of 9 stages done" in words
    assert "Warnings ppo the reward function raised KeyError" in words


def test_empty_runs_render() -> None:
    nothing = RunRecord(name="empty", document={}, yaml="", stages=())
    assert "The pipeline has no stages." in page(nothing).words
    waiting = RunRecord(
        name="new", document={}, yaml="a: 1", stages=(StageRecord("text", "data"), StageRecord("ppo", "ppo", ("text",)))
    )
    words = page(waiting).words
    assert "0 of 2 stages done." in words and "stage ppo is waiting" in words and "not started" in words


def test_not_a_number_breaks_the_line_and_is_a_warning(finished: RunRecord) -> None:
    events: list[dict[str, Any]] = [dict(e) for e in stage_of(finished, "base").events]
    for event in events[2:4]:
        event["metrics"] = {**event["metrics"], "loss": None}
    run = with_stage(finished, "base", events=events)
    assert "base train loss was not a finite number at 2 steps, first at step" in page(run).words
    clean = re.search(r'class="line c0"|d="([^"]+)" class="line c0"', build_report(finished))
    torn = re.search(r'd="([^"]+)" class="line c0"', build_report(run))
    assert clean and torn and torn.group(1).count("M") == 2


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "many", True, []])
def test_strange_figures_leave_a_gap_instead_of_an_error(finished: RunRecord, value: Any) -> None:
    names = (
        "perplexity",
        "accuracy",
        "reward_after",
        "kl",
        "kl_target",
        "reward_std_before",
        "tokens_per_second",
        "steps",
    )
    run = replace(
        finished,
        stages=tuple(replace(s, metrics={**s.metrics, **dict.fromkeys(names, value)}) for s in finished.stages),
        evaluation={
            "figures": {"bleu": {"model": value}, "reward": {}},
            "win_rate": {"rate": value},
            "samples_shown": value,
        },
    )
    assert "quickstart" in page(run).words


def test_samples_stand_side_by_side_and_the_better_score_is_marked(finished: RunRecord) -> None:
    parsed = page(finished)
    assert parsed.count("article") == 4  # samples_shown, of five
    assert "The first 4 of 5 held-out prompts, in order; none was picked." in parsed.words
    assert "What does os.path.join do? Reference Join two or more" in parsed.words
    assert "Before sft" in parsed.words and "After ppo" in parsed.words
    assert "cut at the limit" in parsed.words


def test_data_counts_and_rejected_rows_are_listed(finished: RunRecord) -> None:
    words = page(finished).words
    assert "text text 4,676 4,312 227 137 (2.9 %) 96 duplicate, 41 too short" in words
    assert "python-docs/text:17 too short 3 characters" in words
    assert "sft left out 3 too long" in words


def test_rows_beyond_the_limit_are_accounted_for(finished: RunRecord) -> None:
    metrics = {"rows_read": 1000, "rows_train": 400, "rows_validation": 20, "rejected": {"duplicate": 5}}
    words = page(with_stage(finished, "text", metrics=metrics, data_report=None)).words
    assert "5 duplicate; 575 more than its limit" in words


def test_left_out_metrics_are_listed_with_the_reason(finished: RunRecord) -> None:
    evaluation = {**(finished.evaluation or {}), "left_out": {"win_rate": "there is no baseline"}}
    assert "win rate : there is no baseline" in page(replace(finished, evaluation=evaluation)).words


def test_the_cost_between_processes_of_a_ppo_step_is_stated(finished: RunRecord) -> None:
    shown = page(finished).words
    assert "14 calls to processes" in shown
    assert "4.70MB of weights moved in 0.2 s" in shown
    assert "idle: actor 25.0 %, rollout 60.0 %" in shown


def test_a_repeated_warning_is_listed_once_with_its_number(finished: RunRecord) -> None:
    note = {"event": "note", "level": "warning", "message": "slow disk"}
    assert "slow disk (3 times)" in page(with_stage(finished, "sft", events=[note] * 3)).words


def test_a_long_run_stays_a_small_file(finished: RunRecord) -> None:
    template = dict(stage_of(finished, "base").events[0])
    events = [
        {**template, "done": step, "metrics": {"loss": 1 + math.sin(step), "grad_norm": 1.0}} for step in range(100_000)
    ]
    assert len(build_report(with_stage(finished, "base", events=events))) < len(build_report(finished)) + 60_000
