"""`camel-ray render`: the manifests of a file, read as text, without a cluster."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from camel_ray.cli import main as cli
from camel_ray.version import __version__

GOLDEN = Path(__file__).parents[2] / "golden/render"
EXAMPLES = Path(__file__).parents[3] / "examples"


def render(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["render", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def without_spec(text: str) -> str:
    """The output without the pipeline in the ConfigMap, which changes with every default of the schema, and without our
    version.
    """
    text = text.replace(f"camel-ray/trainer:{__version__}", "camel-ray/trainer:VERSION")
    text = re.sub(r"(?m)^  pipeline\.json: .*\n(?:    .*\n)*", "  pipeline.json: PIPELINE\n", text)
    return re.sub(r"demo-[0-9a-f]{10}\b", "demo-DIGEST", text)


@pytest.mark.parametrize("name", ["rayjob", "job"])
def test_manifests_are_the_reviewed_ones(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert render("-f", str(GOLDEN / f"{name}.pipeline.yaml")) == 0
    printed = without_spec(capsys.readouterr().out)
    actual, golden = tmp_path / f"{name}.manifests.yaml", GOLDEN / f"{name}.manifests.yaml"
    actual.write_text(printed, encoding="utf-8")
    assert printed == golden.read_text(encoding="utf-8"), f"if it is meant to change: cp {actual} {golden}"


def test_the_pipeline_comes_first_and_the_stages_share_its_config_map(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "operator.yaml"
    config.write_text("stages: {image: 'own:3'}\n", encoding="utf-8")
    assert render("-f", str(GOLDEN / "job.pipeline.yaml"), "-n", "team-b", "--config", str(config)) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [d["kind"] for d in documents] == [
        "CamelPipeline",
        "ConfigMap",
        "NetworkPolicy",
        "Job",
        "Job",
    ]
    jobs = [d for d in documents if d["kind"] == "Job"]
    assert {d["metadata"]["namespace"] for d in documents} == {"team-b"}
    assert [d["spec"]["template"]["spec"]["containers"][0]["image"] for d in jobs] == ["own:3"] * 2
    assert [d["metadata"]["name"] for d in jobs] == ["demo-text-1", "demo-base-1"]


def test_what_the_administrator_does_not_allow_is_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "operator.yaml"
    config.write_text("policy: {claims: [team-*]}\n", encoding="utf-8")
    assert render("-f", str(GOLDEN / "job.pipeline.yaml"), "--config", str(config)) == 11
    assert capsys.readouterr().err == (
        "spec.cluster.volumes[0].claim: 'shared' is not allowed here: policy.claims of the operator's configuration "
        "has team-*; choose one of these, or ask the administrator for it\n"
    )


def test_one_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert render("-f", str(GOLDEN / "job.pipeline.yaml"), "--stage", "base") == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [d["metadata"]["name"] for d in documents if d["kind"] == "Job"] == ["demo-base-1"]


def test_an_unknown_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert render("-f", str(GOLDEN / "job.pipeline.yaml"), "--stage", "sft") == 2
    assert "the file has no stage 'sft'; it has text, base" in capsys.readouterr().err


def test_what_only_a_cluster_minds_is_a_sentence_and_exit_code_11(capsys: pytest.CaptureFixture[str]) -> None:
    assert render("-f", str(EXAMPLES / "01-quickstart.yaml")) == 11
    out, err = capsys.readouterr()
    assert err == (
        "spec.storage: './camel-ray-runs' is a relative path, and pods share no directory with the one it starts at; "
        "set a URI such as s3://bucket/team, or an absolute path on a claim of spec.cluster.volumes\n"
    )
    assert {d["kind"] for d in yaml.safe_load_all(out)} == {"CamelPipeline", "ConfigMap", "NetworkPolicy", "RayJob"}


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_renders(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render("-f", str(example)) in (0, 11)
    out = capsys.readouterr().out
    assert "&id" not in out
    assert len(list(yaml.safe_load_all(out))) >= 3
