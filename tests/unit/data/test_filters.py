"""Cleaning, splitting and ordering depend on the rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camel_ray.data.dataset import PreparedDataset
from camel_ray.data.filters import content_key, held_out, named_key, question_key, shuffled
from camel_ray.errors import DataError
from camel_ray.manifest import write_manifest

TEXTS = [{"text": f"document number {index}"} for index in range(400)]


def test_the_same_rows_in_another_order_give_the_same_split(prepared: Any, jsonl: Any) -> None:
    first = prepared(source=jsonl(TEXTS), validation=0.1)
    second = prepared(source=jsonl(TEXTS[::-1]), validation=0.1, seed=5)
    assert set(first.validation["text"]) == set(second.validation["text"])
    assert 25 <= len(first.validation) <= 55
    assert len(first.train) + len(first.validation) == 400


def test_more_rows_move_no_row_to_the_other_side(prepared: Any, jsonl: Any) -> None:
    few = prepared(source=jsonl(TEXTS[:200]), validation=0.1)
    many = prepared(source=jsonl(TEXTS), validation=0.1)
    assert set(few.validation["text"]) == {t["text"] for t in TEXTS[:200]} & set(many.validation["text"])


def test_all_answers_to_a_question_stay_on_one_side(prepared: Any, jsonl: Any) -> None:
    rows = [{"prompt": f"question {i // 3}", "completion": f"answer {i}"} for i in range(300)]
    dataset = prepared(source=jsonl(rows), validation=0.3)
    sides = [{row["prompt"][0]["content"] for row in side} for side in (dataset.train, dataset.validation)]
    assert sides[0].isdisjoint(sides[1])
    assert min(map(len, sides)) > 10


def test_a_question_falls_on_the_same_side_in_another_data_set(prepared: Any, jsonl: Any) -> None:
    questions = [f"question {index}" for index in range(200)]
    instructions = prepared(source=jsonl([{"prompt": q, "completion": "a"} for q in questions]), validation=0.2)
    pairs = jsonl([{"prompt": q, "chosen": "a", "rejected": "b"} for q in questions], "p.jsonl")
    preferences = prepared(source=pairs, validation=0.2)
    held = [[row["prompt"][0]["content"] for row in dataset.validation] for dataset in (instructions, preferences)]
    assert held[0] == held[1]


def test_a_small_data_set_still_has_validation_rows(prepared: Any, jsonl: Any) -> None:
    dataset = prepared(source=jsonl(TEXTS[:2]), validation=0.01)
    assert (len(dataset.train), len(dataset.validation)) == (1, 1)


def test_a_single_row_is_a_training_row(prepared: Any, jsonl: Any) -> None:
    dataset = prepared(source=jsonl(TEXTS[:1]), validation=0.5)
    assert (len(dataset.train), len(dataset.validation)) == (1, 0)


def test_the_order_is_shuffled_by_seed_and_repeatable(prepared: Any, jsonl: Any) -> None:
    source = jsonl(TEXTS[:50])
    orders = [prepared(source=source, shuffle=True, seed=seed).train["text"][:] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_the_limit_takes_the_first_rows_and_validation_in_proportion(prepared: Any, jsonl: Any) -> None:
    validation = jsonl([{"text": f"held {index}"} for index in range(10)], "v.jsonl")
    dataset = prepared(source=jsonl(TEXTS[:100]), validation_source=validation, limit=25)
    assert dataset.train["text"][:] == [row["text"] for row in TEXTS[:25]]
    assert len(dataset.validation) == 3


def test_duplicates_differ_in_more_than_case_space_and_unicode_form(prepared: Any, jsonl: Any) -> None:
    same = ["Ein Café", "ein  café\n", "EIN CAFE\u0301"]
    source = jsonl([{"text": text} for text in [*same, "ein cafe"]])
    dataset = prepared(source=source)
    assert dataset.train["text"][:] == ["Ein Café", "ein cafe"]
    assert dataset.report.rejected == {"duplicate": 2}
    assert len(prepared(source=source, deduplicate=False).train) == 4


def test_training_rows_that_stand_in_validation_are_dropped(prepared: Any, jsonl: Any) -> None:
    dataset = prepared(source=jsonl(TEXTS[:10]), validation_source=jsonl(TEXTS[5:15], "v.jsonl"))
    assert (len(dataset.train), len(dataset.validation)) == (5, 10)
    assert dataset.report.rejected == {"also in validation": 5}


def test_length_limits_count_all_fields_and_are_no_fault_of_the_source(prepared: Any, jsonl: Any) -> None:
    rows = [{"prompt": "p" * a, "completion": "c" * b} for a, b in ((1, 1), (5, 5), (6, 5), (20, 1))]
    dataset = prepared(source=jsonl(rows), min_characters=3, max_characters=10, max_rejected=0.0)
    assert len(dataset.train) == 1
    assert dataset.report.rejected == {"too long": 2, "too short": 1}
    assert {example.line for example in dataset.report.examples} == {1, 3, 4}


def test_the_report_keeps_a_hundred_examples_of_all_reasons(prepared: Any, jsonl: Any) -> None:
    rows: list[Any] = [{"text": 1}] * 300 + [{"text": ""}] * 300 + [{"text": "good"}]
    dataset = prepared(source=jsonl(rows), max_rejected=1.0)
    assert dataset.report.rejected == {"empty": 300, "wrong type": 300}
    assert {(e.reason, e.line) for e in dataset.report.examples} == {
        *(("wrong type", line) for line in range(1, 21)),
        *(("empty", line) for line in range(301, 321)),
    }


def test_a_saved_data_set_is_the_same_bytes_each_time_and_loads_as_it_was(
    prepared: Any, jsonl: Any, tmp_path: Path
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "ä"}]} for i in range(2500)
    ]
    digests = []
    for name in ("one", "two"):
        dataset = prepared(source=jsonl(rows), shuffle=True, validation=0.1)
        dataset.save(tmp_path / name)
        digests.append(write_manifest(tmp_path / name)["digest"])
    assert digests[0] == digests[1]
    loaded = PreparedDataset.load(tmp_path / "one")
    assert loaded.report == dataset.report
    assert loaded.train[:] == dataset.train[:]
    assert loaded.validation[7] == dataset.validation[7]


@pytest.mark.parametrize("damage", ["no report", "no file", "cut file", "another report"])
def test_a_damaged_data_set_is_refused(prepared: Any, jsonl: Any, tmp_path: Path, damage: str) -> None:
    prepared(source=jsonl(TEXTS), validation=0.1).save(tmp_path / "d")
    match damage:
        case "no report":
            (tmp_path / "d" / "report.json").unlink()
        case "no file":
            (tmp_path / "d" / "validation.arrow").unlink()
        case "cut file":
            content = (tmp_path / "d" / "train.arrow").read_bytes()
            (tmp_path / "d" / "train.arrow").write_bytes(content[: len(content) // 2])
        case "another report":
            (tmp_path / "d" / "report.json").write_text('{"format": "text"}')
    with pytest.raises(DataError, match=r"does not hold a whole data set .*run its data stage again"):
        PreparedDataset.load(tmp_path / "d")


keys = st.lists(st.binary(min_size=16, max_size=16), max_size=40)


@given(keys, st.floats(min_value=0.01, max_value=0.99))
def test_rows_with_one_key_stay_together_and_no_side_is_empty(keys: list[bytes], share: float) -> None:
    sides = held_out(keys, share)
    assert all(len({side for k, side in zip(keys, sides, strict=True) if k == key}) == 1 for key in keys)
    if len(set(keys)) > 1:
        assert set(sides) == {True, False}


@given(keys)
def test_a_larger_share_holds_out_the_rows_of_a_smaller_one_too(keys: list[bytes]) -> None:
    fractions = [int.from_bytes(key[:8], "big") / 2**64 for key in keys]
    if any(f < 0.3 for f in fractions) and any(f >= 0.6 for f in fractions):
        small, large = held_out(keys, 0.3), held_out(keys, 0.6)
        assert all(b for a, b in zip(small, large, strict=True) if a)


@given(st.lists(st.binary(min_size=16, max_size=16), unique=True, max_size=30), st.integers(0, 2**31 - 1))
def test_shuffling_is_a_permutation_that_ignores_the_order_given(keys: list[bytes], seed: int) -> None:
    order = shuffled(keys, seed)
    assert sorted(order) == list(range(len(keys)))
    backwards = keys[::-1]
    assert [keys[i] for i in order] == [backwards[i] for i in shuffled(backwards, seed)]


def test_keys_separate_fields_names_and_texts() -> None:
    a = {"prompt": [{"role": "user", "content": "x y"}], "completion": "z"}
    b = {"prompt": [{"role": "user", "content": "x"}], "completion": "y z"}
    assert content_key(a, "prompt-completion") != content_key(b, "prompt-completion")
    assert question_key({"text": "x"}, "text") == question_key(b, "prompt-completion") != named_key("x")
