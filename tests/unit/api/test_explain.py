"""`camel-ray explain` and the generated files say what the schema says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from camel_ray.api import generate, hf_arguments
from camel_ray.api.explain import explain, field_help, yaml_value
from camel_ray.api.fields import expected, fields, models
from camel_ray.api.pipeline import STAGE_KINDS, CamelPipeline, Stage
from camel_ray.api.reference import reference_markdown
from camel_ray.api.schema import DIALECT, json_schema, schema_text
from camel_ray.errors import SpecError


@pytest.mark.parametrize(
    "path",
    [
        "ppo.kl.target",
        "spec.stages.ppo.kl.target",
        "spec.stages[3].ppo.kl.target",
        "stages.ppo.kl.target",
        ".ppo.kl.target",
    ],
)
def test_short_and_full_paths_mean_the_same_field(path: str) -> None:
    assert field_help(path).path == "spec.stages.ppo.kl.target"
    assert field_help(path).default == "6.0"


def test_a_field_is_shown_with_type_default_and_description() -> None:
    text = explain("ppo.kl.estimator")
    assert text.splitlines()[0] == "spec.stages.ppo.kl.estimator"
    assert "Type:     one of k1, k2, k3" in text
    assert "Default:  k1" in text
    assert "Schulman 2020" in text


def test_a_mapping_lists_its_fields_with_the_required_ones_first() -> None:
    text = explain("ppo")
    assert text.index("\n  prompts ") < text.index("\n  reward ") < text.index("\n  model ")
    assert "(required)" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_the_file_itself_is_shown_without_a_path() -> None:
    assert [f.name for f in field_help("").fields] == ["metadata", "spec", "apiVersion", "kind"]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("ppo.rols", "'roles'"),
        ("pppo", "'ppo'"),
        ("spec.stages.sft.learningrate", "'learningRate'"),
        ("metadata.nam", "'name'"),
    ],
)
def test_a_typo_names_the_nearest_field(path: str, hint: str) -> None:
    with pytest.raises(SpecError, match=f"Did you mean {hint}"):
        explain(path)


def test_snake_case_paths_are_understood() -> None:
    assert field_help("sft.learning_rate").path == "spec.stages.sft.learningRate"


def test_every_field_of_the_schema_is_described_in_plain_words() -> None:
    seen = set()

    def visit(model: type) -> None:
        if model in seen:
            return
        seen.add(model)
        for name, info in fields(model).items():
            assert info.description, f"{model.__name__}.{name} has no description"
            words = expected(info.annotation, info.metadata)
            assert "matching ^" not in words, f"the pattern of {model.__name__}.{name} has no plain words"
            for below in models(info.annotation):
                visit(below)

    visit(CamelPipeline)
    assert len(seen) > 20


def test_yaml_values_are_written_as_a_user_would() -> None:
    assert yaml_value({"a": [1, 2.5], "b": True, "c": "x y"}) == "{a: [1, 2.5], b: true, c: x y}"
    assert yaml_value("a: b") == '"a: b"'
    assert yaml_value(2e-5) == "2e-05"


def test_the_editors_schema_knows_the_stages() -> None:
    schema = json_schema()
    assert schema["$schema"] == DIALECT
    assert schema["required"] == ["apiVersion", "kind", "metadata", "spec"]
    stage = schema["$defs"]["Stage"]
    assert [option["required"] for option in stage["oneOf"]] == [[kind] for kind in STAGE_KINDS]
    assert stage["additionalProperties"] is False
    assert stage["properties"]["name"]["description"].startswith("Name, unique")
    assert "title" not in stage
    assert set(STAGE_KINDS) <= set(fields(Stage))


def test_generated_files_are_in_sync_with_the_schema() -> None:
    if not generate.REFERENCE.is_dir():
        pytest.skip("docs are not part of an installed package")
    assert (generate.REFERENCE / "pipeline.schema.json").read_text(encoding="utf-8") == schema_text()
    assert generate.STARTER.read_text(encoding="utf-8") == generate.starter_text()
    assert (generate.REFERENCE / "pipeline.md").read_text(encoding="utf-8") == reference_markdown()


def test_generate_check_names_what_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "generated", lambda: {tmp_path / "a.json": "new\n"})
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().out == "a.json is out of date; run `python -m camel_ray.api.generate`\n"
    assert generate.main([]) == 0
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "new\n"
    assert generate.main(["--check"]) == 0


def test_every_managed_argument_names_a_field_that_exists() -> None:
    table = json.loads(hf_arguments.FILE.read_text(encoding="utf-8"))
    for kind, dataclass in hf_arguments.DATACLASSES.items():
        for argument in {**table["TrainingArguments"], **table[dataclass]}:
            sentence = hf_arguments.remedy(kind, argument)
            assert sentence, argument
            if "a field of its own" in sentence:
                field_help(f"{kind}.{sentence.split('set `')[1].split('`')[0]}")
            elif "same for all stages" in sentence:
                field_help(sentence.split("set `")[1].split("`")[0])


def test_arguments_without_a_field_pass_through() -> None:
    good = {"neftune_noise_alpha": 5, "torch_compile": True, "dataloader_num_workers": 2}
    assert list(hf_arguments.check_trainer("sft", good)) == []
    assert [key for key, _ in hf_arguments.check_trainer("pretrain", {"padding_free": True})] == ["padding_free"]
