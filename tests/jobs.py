"""What the tests of jobs/ share: its files, and the pipelines in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from camel_ray.api.load import load_pipeline, load_pipeline_text
from camel_ray.api.pipeline import CamelPipeline

JOBS = Path(__file__).parents[1] / "jobs"
RAYJOBS = sorted((JOBS / "rayjobs").glob("*.yaml"))
PIPELINES = sorted((JOBS / "pipelines").glob("*.yaml"))
SPEC_KEY = "pipeline.yaml"

Object = dict[str, Any]


def config_map_and_rayjob(path: Path) -> tuple[Object, Object]:
    """The two objects of a file of jobs/rayjobs."""
    config_map, rayjob = yaml.safe_load_all(path.read_text())
    return config_map, rayjob


def pipeline_of(path: Path) -> CamelPipeline:
    """The pipeline that a file of jobs/ runs."""
    if path.parent.name == "rayjobs":
        return load_pipeline_text(config_map_and_rayjob(path)[0]["data"][SPEC_KEY], path.name)
    return load_pipeline(path)
