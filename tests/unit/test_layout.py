"""Habits of the whole repository that no other tool checks: public names, file sizes, machine paths, import weight."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import camel_ray

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "transformers", "deepspeed", "trl", "datasets", "pyarrow", "numpy", "pandas")
TEXT = {".cfg", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml", ".html", ".css", ".js", ""}
OWN = ("camel_ray", "tests", "docs", "examples", "jobs", "charts", "manifests", "benchmarks", "tools", ".ci")


def own_files() -> Iterator[Path]:
    for folder in OWN:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix in TEXT and "__pycache__" not in path.parts:
                yield path
    yield from (p for p in sorted(ROOT.iterdir()) if p.is_file() and p.suffix in TEXT)


def test_public_names_are_exactly_these() -> None:
    assert camel_ray.__all__ == [
        "CamelError",
        "CamelPipeline",
        "PermanentError",
        "RetryableError",
        "__version__",
        "load_pipeline",
    ]
    assert all(hasattr(camel_ray, name) for name in camel_ray.__all__)


def test_no_python_file_has_more_than_500_lines() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in own_files() if p.suffix == ".py"}
    assert {name: length for name, length in lengths.items() if length > 500} == {}
    assert len(lengths) > 20


def test_every_module_says_why_it_exists() -> None:
    modules = [p for p in (ROOT / "camel_ray").rglob("*.py") if p.read_text().strip()]
    silent = [str(p.relative_to(ROOT)) for p in modules if not p.read_text().lstrip().startswith(('"""', 'r"""'))]
    assert silent == []


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    home = re.compile(r"(?<![\w.:{}])/(?:root|home/\w+|Users/\w+|work)/")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in own_files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if home.search(line)
    ]
    assert found == []


def test_constraints_pin_every_line_and_name_no_host() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.lstrip().startswith("#")]
    assert len(lines) > 100
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[^\s/@]+", line)] == []


@pytest.mark.parametrize("module", ["camel_ray", "camel_ray.cli.main"])
def test_import_stays_light(module: str) -> None:
    code = f"import {module}, sys; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")
