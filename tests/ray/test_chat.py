"""`camel-ray chat` with a tiny model: what is said, what is remembered, and what does not fit."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from camel_ray.api.model import ModelSpec
from camel_ray.cli import main as cli
from camel_ray.data.tokenizer import train_tokenizer
from camel_ray.errors import ModelError
from camel_ray.models.load import load_causal_lm, save_model
from camel_ray.runtime.conversation import Conversation

CONTEXT = 64
TEXT = ["what does os.path.join do", "it joins path components", "a camel walks through the desert"] * 4


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer(TEXT, vocab_size=300)
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
    }
    model = load_causal_lm(ModelSpec(config=config), tokenizer, seed=0)
    path = tmp_path_factory.mktemp("model")
    save_model(model, tokenizer, path)
    return path


def conversation(directory: Path, *, temperature: float = 0.0, seed: int | None = None) -> Conversation:
    return Conversation.load(directory, temperature=temperature, max_tokens=8, seed=seed)


def said(talk: Conversation, text: str) -> str:
    return "".join(talk.answer(text))


def test_greedy_answers_repeat_and_sampled_ones_repeat_with_a_seed(directory: Path) -> None:
    assert said(conversation(directory), "what") == said(conversation(directory), "what")
    first = said(conversation(directory, temperature=1.0, seed=3), "what")
    assert said(conversation(directory, temperature=1.0, seed=3), "what") == first
    assert said(conversation(directory, temperature=1.0, seed=4), "what") != first


def test_earlier_turns_change_the_answer_until_they_are_reset(directory: Path) -> None:
    talk = conversation(directory)
    alone = said(talk, "join")
    assert len(talk.messages) == 2
    said(talk, "join")
    assert [m["role"] for m in talk.messages] == ["user", "assistant"] * 2
    talk.reset()
    assert talk.messages == ()
    assert said(talk, "join") == alone


def test_the_oldest_turns_are_forgotten_when_the_context_is_full(directory: Path) -> None:
    talk = conversation(directory)
    for _ in range(6):
        said(talk, "a camel")
    assert talk.messages[0]["role"] == "user"
    assert 2 <= len(talk.messages) < 12


def test_a_message_longer_than_the_context_is_refused_and_forgotten(directory: Path) -> None:
    talk = conversation(directory)
    with pytest.raises(ModelError, match=f"the model reads {CONTEXT}; write a shorter one"):
        said(talk, "camel " * 100)
    assert talk.messages == ()


def test_a_pipe_gives_one_line_per_message(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "what\n\n/reset\nwhat\n" + "camel " * 100 + "\n/rest\n/quit\nnever\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    with pytest.raises(SystemExit) as ended:
        cli.main(["chat", "--model", str(directory), "--temperature", "0", "--max-tokens", "8"])
    assert ended.value.code == 0
    captured = capsys.readouterr()
    answers = captured.out.splitlines()
    assert len(answers) == 3
    assert answers[0] == answers[1] != ""
    assert answers[2] == ""
    refused, unknown = captured.err.splitlines()[-2:]
    assert "write a shorter one" in refused
    assert unknown == "there is no command /rest; there are /reset and /quit"


@pytest.mark.parametrize("arguments", [["--model", "nowhere"], ["--model", "."]])
def test_a_directory_without_a_model_is_named(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["chat", *arguments])
    assert ended.value.code == 13
    assert "holds no model" in capsys.readouterr().err


def test_a_pipeline_that_has_not_run_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cli_codes = []
    for arguments in (["init"], ["chat", "-f", "pipeline.yaml"], ["chat", "-f", "pipeline.yaml", "--stage", "text"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        cli_codes.append(ended.value.code)
    assert cli_codes == [0, 10, 10]
    error = capsys.readouterr().err
    assert "no stage has made a model yet" in error
    assert "--stage text: no such stage makes a model; those that do are" in error
