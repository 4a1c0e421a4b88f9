"""The few figures of a stage that fit on one line of a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def key_figures(kind: str, metrics: Mapping[str, Any]) -> str:
    """What a finished stage of `kind` is about, in a few words; figures that are missing are left out."""
    parts: list[str] = []
    if kind == "data":
        parts += _number(metrics, "rows_train", "{} rows to train on")
        parts += _number(metrics, "rows_validation", "{} held out")
        rejected = sum(v for v in (metrics.get("rejected") or {}).values() if isinstance(v, int))
        parts += [f"{rejected:,} rejected"] if rejected else []
    elif kind == "tokenizer":
        parts += _number(metrics, "vocab_size", "{} tokens in the vocabulary")
        parts += _number(metrics, "bytes_per_token", "{} bytes per token")
    elif kind in ("pretrain", "sft", "dpo"):
        parts += _change(metrics, "perplexity", "perplexity_untrained", "perplexity")
        if "perplexity" not in metrics:
            parts += _number(metrics, "validation_loss", "loss {}")
        parts += _number(metrics, "tokens_per_second", "{} tokens/s")
    elif kind == "reward":
        parts += _share(metrics, "accuracy", "right on {} of held-out pairs")
        parts += _share(metrics, "accuracy_longer_wins", "'the longer wins' on {}")
    elif kind == "ppo":
        parts += _change(metrics, "reward", "reward_before", "reward_after")
        parts += _number(
            metrics, "kl", "KL {}" + (f" of {figure(metrics['kl_target'])}" if _finite(metrics, "kl_target") else "")
        )
        parts += _change(metrics, "length", "response_length_before", "response_length_after")
    elif kind == "evaluate":
        parts += _number(metrics, "perplexity", "perplexity {}")
        parts += _share(metrics, "win_rate", "wins {}")
        parts += _number(metrics, "reward", "reward {}")
    return ", ".join(parts)


def figure(value: float) -> str:
    """A number with three significant digits, and with thousands separated."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text and float(value).is_integer() else text


def duration(seconds: float) -> str:
    """`4.2 s`, `3:05 min`, `2:10 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60) if seconds >= 3600 else 0
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


def _finite(metrics: Mapping[str, Any], name: str) -> bool:
    value = metrics.get(name)
    return isinstance(value, int | float) and math.isfinite(value)


def _number(metrics: Mapping[str, Any], name: str, text: str) -> list[str]:
    return [text.format(figure(metrics[name]))] if _finite(metrics, name) else []


def _share(metrics: Mapping[str, Any], name: str, text: str) -> list[str]:
    return [text.format(f"{100 * metrics[name]:.0f} %")] if _finite(metrics, name) else []


def _change(metrics: Mapping[str, Any], label: str, before: str, after: str) -> list[str]:
    if not _finite(metrics, after):
        return []
    start = f"{figure(metrics[before])} → " if _finite(metrics, before) else ""
    return [f"{label} {start}{figure(metrics[after])}"]
