"""Every mistake in a file gives one sentence that names its line, its field and the remedy."""

# ruff: noqa: E501 - one case per line reads as a table
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from camel_ray.api.load import load_pipeline, load_pipeline_text
from camel_ray.errors import SpecError

GOOD = """\
apiVersion: camel-ray.dev/v1alpha1
kind: CamelPipeline
metadata:
  name: demo
spec:
  storage: ./runs
  seed: 0
  stages:
  - name: text
    data:
      source: builtin://python-docs/text
  - name: words
    tokenizer:
      data: text
      vocabSize: 512
  - name: base
    pretrain:
      data: text
      model: {config: {model_type: llama, hidden_size: 64}}
      batchSize: 16
      microBatchSize: 8
  - name: chat
    sft:
      data: text
      learningRate: 2e-5
  - name: judge
    reward:
      data: text
  - name: tuned
    ppo:
      prompts: text
      reward: {model: judge}
  - name: report
    evaluate:
      samples: 4
"""


@dataclass(frozen=True)
class Broken:
    """GOOD with `old` replaced by `new`, and what is said: the line, the field, and words of the sentence."""

    name: str
    old: str
    new: str
    line: int
    field: str
    words: tuple[str, ...]


def broken(name: str, old: str, new: str, line: int, field: str, *words: str) -> Broken:
    return Broken(name, old, new, line, field, words)


