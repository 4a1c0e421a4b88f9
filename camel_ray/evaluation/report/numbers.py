"""Figures as text: short, aligned, and the same on every machine (UTC, no locale)."""

from __future__ import annotations

import math
from datetime import UTC, datetime

MISSING = "–"
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def figure(value: float | None, digits: int = 3) -> str:
    """A number with about `digits` significant digits: 0.0312, 2.31, 61.1, 2,048, 1.2e-05."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    size = abs(value)
    if size < 10 ** -(digits + 1) or size >= 1e7:
        return scientific(value, digits)
    if float(value).is_integer():
        return minus(f"{value:,.0f}")
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return minus(f"{value:,.{decimals}f}")


def signed(value: float | None, digits: int = 3) -> str:
    """A number with its sign: +0.74, -1.2."""
    shown = figure(value, digits)
    return f"+{shown}" if value is not None and math.isfinite(value) and value > 0 else shown


def count(value: float | None) -> str:
    """A large count in short form: 950, 12.3k, 1.32M."""
    if value is None or not math.isfinite(value):
        return MISSING
    for size, unit in _UNITS:
        if abs(value) >= 10 * size or (abs(value) >= size and size > 1e3):
            return f"{figure(value / size)}{unit}"
    return figure(value)


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal: 83.1 %."""
    if value is None or not math.isfinite(value):
        return MISSING
    shown = "<0.1" if 0 < value < 5e-4 else minus(f"{100 * value:.1f}")
    return f"{shown}\u202f%"


def duration(seconds: float | None) -> str:
    """A time span: 0.4 s, 37 s, 4 min 12 s, 2 h 05 min, 3 d 4 h."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def moment(epoch: float | None) -> str:
    """A point in time in UTC: 2026-01-31 14:05 UTC."""
    return MISSING if epoch is None else datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M UTC")


def scientific(value: float, digits: int = 3) -> str:
    """Mantissa and exponent without padding: 1.2e-5, 3e9."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return minus(f"{float(mantissa):g}e{int(exponent)}")


def plural(number: int, noun: str) -> str:
    """`1 stage`, `8 stages`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def minus(shown: str) -> str:
    """A formatted number with a real minus sign."""
    return shown.replace("-", "\u2212", 1) if shown.startswith("-") else shown
