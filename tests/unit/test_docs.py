"""The documentation keeps its word: links lead somewhere, and every complete pipeline in it is valid."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from camel_ray.api.load import load_pipeline, load_pipeline_text
from camel_ray.operator.problems import cluster_problems

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "jobs").rglob("*.md")])
PIPELINES = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
    if "kind: CamelPipeline" in text
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#\s]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def anchors(page: Path) -> set[str]:
    """What a link may name behind `#`: the headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.M), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_name_headings_that_there_are(page: Path) -> None:
    named = re.findall(r"\]\((?!https?://)([^)#\s]*)#([^)\s]+)\)", page.read_text())
    assert [(to, at) for to, at in named if at not in anchors(page.parent / to if to else page)] == []


@pytest.mark.parametrize("text", PIPELINES)
def test_pipeline_in_the_documentation_is_valid(text: str) -> None:
    assert load_pipeline_text(text, "page").spec.stages


@pytest.mark.parametrize("text", [p for p in PIPELINES if "cluster:" in str(p.values[0])])
def test_pipeline_that_is_shown_for_a_cluster_can_run_on_one(text: str) -> None:
    assert cluster_problems(load_pipeline_text(text, "page"), None) == []


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_example_is_valid(path: Path) -> None:
    assert load_pipeline(path).spec.stages


QUOTED = re.findall(r"^> (.+)$", (ROOT / "docs/guide/troubleshooting.md").read_text(), re.MULTILINE)


@functools.cache
def sentences() -> list[str]:
    """The texts in the package's code; a NUL for each value that is put in."""
    found = []
    for path in (ROOT / "camel_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("message", QUOTED)
def test_a_message_of_the_troubleshooting_guide_is_one_of_the_code(message: str) -> None:
    said = re.compile(".*".join(re.escape(part) for part in message.split("...")), re.DOTALL)
    assert any(said.search(text) for text in sentences())


NAMED = sorted(
    {
        (page.relative_to(ROOT).as_posix(), found)
        for page in PAGES
        for found in re.findall(r"tests/[\w/]+\.py(?:::\w+)?", page.read_text())
    }
)


@pytest.mark.parametrize(("page", "named"), NAMED)
def test_a_test_that_the_documentation_names_exists(page: str, named: str) -> None:
    file, _, name = named.partition("::")
    assert (ROOT / file).is_file(), page
    assert not name or re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), page


@pytest.mark.parametrize(
    "page",
    [*PAGES, *sorted((ROOT / "jobs").rglob("*.yaml")), *sorted((ROOT / "examples").glob("*.yaml"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_files_that_commands_name_exist(page: Path) -> None:
    named = re.findall(r"(?<![\w/.])((?:charts|examples|jobs|manifests)/[-\w./]*\w)", page.read_text())
    assert [file for file in named if not (ROOT / file).exists()] == []