STAGE = "spec.stages"
CASES = [
    # the header
    broken("other kind", "kind: CamelPipeline", "kind: Deployment", 2, "kind", "should be CamelPipeline", "Deployment"),
    broken("misspelt kind", "kind: CamelPipeline", "kind: CamelPipelin", 2, "kind", "should be CamelPipeline"),
    broken("other version", "v1alpha1", "v2", 1, "apiVersion", "should be camel-ray.dev/v1alpha1"),
    broken("no kind", "kind: CamelPipeline\n", "", 1, "kind", "is required", "`kind: CamelPipeline`"),
    broken("no spec", GOOD[GOOD.index("spec:") :], "", 1, "spec", "is required", "camel-ray explain spec"),
    broken("no name", "  name: demo", "  labels: {a: b}", 3, "metadata.name", "is required", "at most 40"),
    broken("bad pipeline name", "name: demo", "name: My_Demo", 4, "metadata.name", "lower-case letters", "'My_Demo'"),
    broken("label is a number", "name: demo", "name: demo\n  labels: {a: 1}", 5, "metadata.labels.a", "should be text, not 1", "quotes"),
    # what everybody may read
    broken("password in storage", "./runs", "s3://me:hush@bucket/runs", 6, "spec.storage", "holds credentials", "envFromSecrets"),
    broken("key in storage", "./runs", "s3://AKIAX@bucket/runs", 6, "spec.storage", "holds credentials"),
    broken("slash in a key", "./runs", "s3://AKIAX:wJalrXUtnFEMI/K7MDENG/bPx@bucket/runs", 6, "spec.storage", "holds credentials"),
    broken("password in a chain", "./runs", "simplecache::sftp://me:hush@host/runs", 6, "spec.storage", "holds credentials"),
    broken("password in data", "builtin://python-docs/text", "[a.jsonl, 'ftp://me:hush@host/b.jsonl']", 11, "spec.stages[0].data.source[1]", "holds credentials"),
    broken("password in a variable", "  seed: 0", "  cluster: {env: [{name: HTTPS_PROXY, value: 'http://me:hush@proxy:3128'}]}", 7, "spec.cluster.env[0].value", "holds credentials"),
    # unknown keys
    broken("typo", "seed: 0", "sed: 0", 7, "spec.sed", "not known", "Did you mean 'seed'?"),
    broken("typo in a stage", "batchSize: 16", "batchSise: 16", 20, f"{STAGE}[2].pretrain.batchSise", "Did you mean 'batchSize'?"),
    broken("snake case", "vocabSize", "vocab_size", 15, f"{STAGE}[1].tokenizer.vocab_size", "camelCase", "`vocabSize`"),
    broken("typo of a member", "    sft:", "    stf:", 23, f"{STAGE}[3].stf", "Did you mean 'sft'?"),
    broken("field of another kind", "learningRate: 2e-5", "vocabSize: 9", 25, f"{STAGE}[3].sft.vocabSize", "belongs", "`tokenizer:`"),
    broken("member's field in the stage", "  - name: chat", "  - name: chat\n    epochs: 2", 23, f"{STAGE}[3].epochs", "belongs to the member", "`sft:`"),
    broken("stage's field in the member", "learningRate: 2e-5", "workers: 2", 25, f"{STAGE}[3].sft.workers", "beside `sft:`"),
    broken("spec's field at the top", "spec:", "seed: 1\nspec:", 5, "seed", "belongs under `spec:`"),
    broken("trainer's own name", "batchSize: 16", "per_device_train_batch_size: 16", 20, f"{STAGE}[2].pretrain.per_device_train_batch_size", "set `microBatchSize` instead"),
    broken("trainer argument outside", "batchSize: 16", "torch_compile: true", 20, f"{STAGE}[2].pretrain.torch_compile", "TrainingArguments", "under `trainer:`"),
    broken("nothing near", "seed: 0", "xyzzy: 0", 7, "spec.xyzzy", "not known here", "keys left to use", "tracking"),
    broken("deep", "{model: judge}", "{model: judge, clp: 1}", 32, f"{STAGE}[5].ppo.reward.clp", "Did you mean 'clip'?"),
    # types and ranges
    broken("word for a number", "2e-5", "fast", 25, f"{STAGE}[3].sft.learningRate", "a number, above 0, not 'fast'"),
    broken("quoted number", "vocabSize: 512", "vocabSize: '512'", 15, f"{STAGE}[1].tokenizer.vocabSize", "without quotes"),
    broken("fraction for a count", "vocabSize: 512", "vocabSize: 512.5", 15, f"{STAGE}[1].tokenizer.vocabSize", "a whole number", "512.5"),
    broken("too small", "vocabSize: 512", "vocabSize: 12", 15, f"{STAGE}[1].tokenizer.vocabSize", "at least 300, not 12"),
    broken("negative", "seed: 0", "seed: -1", 7, "spec.seed", "at least 0", "not -1"),
    broken("not a number", "2e-5", ".nan", 25, f"{STAGE}[3].sft.learningRate", "a number, above 0"),
    broken("infinite", "2e-5", ".inf", 25, f"{STAGE}[3].sft.learningRate", "a number, above 0"),
    broken("boolean for a number", "seed: 0", "seed: true", 7, "spec.seed", "not true"),
    broken("null", "seed: 0", "seed:", 7, "spec.seed", "is empty", "delete the line"),
    broken("list for a mapping", "reward: {model: judge}", "reward: [judge]", 32, f"{STAGE}[5].ppo.reward", "should be a mapping", "[judge]"),
    broken("choice", "learningRate: 2e-5", "schedule: cosin", 25, f"{STAGE}[3].sft.schedule", "cosine, linear, constant", "Did you mean 'cosine'?"),
    broken("choice of a number", "learningRate: 2e-5", "zero: 4", 25, f"{STAGE}[3].sft.zero", "one of 0, 1, 2, 3", "not 4"),
    broken("choice in a list", "samples: 4", "metrics: [bleu, rogue]", 35, f"{STAGE}[6].evaluate.metrics[1]", "Did you mean 'rouge'?"),
    broken("wrong count", "learningRate: 2e-5", "betas: [0.9]", 25, f"{STAGE}[3].sft.betas", "a list of 2 numbers", "[0.9]"),
    broken("number for a stage", "prompts: text", "prompts: 7", 31, f"{STAGE}[5].ppo.prompts", "text or a mapping", "7"),
    broken("empty source", "source: builtin://python-docs/text", "source: []", 11, f"{STAGE}[0].data.source", "not empty"),
    broken("required field", "      source: builtin://python-docs/text", "      subset: a", 10, f"{STAGE}[0].data.source", "is required"),
    broken("required in place", "      data: text\n      learningRate", "      data: {split: a}\n      learningRate", 24, f"{STAGE}[3].sft.data.source", "is required"),
    broken("workers", "  - name: chat", "  - name: chat\n    workers: many", 23, f"{STAGE}[3].workers", "a whole number or a mapping", "'many'"),
    broken("stage name", "name: chat", "name: Chat", 22, f"{STAGE}[3].name", "lower-case", "'Chat'"),
    broken("yes is a boolean", "name: chat", "name: yes", 22, f"{STAGE}[3].name", "not true", "quotes"),
    # rules over several fields
    broken("later stage", "prompts: text", "prompts: report", 31, f"{STAGE}[5].ppo.prompts", "comes later", "move 'report' up"),
    broken("unknown stage", "prompts: text", "prompts: txt", 31, f"{STAGE}[5].ppo.prompts", "no stage 'txt'", "Did you mean 'text'?"),
    broken("hub id like a stage", "learningRate: 2e-5", "model: base2", 25, f"{STAGE}[3].sft.model", "Did you mean 'base'?", "owner/name"),
    broken("file as a name", "prompts: text", "prompts: ./a.jsonl", 31, f"{STAGE}[5].ppo.prompts", "{source: ...}"),
    broken("itself", "  - name: chat", "  - name: chat\n    needs: [chat]", 23, f"{STAGE}[3].needs[0]", "cannot need itself"),
    broken("needs nothing known", "  - name: chat", "  - name: chat\n    needs: [bas]", 23, f"{STAGE}[3].needs[0]", "Did you mean 'base'?"),
    broken("wrong artifact", "{model: judge}", "{model: chat}", 32, f"{STAGE}[5].ppo.reward.model", "makes a model", "takes a reward-model"),
    broken("same name twice", "name: chat", "name: base", 22, f"{STAGE}[3].name", "'base' is taken"),
    broken("no member", "  - name: judge", "  - name: idle\n  - name: judge", 26, f"{STAGE}[4]", "one member"),
    broken("empty member", "    evaluate:\n      samples: 4", "    evaluate:", 34, f"{STAGE}[6].evaluate", "is empty"),
    broken("two members", "    evaluate:", "    data: {source: a}\n    evaluate:", 35, f"{STAGE}[6].evaluate", "exactly one member"),
    broken("batch does not divide", "batchSize: 16", "batchSize: 12", 20, f"{STAGE}[2].pretrain.batchSize", "12 is not a multiple", "try 8"),
    broken("early stopping", "learningRate: 2e-5", "earlyStopping: {}", 25, f"{STAGE}[3].sft.earlyStopping", "evaluateEverySteps"),
    broken("offload", "learningRate: 2e-5", "offload: all", 25, f"{STAGE}[3].sft.offload", "zero: 3"),
    broken("no model", "      model: {config: {model_type: llama, hidden_size: 64}}\n", "", 17, f"{STAGE}[2].pretrain", "no model to start from"),
    broken("no model type", "model_type: llama, ", "", 19, f"{STAGE}[2].pretrain.model", "model_type"),
    broken("no reward", "reward: {model: judge}", "reward: {}", 32, f"{STAGE}[5].ppo.reward", "reward.model, reward.function"),
    broken("one answer for rloo", "prompts: text", "prompts: text\n      advantage: rloo", 32, f"{STAGE}[5].ppo.advantage", "samplesPerPrompt", "at least 2"),
    broken("role without place", "prompts: text", "prompts: text\n      placement: [[actor, rollout]]", 32, f"{STAGE}[5].ppo.placement", "reference and critic and reward"),
    broken("unknown group", "  - name: chat", "  - name: chat\n    group: gpu", 23, f"{STAGE}[3].group", "no group 'gpu'"),
    # the trainer's own arguments
    broken("unknown trainer argument", "learningRate: 2e-5", "trainer: {neftune_noise: 5}", 25, f"{STAGE}[3].sft.trainer.neftune_noise", "SFTConfig", "Did you mean 'neftune_noise_alpha'?"),
    broken("managed trainer argument", "learningRate: 2e-5", "trainer: {learning_rate: 1}", 25, f"{STAGE}[3].sft.trainer.learning_rate", "set `learningRate` instead"),
    broken("forbidden trainer argument", "learningRate: 2e-5", "trainer: {output_dir: x}", 25, f"{STAGE}[3].sft.trainer.output_dir", "set by camel-ray itself"),
    broken("pipeline's trainer argument", "learningRate: 2e-5", "trainer: {seed: 1}", 25, f"{STAGE}[3].sft.trainer.seed", "`spec.seed`"),
    broken("trainer argument's type", "learningRate: 2e-5", "trainer: {torch_compile: 3}", 25, f"{STAGE}[3].sft.trainer.torch_compile", "true or false", "not 3"),
    # YAML
    broken("tab", "  seed: 0", "\tseed: 0", 7, "", "tab", "spaces"),
    broken("second document", "spec:\n", "spec:\n---\n", 7, "", "second YAML document"),
    broken("twice", "seed: 0", "seed: 0\n  seed: 1", 8, "spec.seed", "set twice, first on line 7"),
    broken("colon in a value", "name: demo", "name: demo: two", 4, "", "quotes"),
    broken("open quote", "storage: ./runs", "storage: './runs", 6, "", "never closed"),
    broken("open bracket", "{model: judge}", "{model: judge", 32, "", "bracket"),
    broken("dedent", "  seed: 0", " seed: 0", 7, "", "indentation"),
    broken("no alias", "data: text\n      vocab", "data: *text\n      vocab", 14, "", "no anchor", "text"),
    broken("python tag", "seed: 0", "seed: !!python/name:os.system", 7, "spec.seed", "tag", "not supported"),
    broken("own tag", "seed: 0", "seed: !env SEED", 7, "spec.seed", "tag !env"),
    broken("key is no text", "seed: 0", "1: 0", 7, "spec", "'1' is not text"),
    broken("control character", "name: demo", "name: de\x07mo", 4, "", "U+0007"),
]  # fmt: skip


def problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_pipeline_text(text, "demo.yaml")
    return list(caught.value.problems)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_mistake_gives_one_sentence_with_line_field_and_remedy(case: Broken) -> None:
    assert case.old in GOOD
    found = problems(GOOD.replace(case.old, case.new, 1))
    assert len(found) == 1, found
    place = f"demo.yaml:{case.line}: {case.field}: " if case.field else f"demo.yaml:{case.line}: "
    assert found[0].startswith(place)
    for words in case.words:
        assert words in found[0]
    assert "\n" not in found[0]
    assert not any(jargon in found[0] for jargon in ("pydantic", "Input", "str_type", "NoneType", "dict", "Extra"))


def test_the_good_file_loads() -> None:
    pipeline = load_pipeline_text(GOOD, "demo.yaml")
    assert [stage.kind for stage in pipeline.spec.stages] == [
        "data", "tokenizer", "pretrain", "sft", "reward", "ppo", "evaluate",
    ]  # fmt: skip
    assert pipeline.spec.stages[3].sft is not None
    assert pipeline.spec.stages[3].sft.learning_rate == 2e-5


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/mail@host/x:y",
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/mine/a@b",
        "abfs://box@account.dfs.core.windows.net/runs",
        "sftp://me@host:2222/runs",
        "/data/a:b@c",
    ],
)
def test_an_address_without_a_secret_is_taken(uri: str) -> None:
    assert load_pipeline_text(GOOD.replace("./runs", uri), "demo.yaml").spec.storage == uri


