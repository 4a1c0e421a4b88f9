"""What the evaluate stage measured, and what both models answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from camel_ray.evaluation.record import RunRecord
from camel_ray.evaluation.report.headline import number
from camel_ray.evaluation.report.markup import Html, element
from camel_ray.evaluation.report.numbers import figure, percent, plural, signed

_ROWS: Sequence[tuple[str, str, str, Callable[[float | None], str], int]] = (
    ("perplexity", "Perplexity", "per token of held-out text", figure, -1),
    ("bits_per_byte", "Bits per byte", "of held-out text; comparable between tokenizers", figure, -1),
    ("bleu", "BLEU-4", "corpus, no smoothing", percent, 1),
    ("rouge1", "ROUGE-1", "F1 of words", percent, 1),
    ("rouge2", "ROUGE-2", "F1 of word pairs", percent, 1),
    ("rougeL", "ROUGE-L", "F1 of the longest common subsequence", percent, 1),
    ("exact_match", "Exact match", "of the reference answer", percent, 1),
    ("reward", "Reward", "mean score of the reward model", figure, 1),
    ("reward_std", "Reward spread", "standard deviation between prompts", figure, 0),
    ("response_length", "Answer length", "tokens, mean", figure, 0),
    ("finished", "Answers that end", "before the length limit", percent, 0),
)
"""Name in evaluation.json, label, note, format, and which direction is better (0: neither)."""
_SIDES = ("model", "baseline", "reference")


def results(run: RunRecord) -> Html | None:
    """Table of the evaluation's figures, or None if no evaluate stage has finished."""
    evaluation = run.evaluation
    if not evaluation:
        return None
    figures: Mapping[str, Mapping[str, Any]] = evaluation.get("figures") or {}
    sides = [s for s in _SIDES if any(number(f, s) is not None for f in figures.values())]
    head = [element("th", "Metric", scope="col")]
    head += [element("th", side, element("small", evaluation.get(side)), scope="col", class_="num") for side in sides]
    compared = "baseline" in sides
    if compared:
        head.append(element("th", "Change", scope="col", class_="num"))
    rows = []
    for name, label, note, shown, direction in _ROWS:
        values = figures.get(name)
        if not values:
            continue
        cells = [element("td", shown(v) if (v := number(values, s)) is not None else None, class_="num") for s in sides]
        if compared:
            cells.append(_change(number(values, "model"), number(values, "baseline"), shown, direction))
        rows.append(element("tr", element("th", label, element("small", note), scope="row"), cells))
    left_out = [
        element("li", element("b", name.replace("_", " ")), ": ", reason)
        for name, reason in (evaluation.get("left_out") or {}).items()
    ]
    return element(
        "section",
        element("h2", "Results"),
        element("p", _judged(evaluation), class_="note") if _judged(evaluation) else None,
        element(
            "div",
            element("table", element("thead", element("tr", head)), element("tbody", rows), class_="figures"),
            class_="scroll",
        )
        if rows
        else None,
        [element("p", "Left out:", class_="note"), element("ul", left_out, class_="note")] if left_out else None,
        id="results",
    )


def _judged(evaluation: Mapping[str, Any]) -> str:
    """How the judge's figures came about and how sure they are."""
    counts = evaluation.get("counts") or {}
    prompts, tokens = number(counts, "prompts"), number(counts, "text_tokens")
    parts = []
    if prompts:
        parts.append(f"{plural(int(prompts), 'held-out prompt')} answered by each model.")
    if tokens:
        parts.append(f"{plural(int(tokens), 'token')} of held-out text.")
    gain, wins = evaluation.get("reward_gain"), evaluation.get("win_rate")
    if isinstance(gain, Mapping):
        parts.append(
            f"Reward gain per prompt {signed(number(gain, 'mean'))} "
            f"(95 % interval {figure(number(gain, 'low'))} to {figure(number(gain, 'high'))})."
        )
    if isinstance(wins, Mapping):
        parts.append(
            f"Against the baseline: {wins.get('wins', 0)} won, {wins.get('ties', 0)} tied, "
            f"{wins.get('losses', 0)} lost; "
            f"win rate {percent(number(wins, 'rate'))} "
            f"(95 % interval {percent(number(wins, 'low'))} to {percent(number(wins, 'high'))})."
        )
    return " ".join(parts)


def _change(ours: float | None, theirs: float | None, shown: Callable[[float | None], str], direction: int) -> Html:
    if ours is None or theirs is None:
        return element("td", class_="num")
    difference = ours - theirs
    better = None if not direction or not difference else (difference > 0) == (direction > 0)
    word = {True: "better", False: "worse", None: None}[better]
    amount = f"{signed(100 * difference, 2)} points" if shown is percent else signed(difference)
    return element("td", amount, element("small", word), class_=f"num change {word or ''}".strip())


def samples(run: RunRecord) -> Html | None:
    """The first prompts with the reference answer and the answers of both models side by side, or None."""
    shown = number(run.evaluation, "samples_shown")
    chosen = list(run.samples if shown is None else run.samples[: int(shown)])
    if not chosen:
        return None
    return element(
        "section",
        element("h2", "Before and after"),
        element(
            "p",
            f"The first {len(chosen)} of {plural(len(run.samples), 'held-out prompt')}, in order; none was picked.",
            class_="note",
        ),
        [_sample(run, s) for s in chosen],
        id="samples",
    )


def _sample(run: RunRecord, sample: Mapping[str, Any]) -> Html:
    evaluation = run.evaluation or {}
    ours, theirs = (number(sample.get(side), "reward") for side in ("model", "baseline"))
    columns = []
    for side, label, name in (
        ("reference", "Reference", None),
        ("baseline", "Before", evaluation.get("baseline")),
        ("model", "After", evaluation.get("model")),
    ):
        answer = sample.get(side)
        if not isinstance(answer, Mapping):
            continue
        wins = (
            ours is not None
            and theirs is not None
            and ((side == "model" and ours > theirs) or (side == "baseline" and theirs > ours))
        )
        columns.append(_answer(label, name, answer, wins=wins))
    return element(
        "article",
        element("div", _prompt(sample.get("prompt")), class_="prompt"),
        element("div", columns, class_="answers"),
        class_="sample",
    )


def _prompt(prompt: object) -> list[Html]:
    if not isinstance(prompt, Sequence) or isinstance(prompt, str):
        return [element("p", prompt if prompt is not None else "", dir="auto")]
    only_user = len(prompt) == 1
    return [
        element("p", None if only_user else element("small", m.get("role")), m.get("content"), dir="auto")
        for m in prompt
        if isinstance(m, Mapping)
    ]


def _answer(label: str, name: object, answer: Mapping[str, Any], *, wins: bool) -> Html:
    text, reward, tokens = answer.get("answer"), number(answer, "reward"), number(answer, "tokens")
    scores = []
    if reward is not None:
        scores.append(element("span", "reward ", element("b", figure(reward, 2)), " ✓" if wins else None))
    if tokens is not None:
        scores.append(element("span", plural(int(tokens), "token")))
    if answer.get("finished") is False:
        scores.append(element("span", "cut at the limit"))
    return element(
        "div",
        element("h4", label, element("small", name) if name else None),
        element("p", text if text else element("em", "(empty)"), class_="text", dir="auto"),
        element("p", scores, class_="scores") if scores else None,
        class_="answer wins" if wins else "answer",
    )
