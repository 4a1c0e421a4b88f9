"""The evaluate stage on real artifacts of tiny models, from data set to `evaluation.json` and report."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from camel_ray.api.data import DataSpec
from camel_ray.api.model import ModelSpec
from camel_ray.api.pipeline import CamelPipeline
from camel_ray.data.prepare import prepare
from camel_ray.data.tokenizer import train_tokenizer
from camel_ray.errors import DataError, ModelError, SpecError
from camel_ray.evaluation.record import RunRecord, StageRecord
from camel_ray.evaluation.report import build_report
from camel_ray.models.load import load_causal_lm, load_reward_model, save_model
from camel_ray.progress import Progress, ProgressReader
from camel_ray.stages.contract import Artifact, ArtifactKind, StageContext
from camel_ray.stages.evaluate import run

PIPELINE = """
apiVersion: camel-ray.dev/v1alpha1
kind: CamelPipeline
metadata: {name: measured}
spec:
  stages:
  - {name: text, data: {source: text.jsonl, validation: 0.4}}
  - {name: questions, data: {source: questions.jsonl, validation: 0.5}}
  - {name: tokenizer, tokenizer: {data: text}}
  - {name: base, pretrain: {data: text, model: {config: {model_type: llama}}}}
  - {name: sft, sft: {data: questions, model: base}}
  - {name: judge, reward: {data: questions, model: base}}
  - name: report
    needs: [judge, sft, text, questions]
    evaluate: {data: questions, maxLength: 96, maxResponseLength: 8, prompts: 6}
"""
ANIMALS = [
    "camel",
    "ray",
    "horse",
    "goat",
    "oryx",
    "gazelle",
    "fox",
    "falcon",
    "viper",
    "jackal",
    "lynx",
    "hyena",
    "ibex",
]
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
LLAMA = {"model_type": "llama", "max_position_embeddings": 128, **SIZE}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of all stages before the evaluation."""
    directory = tmp_path_factory.mktemp("measured")
    rows = {
        "text": [{"text": f"The {a} lives where the {b} sleeps."} for a in ANIMALS for b in ANIMALS[:3]],
        "questions": [{"prompt": f"Where does the {a} live?", "completion": f"With the {a}s."} for a in ANIMALS],
    }
    progress = Progress(directory / "progress.jsonl")
    for name, share in (("text", 0.4), ("questions", 0.5)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[name]), encoding="utf-8")
        spec = DataSpec(source=f"{name}.jsonl", validation=share)
        prepare(spec, base_dir=directory, seed=0, progress=progress).save(directory / name)
    tokenizer = train_tokenizer([r["text"] for r in rows["text"]], vocab_size=320)
    spec = ModelSpec(config=LLAMA)
    for seed, name in enumerate(("base", "sft")):
        save_model(load_causal_lm(spec, tokenizer, seed=seed), tokenizer, directory / name)
    save_model(load_reward_model(spec, tokenizer, seed=7), tokenizer, directory / "judge")
    bert = ModelSpec(
        config={
            "model_type": "bert",
            "max_position_embeddings": 128,
            **{k: v for k, v in SIZE.items() if "key" not in k},
        }
    )
    save_model(load_causal_lm(bert, tokenizer, seed=0, masked=True), tokenizer, directory / "masked")
    return directory


def context(directory: Path, work: Path, *, without: tuple[str, ...] = (), **fields: Any) -> StageContext:
    """The context of the evaluate stage, with fields of its spec changed and artifacts left out."""
    document = yaml.safe_load(PIPELINE)
    document["spec"]["stages"][-1]["evaluate"].update(fields)
    pipeline = CamelPipeline.model_validate(document)
    kinds = {
        "text": ArtifactKind.DATASET,
        "questions": ArtifactKind.DATASET,
        "base": ArtifactKind.MODEL,
        "sft": ArtifactKind.MODEL,
        "judge": ArtifactKind.REWARD_MODEL,
    }
    return StageContext(
        pipeline=pipeline,
        stage=pipeline.stage("report"),
        inputs={n: Artifact(k, n, directory / n, "") for n, k in kinds.items() if n not in without},
        work=work,
        base_dir=directory,
        progress=Progress(work / "progress.jsonl"),
        attempt=1,
        seed=11,
        workers=1,
        cores=1,
    )