def test_five_mistakes_are_reported_together_in_the_order_of_the_lines() -> None:
    text = GOOD
    for old, new in (
        ("samples: 4", "samples: four"),
        ("name: demo", "name: Demo"),
        ("vocabSize", "vocabsize"),
        ("{model: judge}", "{model: chat}"),
        ("batchSize: 16", "batchSize: 12"),
    ):
        text = text.replace(old, new, 1)
    found = problems(text)
    assert [line.split(":")[1] for line in found] == ["4", "15", "20", "32", "35"]


def test_a_cause_is_reported_without_its_consequences() -> None:
    # without a pretrain stage nothing after it has a model, and references to it miss their artifact
    found = problems(GOOD.replace("    pretrain:", "    pretrian:", 1))
    assert len(found) == 1
    assert "Did you mean 'pretrain'?" in found[0]


def test_mistakes_in_different_stages_do_not_hide_each_other() -> None:
    text = GOOD.replace("learningRate: 2e-5", "learningRate: fast").replace(
        "      model: {config: {model_type: llama, hidden_size: 64}}\n", ""
    )
    found = problems(text)
    assert len(found) == 2
    assert "no model to start from" in found[0]
    assert "'fast'" in found[1]


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n"])
def test_an_empty_file_says_how_to_get_one(text: str) -> None:
    assert problems(text) == ["demo.yaml:1: the file is empty; `camel-ray init` writes one to start from"]


