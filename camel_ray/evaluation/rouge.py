"""ROUGE-1, ROUGE-2 and sentence-level ROUGE-L (Lin 2004, beta = 1) on lower-cased words split at white space.

Own code: the usual package strips everything but a-z and 0-9 from the text, which leaves nothing of many languages and
of operators in code, and it needs nltk for a stemmer that is off here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Overlap:
    """Precision, recall and their harmonic mean, in [0, 1]; 0 / 0 is 0."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Rouge:
    """ROUGE of one pair of texts."""

    rouge1: Overlap
    rouge2: Overlap
    rougeL: Overlap


@dataclass(frozen=True)
class MeanRouge:
    """Plain means of the pairs' F1 values."""

    rouge1: float
    rouge2: float
    rougeL: float


def rouge(hypothesis: str, reference: str) -> Rouge:
    """ROUGE of one hypothesis against one reference."""
    words, wanted = hypothesis.lower().split(), reference.lower().split()
    return Rouge(_ngram_overlap(words, wanted, 1), _ngram_overlap(words, wanted, 2), _lcs_overlap(words, wanted))


def mean_rouge(hypotheses: Sequence[str], references: Sequence[str]) -> MeanRouge:
    """Mean F1 values over pairs. Raises ValueError if the lengths differ or there are no pairs."""
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(f"{len(hypotheses)} hypotheses need as many references (got {len(references)}), at least one")
    pairs = [rouge(h, r) for h, r in zip(hypotheses, references, strict=True)]
    return MeanRouge(
        sum(p.rouge1.f1 for p in pairs) / len(pairs),
        sum(p.rouge2.f1 for p in pairs) / len(pairs),
        sum(p.rougeL.f1 for p in pairs) / len(pairs),
    )


def _ngram_overlap(words: list[str], wanted: list[str], n: int) -> Overlap:
    ours, theirs = (Counter(zip(*(w[k:] for k in range(n)), strict=False)) for w in (words, wanted))
    return _overlap((ours & theirs).total(), ours.total(), theirs.total())


def _lcs_overlap(words: list[str], wanted: list[str]) -> Overlap:
    return _overlap(_lcs_length(words, wanted), len(words), len(wanted))


def _lcs_length(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, a row of the table per step in an integer's bits (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        hits = row & places.get(word, 0)
        row = (row + hits) | (row - hits)
    return len(a) - (row & full).bit_count()


def _overlap(common: int, ours: int, theirs: int) -> Overlap:
    precision = common / ours if ours else 0.0
    recall = common / theirs if theirs else 0.0
    total = precision + recall
    return Overlap(precision, recall, 2 * precision * recall / total if total else 0.0)