def evaluated(given: StageContext) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`evaluation.json` and the lines of `samples.jsonl`."""
    (output,) = run(given)
    assert output.kind == ArtifactKind.REPORT
    found = json.loads((output.path / "evaluation.json").read_text(encoding="utf-8"))
    figures = {name: sides["model"] for name, sides in found["figures"].items() if sides.get("model") is not None}
    wins = {"win_rate": found["win_rate"]["rate"]} if "win_rate" in found else {}
    assert output.metrics == {**figures, **wins}  # flat: a status on a cluster shows no others
    lines = (output.path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return found, [json.loads(line) for line in lines]


def test_all_figures_of_the_model_beside_the_one_it_started_from(directory: Path, tmp_path: Path) -> None:
    given = context(directory, tmp_path)
    found, samples = evaluated(given)
    assert (found["model"], found["baseline"]) == ("sft", "base")
    assert found["left_out"] == {}
    figures = found["figures"]
    assert set(figures) == {
        *("perplexity", "bits_per_byte", "bleu", "rouge1", "rouge2", "rougeL", "exact_match"),
        *("reward", "reward_std", "response_length", "finished"),
    }
    for side in ("model", "baseline"):  # fresh weights guess: about as many choices as there are tokens
        assert 200 < figures["perplexity"][side] < 500
        assert 0 <= figures["rougeL"][side] <= 1
    assert len(samples) == found["counts"]["prompts"] == 6
    rewards = {s: [line[s]["reward"] for line in samples] for s in ("model", "baseline", "reference")}
    for side, values in rewards.items():
        assert figures["reward"][side] == pytest.approx(sum(values) / 6)
    won = sum(a > b for a, b in zip(rewards["model"], rewards["baseline"], strict=True))
    assert found["win_rate"]["wins"] == won
    assert samples[0]["prompt"][0]["content"].startswith("Where does the")
    assert samples[0]["reference"]["answer"].startswith("With the")
    tasks = {e["task"] for e in ProgressReader(given.progress.path).new_events() if e["event"] == "update"}
    assert {"perplexity", "generate", "judge"} <= tasks


def test_the_stage_gives_the_same_files_every_time(directory: Path, tmp_path: Path) -> None:
    for temperature in (0.0, 1.0):
        first = evaluated(context(directory, tmp_path / f"a{temperature}", temperature=temperature))
        assert evaluated(context(directory, tmp_path / f"b{temperature}", temperature=temperature)) == first


def test_a_model_against_itself_ties_every_time(directory: Path, tmp_path: Path) -> None:
    found, _ = evaluated(context(directory, tmp_path, baseline="sft", temperature=1.0))
    assert (found["win_rate"]["rate"], found["win_rate"]["ties"]) == (0.5, 6)
    assert found["reward_gain"]["mean"] == 0.0


def test_metrics_without_their_inputs_are_left_out_with_the_reason(directory: Path, tmp_path: Path) -> None:
    found, samples = evaluated(context(directory, tmp_path, without=("judge",), data=None))
    assert samples == []
    assert set(found["left_out"]) == {"bleu", "rouge", "exact_match", "reward", "win_rate"}
    assert set(found["left_out"].values()) == {"`data` is not set"}
    assert set(found["figures"]) == {"perplexity", "bits_per_byte"}

    other = shutil.copytree(directory / "sft", tmp_path / "other")
    found, samples = evaluated(context(directory, tmp_path, without=("judge", "text", "base"), model=str(other)))
    assert found["left_out"] == {
        "perplexity": "there is no text: set `text`, or add a pretrain stage before",
        "win_rate": "there is no baseline to win against: set `baseline`",
        "reward": "there is no reward model: set `rewardModel`, or add a reward stage before",
    }
    assert "reward" not in samples[0]["model"] and "baseline" not in samples[0]


def test_only_what_was_asked_for_is_measured(directory: Path, tmp_path: Path) -> None:
    found, samples = evaluated(context(directory, tmp_path, metrics=["perplexity"], samples=0, maxTextTokens=50))
    assert set(found["figures"]) == {"perplexity", "bits_per_byte"}
    assert found["counts"]["text_tokens"] == 50
    assert samples == [] and "win_rate" not in found


def test_prompts_that_do_not_fit_are_counted_and_never_silent(directory: Path, tmp_path: Path) -> None:
    given = context(directory, tmp_path, maxLength=16, maxResponseLength=8)
    found, samples = evaluated(given)
    assert samples == [] and found["counts"]["prompts_too_long"] >= 3
    assert "are longer than maxLength - maxResponseLength = 8 tokens" in found["left_out"]["bleu"]


@pytest.mark.parametrize(
    ("fields", "error", "sentence"),
    [
        ({"maxLength": 8, "maxResponseLength": 8}, SpecError, "field maxResponseLength: 8 tokens leave no room"),
        ({"maxLength": 512}, ModelError, "field maxLength is 512 tokens, but the model's context is 128"),
        ({"model": "./masked"}, ModelError, "masked language model, which cannot write text"),
        ({"model": "./nothing"}, ModelError, "there is no directory"),
        ({"data": "text"}, DataError, "has text rows, but evaluate takes prompt-completion"),
        ({"text": "questions"}, DataError, "has prompt-completion rows, but evaluate takes text"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    directory: Path, tmp_path: Path, fields: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error) as raised:
        run(context(directory, tmp_path, **fields))
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_report_shows_what_the_stage_wrote(directory: Path, tmp_path: Path) -> None:
    given = context(directory, tmp_path, samples=2)
    found, samples = evaluated(given)
    record = RunRecord(
        name="measured",
        document=given.pipeline.wire(),
        yaml=PIPELINE,
        stages=[StageRecord(s.name, s.kind, s.needs or (), "done", 0.0, 1.0, 1) for s in given.pipeline.spec.stages],
        evaluation=found,
        samples=samples,
    )
    page = build_report(record)
    assert page.count("<article") == 2
    assert samples[0]["prompt"][0]["content"] in page
    assert f"{found['figures']['perplexity']['model']:.0f}" in page
    assert math.isfinite(found["figures"]["reward"]["model"])
    assert build_report(replace(record, evaluation=None, samples=())).count("<article") == 0
