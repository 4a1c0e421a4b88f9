"""`camel-ray ppo replay` says what it needs before it loads anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from camel_ray.cli.main import main

PIPELINE = """
apiVersion: camel-ray.dev/v1alpha1
kind: CamelPipeline
metadata: {name: p}
spec:
  model: ./model
  stages:
  - name: prompts
    data: {source: rows.jsonl}
"""
STAGE = """
  - name: {name}
    ppo: {{prompts: prompts, reward: {{answer: {{}}}}}}
"""


def replay(tmp_path: Path, capsys: pytest.CaptureFixture[str], *names: str, options: tuple[str, ...] = ()) -> str:
    file = tmp_path / "p.yaml"
    file.write_text(PIPELINE + "".join(STAGE.format(name=name) for name in names))
    with pytest.raises(SystemExit) as ended:
        main(["ppo", "replay", "3", "-f", str(file), "--storage", str(tmp_path / "runs"), *options])
    assert ended.value.code == 11
    return capsys.readouterr().err.strip()


def test_a_pipeline_without_ppo_has_nothing_to_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(tmp_path, capsys).startswith("the pipeline has 0 ppo stages")


def test_one_of_several_stages_has_to_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(tmp_path, capsys, "a", "b") == "the pipeline has 2 ppo stages; choose one with --stage (a, b)"
    said = replay(tmp_path, capsys, "a", "b", options=("--stage", "c"))
    assert said == "--stage c: there is no ppo stage of that name; there is a, b"


def test_what_it_is_built_on_has_to_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = replay(tmp_path, capsys, "tuned")
    assert said == "stage 'prompts', which 'tuned' uses, is not done; run the pipeline first"
