"""The text metrics agree with the reference values of tests/golden, whose `about` fixes the conventions."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from camel_ray.evaluation.bleu import corpus_bleu
from camel_ray.evaluation.classification import classification_report
from camel_ray.evaluation.perplexity import perplexity
from camel_ray.evaluation.rouge import mean_rouge, rouge

GOLDEN = Path(__file__).parents[2] / "golden"


def cases(topic: str) -> list[Any]:
    document = json.loads((GOLDEN / f"{topic}.json").read_text(encoding="utf-8"))
    return [pytest.param(c["inputs"], c["expected"], id=c["name"]) for c in document["cases"]]


def close(value: Any) -> Any:
    return pytest.approx(value, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("inputs", "expected"), cases("bleu"))
def test_bleu_agrees_with_golden(inputs: dict[str, Any], expected: dict[str, Any]) -> None:
    got = corpus_bleu(inputs["hypotheses"], inputs["references"])
    assert list(got.matches) == expected["matches"]
    assert list(got.totals) == expected["totals"]
    assert (got.hypothesis_length, got.reference_length) == (expected["hyp_len"], expected["ref_len"])
    assert list(got.precisions) == close(expected["precisions"])
    assert got.brevity_penalty == close(expected["brevity_penalty"])
    assert got.bleu == close(expected["bleu"])


@pytest.mark.parametrize(("inputs", "expected"), cases("rouge"))
def test_rouge_agrees_with_golden(inputs: dict[str, Any], expected: dict[str, Any]) -> None:
    for hypothesis, reference, wanted in zip(
        inputs["hypotheses"], inputs["references"], expected["pairs"], strict=True
    ):
        got = asdict(rouge(hypothesis, reference))
        for name, values in wanted.items():
            assert got[name] == close(values)
    mean = mean_rouge(inputs["hypotheses"], inputs["references"])
    assert {f"{k}_f1": v for k, v in asdict(mean).items()} == close(expected["mean"])


@pytest.mark.parametrize(("inputs", "expected"), cases("classification"))
def test_classification_agrees_with_golden(inputs: dict[str, Any], expected: dict[str, Any]) -> None:
    got = classification_report(inputs["y_true"], inputs["y_pred"], inputs["labels"])
    assert [list(row) for row in got.confusion] == expected["confusion"]
    for name, values in expected["per_class"].items():
        assert [getattr(c, name) for c in got.per_class] == close(values)
    for average in ("micro", "macro", "weighted"):
        assert asdict(getattr(got, average)) == close(expected[average])
    assert got.accuracy == close(expected["accuracy"])


@pytest.mark.parametrize(("inputs", "expected"), cases("perplexity"))
def test_perplexity_agrees_with_golden(inputs: dict[str, Any], expected: dict[str, Any]) -> None:
    got = perplexity(inputs["nll"], inputs["mask"])
    assert got.mean_nll == close(expected["mean_nll"])
    assert got.perplexity == close(expected["perplexity"])
    assert got.mean_sequence_perplexity == close(expected["mean_sequence_perplexity"])
    for name in ("sequence_mean_nll", "sequence_perplexity"):
        for value, wanted in zip(getattr(got, name), expected[name], strict=True):
            assert value is None if wanted is None else value == close(wanted)
