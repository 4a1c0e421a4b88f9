"""The documentation keeps its word: links lead somewhere, and every complete pipeline in it is valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from camel_ray.api.load import load_pipeline, load_pipeline_text

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PIPELINES = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
    if text.startswith("apiVersion:")
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#\s]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("text", PIPELINES)
def test_pipeline_in_the_documentation_is_valid(text: str) -> None:
    assert load_pipeline_text(text, "page").spec.stages


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_example_is_valid(path: Path) -> None:
    assert load_pipeline(path).spec.stages
