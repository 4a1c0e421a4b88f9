"""Behaviour of the text metrics outside the golden cases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camel_ray.evaluation.bleu import corpus_bleu
from camel_ray.evaluation.classification import classification_report
from camel_ray.evaluation.exact_match import exact_match
from camel_ray.evaluation.perplexity import perplexity
from camel_ray.evaluation.rouge import mean_rouge, rouge

WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


def lcs_by_table(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(WORDS, WORDS)
def test_rouge_l_counts_the_longest_common_subsequence(a: list[str], b: list[str]) -> None:
    got = rouge(" ".join(a), " ".join(b)).rougeL
    assert got.precision == pytest.approx(lcs_by_table(a, b) / len(a) if a else 0.0)
    assert got.recall == pytest.approx(lcs_by_table(a, b) / len(b) if b else 0.0)


def test_exact_match_ignores_white_space_but_not_case() -> None:
    assert exact_match(["a  b\n", "A b", "a b c"], ["a b", "a b", "a b"]) == pytest.approx(1 / 3)


def test_perplexity_of_uniform_guesses_is_the_vocabulary_size() -> None:
    import math

    assert perplexity([[math.log(50.0)] * 3], [[1, 1, 1]]).perplexity == pytest.approx(50.0)


def test_perplexity_of_no_tokens_is_undefined_and_not_an_error() -> None:
    got = perplexity([[1.0], []], [[0], []])
    assert (got.mean_nll, got.perplexity, got.mean_sequence_perplexity, got.tokens) == (None, None, None, 0)


@pytest.mark.parametrize("metric", [exact_match, mean_rouge, lambda h, r: corpus_bleu(h, [[x] for x in r])])
@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_lists_that_do_not_pair_up_are_refused(metric: object, hypotheses: list[str], references: list[str]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        metric(hypotheses, references)  # type: ignore[operator]


def test_bleu_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one reference"):
        corpus_bleu(["a", "b"], [["a"], []])


def test_a_class_outside_the_labels_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'c'"):
        classification_report(["a", "b"], ["a", "c"], ["a", "b"])
