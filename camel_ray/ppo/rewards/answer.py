"""Compares the last number of an answer with the right one, as for GSM8K and other sums.

Numbers are compared exactly, as fractions: 0.1 + 0.2 is 0.3 here, 1e2 is 100.00, and 0.33 is not 1/3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from camel_ray.api.stages.ppo_reward import AnswerRewardSpec
from camel_ray.errors import RewardError
from camel_ray.ppo.rewards.score import DEMONSTRATION, Answered

# Digits beyond this are noise of a policy that repeats itself; int() would take quadratic time over them.
_MAX_DIGITS = 300
_MAX_EXPONENT = 400

_MINUS = str.maketrans({"\u2212": "-", "\ufe63": "-", "\uff0d": "-"})
_NUMBER = re.compile(
    r"""
    (?: (?<![\w)\]}%.]) (?P<sign>[-+]) )?     # not a sign: the minus of 10-3, (a)-3, 5%-3
    (?: \\? [$€£¥₹] (?P<inner>[-+])? )?       # -$5 and $-5; LaTeX writes \$
    (?:
        \\[dt]?frac \s* \{ (?P<top>-?[0-9]+) \} \s* \{ (?P<bottom>[0-9]+) \}
      | (?: (?P<whole>[0-9]+) [ ]{1,3} )?
        (?<![0-9./]) (?P<over>[0-9]+) [ ]? / [ ]? (?P<under>[0-9]+) (?! [0-9/] | \.[0-9] )
      | (?P<integer> [0-9]{1,3} (?: [,\u00a0\u2009\u202f] [0-9]{3} )+ (?![0-9]) | [0-9]+ )?
        (?P<decimals> (?(integer) | (?<![0-9.])) \. [0-9]+ )?
        (?(integer) | (?(decimals) | (?!)))
        (?: [eE] (?P<exponent>[-+]?[0-9]+)
          | \s* (?: [×*x] | \\times | \\cdot ) \s* 10 \s* (?: \^ | \*\* ) \s* \{? (?P<power>[-+]?[0-9]+) \}? )?
    )
    """,
    re.VERBOSE,
)
# The number is nearly always in the last line, and reading it all takes half a millisecond.
_SHORT, _READ_CHARACTERS = 200, 2000
_MARGIN = 50


def last_number(text: str) -> Fraction | None:
    r"""The last number of a text, or None.

    Read as one number: thousands separators (`1,234`), decimals (`.5`), signs (also the Unicode minus), `1e-3` and
    `1.5 x 10^3`, fractions (`3/4`, `1 3/4`, `\frac{3}{4}`). Currency, `%` and units around a number are ignored, so
    25 % is 25. A minus after a word, digit or bracket is an operator or a hyphen and no sign. Only the last 2000
    characters are read.
    """
    for window in (_SHORT, _READ_CHARACTERS):
        last = None
        for match in _NUMBER.finditer(text[-window:].translate(_MINUS)):
            last = match
        # Near the start of the window a number may have been cut off.
        if last is not None and (last.start() >= _MARGIN or window == _READ_CHARACTERS):
            return _value(last)
    return None


def _value(match: re.Match[str]) -> Fraction | None:
    """None for a number nobody writes: hundreds of digits, or a fraction over zero."""
    part = match.groupdict()
    if max((len(text) for text in part.values() if text), default=0) > _MAX_DIGITS:
        return None
    sign = -1 if (part["sign"] == "-") != (part["inner"] == "-") else 1
    top, bottom = part["top"] or part["over"], part["bottom"] or part["under"]
    if top is not None and bottom is not None:
        if int(bottom) == 0:
            return None
        fraction = Fraction(int(top), int(bottom))
        # 2 3/4 is a mixed number, 2 20/4 is two numbers.
        return sign * (fraction + int(part["whole"])) if part["whole"] and fraction < 1 else sign * fraction
    exponent = int(part["exponent"] or part["power"] or 0)
    if abs(exponent) > _MAX_EXPONENT:
        return None
    integer = re.sub(r"[^0-9]", "", part["integer"] or "0")
    return sign * Fraction(integer + (part["decimals"] or "")) * Fraction(10) ** exponent


class AnswerCheck:
    """Scores answers by `spec.correct` and `spec.wrong` against the right ones in the prompts' rows."""

    def __init__(self, spec: AnswerRewardSpec) -> None:
        self.spec = spec

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """A score for each answer. Raises RewardError for a row without a right answer."""
        right = [self._right(a.row, f"the row of the prompt {a.prompt[:60]!r}") for a in answers]
        return [
            self.spec.correct if last_number(a.answer) == number else self.spec.wrong
            for a, number in zip(answers, right, strict=True)
        ]

    def check(self, rows: Iterable[str]) -> None:
        """Raise RewardError for the first row (JSON text) without a right answer; rows are counted from 1."""
        for number, row in enumerate(rows, start=1):
            self._right(row, f"row {number} of the prompts")

    def _right(self, row: str, where: str) -> Fraction:
        # Numbers stay text: a float would not be the decimal that stands in the data.
        columns = json.loads(row, parse_float=str, parse_int=str, parse_constant=str)
        own = "answer" not in columns and DEMONSTRATION in columns
        field = self.spec.field or (DEMONSTRATION if own else "answer")
        if field not in columns:
            others = ", ".join(sorted(columns)) or "none"
            raise RewardError(
                f"reward.answer.field: {where} has no column '{field}' (it has: {others}); "
                "name the column with the right answer"
            )
        text = columns[field]
        number = last_number(text.rpartition("####")[2]) if isinstance(text, str) else None
        if number is None:
            raise RewardError(
                f"reward.answer.field: column '{field}' of {where} holds no number: "
                f"{str(text)[-60:]!r}; correct the row or leave it out"
            )
        return number
