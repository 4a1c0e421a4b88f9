"""Quantities in the form in which the API server stores them; `tests/cluster/test_manifests.py` asks a real one."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camel_ray.operator.quantity import amount, canonical, mebibytes

STORED = {
    "1": "1",
    "1000m": "1",
    "1500m": "1500m",
    "1.5": "1500m",
    "0.5": "500m",
    "+2": "+2",
    "1024Mi": "1Gi",
    "0.5Gi": "512Mi",
    "1536Mi": "1536Mi",
    "1Gi": "1Gi",
    "1024": "1024",
    "1023Ki": "1023Ki",
    "4000000k": "4G",
    "64G": "64G",
    "0": "0",
    "0Gi": "0",
    "0.0001": "100u",
    "1e3": "1e3",
    "2E": "2E",
}


@pytest.mark.parametrize(("written", "stored"), STORED.items())
def test_a_quantity_gets_its_stored_form(written: str, stored: str) -> None:
    assert canonical(written) == stored


@pytest.mark.parametrize("text", ["", "16 Gi", "4GB", "1,5", "a", "1e999", "--1", "1.5.2", "9" * 99, "Gi"])
def test_what_is_no_quantity_stays_as_it_is(text: str) -> None:
    assert amount(text) is None
    assert canonical(text) == text


@given(
    number=st.integers(0, 10**9) | st.decimals(0, 10**6, places=3),
    unit=st.sampled_from(["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"]),
)
def test_the_stored_form_means_the_same_and_is_stable(number: object, unit: str) -> None:
    text = f"{number}{unit}"
    stored = canonical(text)
    assert amount(stored) == amount(text)
    assert canonical(stored) == stored


def test_bytes_are_rounded_up_to_whole_mebibytes() -> None:
    assert mebibytes(Fraction(2**30)) == "1Gi"
    assert mebibytes(Fraction(2**30 + 1)) == "1025Mi"
