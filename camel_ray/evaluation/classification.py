"""Precision, recall, F1 and confusion of predicted classes, by scikit-learn (Manning et al. 2008, ch. 8 and 13)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

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

    def averaged(how: Literal["micro", "macro", "weighted"]) -> Scores:
        p, r, f, _ = precision_recall_fscore_support(true, predicted, labels=labels, average=how, zero_division=0.0)
        return Scores(float(p), float(r), float(f))

    columns = precision_recall_fscore_support(true, predicted, labels=labels, average=None, zero_division=0.0)
    per_class = tuple(ClassScores(float(p), float(r), float(f), int(s)) for p, r, f, s in zip(*columns, strict=True))
    confusion = tuple(tuple(int(n) for n in row) for row in confusion_matrix(true, predicted, labels=labels))
    return ClassificationReport(
        confusion,
        per_class,
        averaged("micro"),
        averaged("macro"),
        averaged("weighted"),
        float(accuracy_score(true, predicted)),
    )