@pytest.mark.parametrize(
    ("text", "kind"), [("- a\n- b\n", "a list"), ("hello\n", "a single value"), ("3\n", "a single value")]
)
def test_a_file_that_is_no_mapping_is_refused(text: str, kind: str) -> None:
    assert problems(text) == [
        f"demo.yaml:1: the file holds {kind} where a mapping with apiVersion, kind, metadata and spec should be"
    ]


def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes(GOOD.replace("demo", "d\xe9mo").encode("latin-1"))
    with pytest.raises(SpecError, match=r"latin\.yaml:4: byte 0xe9 is not UTF-8 text; save the file with UTF-8"):
        load_pipeline(file)


def test_a_huge_file_is_not_parsed(tmp_path: Path) -> None:
    file = tmp_path / "huge.yaml"
    file.write_text(GOOD + "# comment\n" * 50_000)
    with pytest.raises(SpecError, match="more than the 262,144 a pipeline may have"):
        load_pipeline(file)


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text(GOOD)
    with pytest.raises(SpecError, match=r"there is no such file.*Did you mean 'pipeline\.yaml'\?"):
        load_pipeline(tmp_path / "pipline.yaml")
    with pytest.raises(SpecError, match="is a directory"):
        load_pipeline(tmp_path)


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    assert any("aliases make the file larger than 50,000 values" in line for line in problems(bomb))


def test_an_alias_inside_its_own_anchor_is_refused() -> None:
    found = problems(GOOD.replace("storage: ./runs", "storage: ./runs\n  tracking: &t\n    project: *t"))
    assert len(found) == 1
    assert "stands inside its own anchor" in found[0]


def test_deep_nesting_is_refused() -> None:
    assert len(problems(GOOD + "deep: " + "[" * 800 + "]" * 800)) == 1
    assert any("nested deeper than 50 levels" in line for line in problems(GOOD + "deep: " + "[" * 60 + "]" * 60))


def test_anchors_and_merge_keys_work() -> None:
    text = GOOD.replace(
        "    sft:\n      data: text\n      learningRate: 2e-5\n", "    sft: &fit {data: text, epochs: 2}\n"
    )
    text = text.replace("    reward:\n      data: text\n", "    reward: {<<: *fit, epochs: 3}\n")
    pipeline = load_pipeline_text(text, "demo.yaml")
    assert pipeline.stage("judge").reward is not None
    assert pipeline.stage("judge").reward.data == "text"
    assert pipeline.stage("judge").reward.epochs == 3


@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", "0.00001", "1E-5"])
def test_numbers_are_read_as_kubectl_reads_them(text: str) -> None:
    pipeline = load_pipeline_text(GOOD.replace("2e-5", text), "demo.yaml")
    assert pipeline.stage("chat").sft.learning_rate == 1e-5  # type: ignore[union-attr]


def test_dates_and_base_60_numbers_stay_text() -> None:
    text = GOOD.replace("name: demo", "name: demo\n  labels: {day: 2026-01-02, time: 12:30}")
    assert load_pipeline_text(text, "demo.yaml").metadata.labels == {"day": "2026-01-02", "time": "12:30"}
