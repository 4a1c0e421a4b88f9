"""Precision, recall, F1 and confusion of predicted classes (Manning et al. 2008, ch. 8 and 13).

Own code, because transformers imports scikit-learn wherever it is installed: three seconds at the start of every
process, for forty lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

_Label = TypeVar("_Label", int, str)


@dataclass(frozen=True)
class Scores:
    """Precision, recall and F1 in [0, 1]; 0 / 0 is 0."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ClassScores(Scores):
    """Scores of one class."""

    support: int
    """Items that truly belong to the class."""


@dataclass(frozen=True)
class ClassificationReport:
    """How predicted classes compare with true ones. Rows and columns follow the `labels` given."""

    confusion: tuple[tuple[int, ...], ...]
    """Entry [i][j]: items of true class i predicted as class j."""
    per_class: tuple[ClassScores, ...]
    micro: Scores
    """From counts summed over the classes."""
    macro: Scores
    """Plain mean over the classes; macro F1 is the mean of the F1 values."""
    weighted: Scores
    """Mean weighted by support."""
    accuracy: float


def classification_report(
    true: Sequence[_Label], predicted: Sequence[_Label], labels: Sequence[_Label]
) -> ClassificationReport:
    """Compare `predicted` with `true`; `labels` are all classes in the wanted order, also those that never occur.

    Raises ValueError if the lengths differ, there are no items, or an item has a class outside `labels`.
    """
    if len(true) != len(predicted) or not true:
        raise ValueError(f"{len(true)} true classes need as many predicted ones (got {len(predicted)}), at least one")
    if unknown := sorted({*true, *predicted} - {*labels}, key=str):
        raise ValueError(f"classes {unknown} are not in labels {list(labels)}")

    position = {label: index for index, label in enumerate(labels)}
    confusion = [[0] * len(labels) for _ in labels]
    for t, p in zip(true, predicted, strict=True):
        confusion[position[t]][position[p]] += 1
    hits = [row[i] for i, row in enumerate(confusion)]
    support = [sum(row) for row in confusion]
    claimed = [sum(column) for column in zip(*confusion, strict=True)]
    per_class = []
    for count, named, real in zip(hits, claimed, support, strict=True):
        scores = _scores(count, named, real)
        per_class.append(ClassScores(scores.precision, scores.recall, scores.f1, real))
    return ClassificationReport(
        tuple(map(tuple, confusion)),
        tuple(per_class),
        micro=_scores(sum(hits), sum(claimed), sum(support)),
        macro=_mean(per_class, [1] * len(labels)),
        weighted=_mean(per_class, support),
        accuracy=_ratio(sum(hits), len(true)),
    )


def _scores(hits: int, claimed: int, support: int) -> Scores:
    precision, recall = _ratio(hits, claimed), _ratio(hits, support)
    return Scores(precision, recall, _ratio(2 * precision * recall, precision + recall))


def _mean(scores: Sequence[Scores], weights: Sequence[int]) -> Scores:
    def mean(values: Iterable[float]) -> float:
        return _ratio(sum(v * w for v, w in zip(values, weights, strict=True)), sum(weights))

    return Scores(mean(s.precision for s in scores), mean(s.recall for s in scores), mean(s.f1 for s in scores))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
