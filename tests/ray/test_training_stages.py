"""The supervised stages in this process: their figures against the formulas, and the state they leave behind."""

from __future__ import annotations

import importlib
import json
import math
import os
import random
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file

from camel_ray.api.model import ModelSpec
from camel_ray.api.pipeline import CamelPipeline
from camel_ray.data.dataset import DataReport, PreparedDataset
from camel_ray.data.templates import encode_answer
from camel_ray.data.tokenizer import train_tokenizer
from camel_ray.errors import ModelError, SpecError
from camel_ray.models.load import load_causal_lm, load_reward_model, load_tokenizer
from camel_ray.models.reward import score
from camel_ray.progress import Progress, ProgressReader, curve
from camel_ray.stages.contract import Artifact, ArtifactKind, StageContext

GOLDEN = Path(__file__).parents[1] / "golden"
WORDS = ["alpha", "beta", "gamma", "delta", "one", "two", "red", "green", "blue", "black", "fish", "bird", "tree"]
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
BERT = {
    "model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}  # fmt: skip
DATA = {"pretrain": "text", "sft": "questions", "reward": "pairs", "dpo": "pairs"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Artifacts of three data stages and a tokenizer stage."""
    root = tmp_path_factory.mktemp("inputs")
    rng = random.Random(0)

    def words(low, high):
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))

    def save(name, format, rows, held_out):
        sides = [datasets.Dataset.from_list(side) for side in (rows[:-held_out], rows[-held_out:])]
        report = DataReport(format, [], len(rows), len(rows) - held_out, held_out)
        PreparedDataset(format, *sides, report).save(root / name)

    def ask(low, high):
        return [{"role": "user", "content": words(low, high)}]

    texts = [words(5, 60) for _ in range(200)]
    save("text", "text", [{"text": text, "row": "{}"} for text in texts], 21)
    questions = [{"prompt": ask(1, 6), "completion": words(1, 9), "row": "{}"} for _ in range(150)]
    save("questions", "prompt-completion", questions, 23)
    pairs = [
        {
            "prompt": ask(1, 6),
            "chosen": words(2, 8),
            "rejected": words(2, 6) + " wrong",
            "row": json.dumps({"kind": kind}),
        }
        for kind in ("short", "long") * 60
    ]
    save("pairs", "preference", pairs, 25)
    train_tokenizer(texts, vocab_size=300, special_tokens=["<|mask|>"]).save_pretrained(root / "tokenizer")
    made = {name: Artifact(ArtifactKind.DATASET, name, root / name, name) for name in ("text", "questions", "pairs")}
    return made | {"tokenizer": Artifact(ArtifactKind.TOKENIZER, "tokenizer", root / "tokenizer", "tokenizer")}


def context(inputs, work, kind, *, workers=1, tracking=None, **changes):
    member = {
        "data": DATA[kind], "model": {"config": LLAMA}, "maxLength": 64, "batchSize": 8, "microBatchSize": 4,
        "steps": 12, "learningRate": 2e-3, "zero": 2, "logEverySteps": 1,
    }  # fmt: skip
    stages = [
        {"name": name, "needs": [], "data": {"source": "unused.jsonl"}} for name in ("text", "questions", "pairs")
    ]
    stages.append({"name": "tokenizer", "tokenizer": {"data": "text"}})
    stages.append({"name": "stage", "needs": list(inputs), "workers": workers, kind: {**member, **changes}})
    spec = {"stages": stages, "tracking": tracking or {}}
    pipeline = CamelPipeline.model_validate({"metadata": {"name": "test"}, "spec": spec})
    work.mkdir(exist_ok=True)
    progress = Progress(work / "progress.jsonl")
    return StageContext(pipeline, pipeline.stage("stage"), inputs, work, work, progress, 1, 7, workers, 1)


def run(inputs, work, kind, **changes):
    (output,) = importlib.import_module(f"camel_ray.stages.{kind}").run(context(inputs, work, kind, **changes))
    return output


def events(work):
    return ProgressReader(work / "progress.jsonl").new_events()


def sequence_logp(model, prompt, answer):
    with torch.no_grad():
        logits_TV = model.eval()(torch.tensor([prompt + answer])).logits[0]
    logp_TV = logits_TV.log_softmax(-1)
    return sum(logp_TV[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))


def held_out(inputs, name):
    return PreparedDataset.load(inputs[name].path).validation


def test_perplexity_of_sft_is_the_mean_over_answer_tokens(inputs, tmp_path):
    output = run(inputs, tmp_path, "sft", steps=30)
    tokenizer = load_tokenizer(str(output.path))
    model = load_causal_lm(ModelSpec(source=str(output.path)), tokenizer, seed=0)
    total = tokens = 0
    for row in held_out(inputs, "questions"):
        prompt, answer = encode_answer(tokenizer, row["prompt"], row["completion"])
        answer = answer[: 64 - len(prompt)]
        total -= sequence_logp(model, prompt, answer)
        tokens += len(answer)
    assert output.metrics["validation_loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert output.metrics["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert output.metrics["perplexity"] < output.metrics["perplexity_untrained"] / 2
    assert output.metrics["validation_rows"] == output.metrics["validation_rows_available"] == 23
    assert output.metrics["steps"] == 30


def test_reward_figures_are_those_of_the_saved_model(inputs, tmp_path):
    output = run(inputs, tmp_path, "reward", steps=25)
    metrics = output.metrics
    tokenizer = load_tokenizer(str(output.path))
    model = load_reward_model(ModelSpec(source=str(output.path)), tokenizer, seed=0)
    rows = list(held_out(inputs, "pairs"))
    scores = {}
    for side in ("chosen", "rejected"):
        ids = [[i for part in encode_answer(tokenizer, row["prompt"], row[side]) for i in part] for row in rows]
        scores[side] = score(model, ids, pad_id=tokenizer.pad_token_id, batch_tokens=512)
    std = metrics["std"]
    losses = [math.log1p(math.exp(-(c - r) * std)) for c, r in zip(scores["chosen"], scores["rejected"], strict=True)]
    assert metrics["validation_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    right = [c > r for c, r in zip(scores["chosen"], scores["rejected"], strict=True)]
    assert metrics["accuracy"] == sum(right) / len(right) and metrics["pairs"] == len(rows)
    assert set(metrics["accuracy_by_kind"]) == {"short", "long"}
    chosen = torch.tensor(scores["chosen"])
    # Normalised: what PPO sees is 0 on average on held-out chosen answers, with deviation 1.
    assert chosen.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert chosen.std().item() == pytest.approx(1.0, abs=1e-4)
    assert metrics["accuracy"] > 0.9


def dpo_loss(h, beta, loss, smoothing=0.0):
    if loss == "ipo":
        return (h - 1 / (2 * beta)) ** 2
    right, wrong = (math.log1p(math.exp(-sign * beta * h)) for sign in (1, -1))
    return (1 - smoothing) * right + smoothing * wrong


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_dpo_loss_is_the_formula(inputs, tmp_path, loss):
    output = run(inputs, tmp_path, "dpo", loss=loss, beta=0.2, steps=8)
    tokenizer = load_tokenizer(str(output.path))
    policy = load_causal_lm(ModelSpec(source=str(output.path)), tokenizer, seed=0)
    start = load_causal_lm(ModelSpec(config=LLAMA), tokenizer, seed=7)
    losses = []
    for row in held_out(inputs, "pairs"):
        ratio = {}
        for side in ("chosen", "rejected"):
            prompt, answer = encode_answer(tokenizer, row["prompt"], row[side])
            ratio[side] = sequence_logp(policy, prompt, answer) - sequence_logp(start, prompt, answer)
            # TRL's IPO is the variant that divides each log-ratio by its tokens (golden: ipo_mean_logp_pair_loss).
            ratio[side] /= len(answer) if loss == "ipo" else 1
        losses.append(dpo_loss(ratio["chosen"] - ratio["rejected"], 0.2, loss))
    assert output.metrics["validation_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert output.metrics["validation_loss"] < output.metrics["validation_loss_untrained"]


@pytest.mark.parametrize("case", json.loads((GOLDEN / "dpo.json").read_text())["cases"], ids=lambda case: case["name"])
def test_the_formula_agrees_with_the_reference_values(case):
    inputs, expected = case["inputs"], case["expected"]

    def ratios(side, mean):
        rows = zip(inputs[f"policy_{side}_logps"], inputs[f"ref_{side}_logps"], inputs[f"{side}_mask"], strict=True)
        for policy, reference, mask in rows:
            total = sum((p - r) * m for p, r, m in zip(policy, reference, mask, strict=True))
            yield total / max(sum(mask), 1) if mean else total

    for key, loss, mean in (("sigmoid_pair_loss", "sigmoid", False), ("ipo_mean_logp_pair_loss", "ipo", True)):
        got = [
            dpo_loss(chosen - rejected, inputs["beta"], loss, inputs.get("label_smoothing") or 0.0)
            for chosen, rejected in zip(ratios("chosen", mean), ratios("rejected", mean), strict=True)
        ]
        assert got == pytest.approx(expected[key], rel=1e-9)


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_zero_stages_change_nothing_but_memory(inputs, tmp_path, zero):
    base = run(inputs, tmp_path / "2", "pretrain")
    other = run(inputs, tmp_path / str(zero), "pretrain", zero=zero)
    assert other.metrics["validation_loss"] == pytest.approx(base.metrics["validation_loss"], abs=1e-5)
    assert other.metrics["parameters"] == base.metrics["parameters"]
    weights, others = (load_file(o.path / "model.safetensors") for o in (base, other))
    assert weights.keys() == others.keys()
    assert all(torch.allclose(weights[name], others[name], atol=1e-4) for name in weights)


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_accumulation_gives_the_loss_of_the_whole_batch(inputs, tmp_path, kind):
    whole = run(inputs, tmp_path / "whole", kind, microBatchSize=8)
    parts = run(inputs, tmp_path / "parts", kind, microBatchSize=2)
    losses = [curve(events(tmp_path / name), "train", "loss") for name in ("whole", "parts")]
    assert [step for step, _ in losses[0]] == list(range(1, 13))
    for (_, one), (_, other) in zip(*losses, strict=True):
        assert other == pytest.approx(one, abs=2e-5)
    assert parts.metrics["tokens"] == whole.metrics["tokens"]


def test_offload_and_bf16_train(inputs, tmp_path):
    base = run(inputs, tmp_path / "base", "sft")
    offloaded = run(inputs, tmp_path / "offload", "sft", zero=3, offload="all")
    assert offloaded.metrics["validation_loss"] == pytest.approx(base.metrics["validation_loss"], abs=1e-5)
    half = run(inputs, tmp_path / "half", "sft", precision="bf16")
    assert half.metrics["validation_loss"] == pytest.approx(base.metrics["validation_loss"], abs=0.1)
    assert load_file(half.path / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16


def test_masked_pretraining(inputs, tmp_path):
    output = run(
        inputs,
        tmp_path,
        "pretrain",
        objective="masked",
        model={"config": BERT},
        steps=40,
        maskedShare=0.3,
        packing=False,
    )
    assert output.metrics["perplexity"] < output.metrics["perplexity_untrained"] / 2


def test_packed_sft(inputs, tmp_path):
    output = run(inputs, tmp_path, "sft", packing=True, batchSize=4, microBatchSize=2)
    assert output.metrics["perplexity"] < output.metrics["perplexity_untrained"]


def test_early_stopping_ends_before_the_last_step(inputs, tmp_path):
    output = run(
        inputs, tmp_path, "sft", steps=40, evaluateEverySteps=4, earlyStopping={"patience": 1, "minDelta": 10.0}
    )
    assert output.metrics["steps"] == 8
    assert [step for step, _ in curve(events(tmp_path), "validate", "loss")] == [0, 4, 8]


def test_progress_has_curves_and_tokens_and_tensorboard_has_files(inputs, tmp_path):
    output = run(inputs, tmp_path, "pretrain", evaluateEverySteps=6)
    found = events(tmp_path)
    for metric in ("loss", "learning_rate", "grad_norm"):
        assert len(curve(found, "train", metric)) == 12
    assert [step for step, _ in curve(found, "validate", "loss")] == [0, 6, 12]
    tokens = [e["tokens"] for e in found if e.get("task") == "train" and e["event"] == "update"]
    assert tokens == sorted(tokens) and tokens[-1] == output.metrics["tokens"] == 12 * 8 * 64
    assert list((tmp_path / "tensorboard").glob("events.out.*"))


def test_the_same_stage_twice_gives_the_same_bytes(inputs, tmp_path):
    one, two = (run(inputs, tmp_path / name, "sft") for name in ("one", "two"))
    assert (one.path / "model.safetensors").read_bytes() == (two.path / "model.safetensors").read_bytes()


def test_a_stage_leaves_the_process_as_it_was(inputs, tmp_path):
    environment, threads = dict(os.environ), torch.get_num_threads()
    run(inputs, tmp_path / "first", "sft", zero=3)
    assert not dist.is_initialized()
    changed = {k: v for k, v in os.environ.items() if environment.get(k) != v and not k.startswith("RAY_")}
    assert changed == {}
    assert torch.get_num_threads() == threads
    # ZeRO-3's hooks would make a model of the next stage come up empty.
    model = load_causal_lm(ModelSpec(config=LLAMA), load_tokenizer(str(inputs["tokenizer"].path)), seed=0)
    assert all(p.numel() > 0 for p in model.parameters())


def test_a_stage_trains_in_a_process_where_something_else_used_accelerate(inputs, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=True)
    assert run(inputs, tmp_path, "sft", steps=2).metrics["steps"] == 2


def test_an_exploding_run_stops_with_its_step(inputs, tmp_path):
    with pytest.raises(ModelError, match=r"stage 'stage': the (loss|gradient) is not a finite number at step \d+"):
        run(inputs, tmp_path, "sft", learningRate=1e30, warmupRatio=0.0, maxGradNorm=1e30, steps=30)
    # The process is usable again.
    run(inputs, tmp_path / "next", "sft", steps=2)


def test_mistakes_are_one_sentence_before_anything_is_trained(inputs, tmp_path):
    with pytest.raises(ModelError, match="stage 'stage': maxLength is 256 tokens, but the model's context is 128"):
        run(inputs, tmp_path, "sft", maxLength=256)
    with pytest.raises(ModelError, match="needs a mask token"):
        plain = train_tokenizer(["a b c"], vocab_size=300)
        plain.save_pretrained(tmp_path / "plain")
        artifact = replace(inputs["tokenizer"], path=tmp_path / "plain")
        run(inputs | {"tokenizer": artifact}, tmp_path, "pretrain", objective="masked", model={"config": BERT})
    with pytest.raises(SpecError, match=r"spec\.tracking\.mlflow: the package is not installed"):
        run(inputs, tmp_path, "sft", tracking={"mlflow": True})
    with pytest.raises(SpecError, match=r"sft\.trainer does not fit SFTConfig"):
        run(inputs, tmp_path, "sft", trainer={"debug": "everything"})


def test_an_argument_of_the_trainer_is_passed_on(inputs, tmp_path):
    base = run(inputs, tmp_path / "base", "sft")
    noisy = run(inputs, tmp_path / "noisy", "sft", trainer={"neftune_noise_alpha": 5.0})
    assert noisy.metrics["train_loss"] != base.metrics["train_loss"]
