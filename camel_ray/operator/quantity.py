"""Kubernetes quantities: their amount, and the one form in which the API server stores them.

The builders write the stored form, so that what was created reads back byte for byte (`1000m` comes back as `1`). The
rules are those of `resource.Quantity`: as few digits as possible, no fraction, no loss.
"""

from __future__ import annotations

import re
from fractions import Fraction

_FORM = re.compile(r"([+-]?)(\d{1,24}(?:\.\d{0,12})?|\.\d{1,12})(?:([KMGTPE]i)|([numkMGTPE]?)|[eE]([+-]?\d{1,2}))")
_BINARY = {f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", 1)}
_DECIMAL = {
    unit: Fraction(1000) ** power for power, unit in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)
}


def amount(text: str) -> Fraction | None:
    """What a quantity such as `1500m` or `16Gi` stands for; None if it is none."""
    parsed = _FORM.fullmatch(text)
    if parsed is None:
        return None
    sign, number, binary, decimal, exponent = parsed.groups()
    factor = Fraction(_BINARY[binary]) if binary else _DECIMAL[decimal or ""]
    if exponent:
        factor = Fraction(10) ** int(exponent)
    return (-1 if sign == "-" else 1) * Fraction(number) * factor


def canonical(text: str) -> str:
    """The form in which the API server stores a quantity; what is no quantity stays as it is."""
    value = amount(text)
    if value is None:
        return text
    if text.startswith("+") or re.search("[eE][+-]?[0-9]", text):
        return text  # stored as written
    if text.endswith("i") and value.denominator == 1 and abs(value) >= 1024:
        return _with_unit(value, {"": Fraction(1), **{unit: Fraction(size) for unit, size in _BINARY.items()}})
    smallest = _DECIMAL["n"]
    if (value / smallest).denominator != 1:  # finer than the API server keeps: it rounds away from zero
        steps = abs(value) / smallest
        value = (-1 if value < 0 else 1) * (steps.numerator // steps.denominator + 1) * smallest
    return _with_unit(value, _DECIMAL)


def mebibytes(size: Fraction) -> str:
    """A number of bytes, rounded up to whole MiB, as a quantity."""
    whole = -(-size.numerator // (size.denominator * 2**20))
    return canonical(f"{whole}Mi")


def _with_unit(value: Fraction, units: dict[str, Fraction]) -> str:
    """The value in the largest unit of which it is a whole multiple."""
    if value == 0:
        return "0"
    unit, size = max(
        ((unit, size) for unit, size in units.items() if (value / size).denominator == 1), key=lambda u: u[1]
    )
    return f"{value / size}{unit}"
