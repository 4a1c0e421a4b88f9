"""The check of an answer's last number: how numbers are read, and that they are compared exactly."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camel_ray.api.stages.ppo_reward import AnswerRewardSpec
from camel_ray.data.formats import Binding
from camel_ray.data.readers import Place, SourceRow
from camel_ray.errors import RewardError
from camel_ray.ppo.rewards.answer import AnswerCheck, last_number
from camel_ray.ppo.rewards.score import Answered


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", "42"),
        ("So she has 18 dollars left.", "18"),
        ("#### 42", "42"),
        (r"\boxed{42}", "42"),
        ("**42**", "42"),
        ("42kg", "42"),
        ("1,234,567", "1234567"),
        ("1\u202f234", "1234"),
        ("we count 1, 2, 3", "3"),
        ("1,2,3", "3"),
        ("12,34", "34"),
        ("$1,234.50.", "1234.5"),
        (r"\$18", "18"),
        ("€ 5", "5"),
        ("25%", "25"),
        ("2.50", "2.5"),
        (".5", "0.5"),
        ("100.", "100"),
        ("-5", "-5"),
        ("x=-5", "-5"),
        ("(-4)", "-4"),
        ("+7", "7"),
        ("\u22127", "-7"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("10-3", "3"),
        ("5 - 3", "3"),
        ("GSM-8", "8"),
        ("2*-3", "-3"),
        ("1e-3", "1/1000"),
        ("6.02E23", "602000000000000000000000"),
        ("1.5 x 10^3", "1500"),
        (r"1.5\times10^{-3}", "3/2000"),
        ("3 x 10 = 30", "30"),
        ("3/4", "3/4"),
        ("3 / 4", "3/4"),
        ("1 3/4", "7/4"),
        ("-1 3/4", "-7/4"),
        ("2 20/4", "5"),
        (r"\frac{3}{4}", "3/4"),
        (r"-\dfrac{3}{4}", "-3/4"),
        ("12 / 4 = 3", "3"),
        ("12/25/2020", "2020"),
        ("-0", "0"),
    ],
)
def test_numbers_as_people_and_models_write_them(text: str, number: str) -> None:
    assert last_number(text) == Fraction(number)
    assert last_number(f"first 99, then {text} and so on") == Fraction(number)
    for more in range(120, 220, 3):  # wherever it stands relative to the part that is read first
        assert last_number(f"first 99, then {text} {'x' * more}") == Fraction(number)


@pytest.mark.parametrize(
    "text", ["", "no number", "...", "$", "-", "5/0", "9" * 5000, "1e999999999", "½", "1" + "0" * 400]
)
def test_texts_without_a_usable_number(text: str) -> None:
    assert last_number(text) is None


@given(st.text(alphabet="0123456789.,-+/$%eE x^*{}\\fracbox#(\u2212\u00a0 ", max_size=60))
def test_any_text_is_read_without_an_exception(text: str) -> None:
    number = last_number(text)
    assert number is None or isinstance(number, Fraction)


@given(st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**6))
def test_fractions_survive(number: Fraction) -> None:
    assert last_number(f"it is {number}.") == number


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**12), max_value=10**12))
def test_decimals_survive_with_separators(number: Any) -> None:
    assert last_number(f"= {number:,.6f} in all") == Fraction(number)


def answered(text: str, /, **row: Any) -> Answered:
    return Answered("How many?", text, json.dumps(row))


SOLUTION = (
    "Each of 3 boxes holds 12 eggs, so 3 * 12 = <<3*12=36>>36.\nShe adds 1,200 more: 36 + 1200 = 1236.\n#### 1,236"
)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("3 * 12 = 36, and 36 + 1200 = 1236.\n#### 1236", 1.0),
        ("The total is 1,236 eggs.", 1.0),
        ("1236.0", 1.0),
        ("#### 1,235", 0.0),
        ("1236 eggs, I checked it 2 times.", 0.0),
        ("I do not know.", 0.0),
        ("", 0.0),
    ],
)
def test_a_solution_in_the_format_of_gsm8k(answer: str, score: float) -> None:
    assert AnswerCheck(AnswerRewardSpec())([answered(answer, answer=SOLUTION)]) == [score]


def test_scores_and_column_are_those_of_the_spec() -> None:
    check = AnswerCheck(AnswerRewardSpec(field="sum", correct=2.0, wrong=-0.5))
    assert check([answered("4", sum="4"), answered("5", sum="4"), answered("", sum="4")]) == [2.0, -0.5, -0.5]


@pytest.mark.parametrize(
    ("right", "answer", "equal"),
    [
        (0.3, "0.3", True),
        (0.1, "0.1000", True),
        (0.1, "1/10", True),
        (42, "42.0", True),
        (12345678901234567890123, "12345678901234567890123", True),
        (12345678901234567890123, "12345678901234567890124", False),
        ("1/3", "0.333333333333333333", False),
        (0, "0", True),
        (-3, "3", False),
    ],
)
def test_numbers_are_compared_exactly(right: object, answer: str, equal: bool) -> None:
    assert AnswerCheck(AnswerRewardSpec())([answered(answer, answer=right)]) == [1.0 if equal else 0.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "level": 1}, r"has no column 'answer' \(it has: level, question\); name the column"),
        ({}, r"has no column 'answer' \(it has: none\)"),
        ({"answer": "none of these"}, "column 'answer' of .* holds no number: 'none of these'; correct the row"),
        ({"answer": "7 apples #### many"}, "holds no number"),
        ({"answer": None}, "holds no number: 'None'"),
        ({"answer": True}, "holds no number: 'True'"),
        ({"answer": [1]}, "holds no number"),
        ({"answer": float("nan")}, "holds no number: 'NaN'"),
    ],
)
def test_rows_without_a_right_answer_are_errors_and_no_zeros(row: dict[str, Any], message: str) -> None:
    check = AnswerCheck(AnswerRewardSpec())
    with pytest.raises(RewardError, match=f"^reward.answer.field: .*{message}") as raised:
        check([answered("1", answer="1"), answered("1", **row)])
    assert "the row of the prompt 'How many?'" in str(raised.value)
    with pytest.raises(RewardError, match=f"^reward.answer.field: .*{message}") as raised:
        check.check(['{"answer": "1"}', json.dumps(row)])
    assert "row 2 of the prompts" in str(raised.value)


def test_the_data_layer_keeps_the_column_of_a_prompt_and_completion_file() -> None:
    binding = Binding("prompt-completion", {"prompt": "question", "completion": "answer"})
    columns = {"question": "How many eggs?", "answer": SOLUTION}
    row = binding.normalise(SourceRow(columns, Place("train.jsonl", 1, "line")))["row"]
    assert AnswerCheck(AnswerRewardSpec())([Answered("How many eggs?", "1236", row)]) == [1.0]
