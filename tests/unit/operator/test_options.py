"""The command line of the operator: what ends it before it talks to a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def operator(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "camel_ray.operator.main", "--log-format=text", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_broken_configuration_file_ends_it_with_a_line_per_mistake(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("stages: {images: a:1}\npolicy: {secrets: all}\n", encoding="utf-8")
    done = operator(f"--config={file}")
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert f"{file}:1: stages.images: is not known here. Did you mean 'image'?" in first
    assert f"{file}:2: policy.secrets: should be a list of texts, not 'all'" in second


def test_the_image_is_no_option_any_more() -> None:
    done = operator("--image=a:1")
    assert done.returncode == 2
    assert "unrecognized arguments: --image=a:1" in done.stderr
