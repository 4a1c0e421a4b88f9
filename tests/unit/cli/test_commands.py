"""The commands that need no training library: their output, their errors and their exit codes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from camel_ray.api.load import load_pipeline_text
from camel_ray.cli import main as cli
from camel_ray.cli.run import how_to_continue, newest_checkpoint
from camel_ray.cli.stages import age
from camel_ray.cli.starter import StarterKind, starter_text
from camel_ray.errors import (
    CamelError,
    DataError,
    ModelError,
    OutOfMemory,
    PermanentError,
    Preempted,
    RetryableError,
    RewardError,
    SpecError,
    Stopped,
    StorageUnavailable,
    WorkerLost,
)

GOOD = starter_text(StarterKind.SFT)
HEAVY = ("torch", "ray", "transformers", "deepspeed", "trl", "datasets", "numpy")


def camel_ray(*arguments: str) -> int:
    """Exit code of a command line in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "pipeline.yaml"
    path.write_text(GOOD, encoding="utf-8")
    return path


def test_validate_says_how_many_stages_a_good_file_has(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert camel_ray("validate", "-f", str(good)) == 0
    assert capsys.readouterr().out == f"{good}: ok, 3 stages\n"


def test_validate_reports_every_file_and_fails_if_one_is_broken(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(GOOD.replace("seed: 0", "sed: 0").replace("maxLength", "maxlength"), encoding="utf-8")
    assert camel_ray("validate", "-f", str(bad), str(good), str(tmp_path / "none.yaml")) == 11
    captured = capsys.readouterr()
    assert captured.out == f"{good}: ok, 3 stages\n"
    assert [line.split(": ")[1] for line in captured.err.splitlines()] == [
        "spec.sed",
        "spec.stages[1].sft.maxlength",
        "there is no such file; give the path of a pipeline's YAML. Did you mean 'pipeline.yaml'?",
    ]


def test_validate_reads_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
    assert camel_ray("validate", "-f", "-") == 0
    assert capsys.readouterr().out == "standard input: ok, 3 stages\n"


def test_validate_names_bad_bytes_of_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a: 1\nb: \xff\n")))
    assert camel_ray("validate", "-f", "-") == 11
    assert capsys.readouterr().err.startswith("standard input:2: byte 0xff is not UTF-8 text; save the file")


def test_validate_without_a_file_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert camel_ray("validate") == 2
    assert "name at least one file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("validat",), "No such command 'validat'"),
        (("run",), "--file"),
        (("validate", "--fil", "x"), "--fil"),
        (("chat", "--temperature", "-1", "--model", "x"), "--temperature"),
        (("chat",), "--model DIR"),
        (("init", "--kind", "rlhf"), "rlhf"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert camel_ray(*arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert "--help" in error


def test_schema_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert camel_ray("schema") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "CamelPipeline"


def test_explain_prints_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert camel_ray("explain", "ppo.roles") == 0
    assert capsys.readouterr().out.startswith("spec.stages.ppo.roles\n")
    assert camel_ray("explain", "ppo.rolls") == 11
    assert capsys.readouterr().err == "there is no field 'rolls' in ppo. Did you mean 'roles'?\n"


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert camel_ray("version") == 0
    assert capsys.readouterr().out.count(".") >= 2


def test_help_lists_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert camel_ray("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for error in (PermanentError, SpecError, DataError, ModelError, RewardError, RetryableError, StorageUnavailable,
                  WorkerLost, OutOfMemory, Preempted, Stopped):  # fmt: skip
        assert f"{error.exit_code} " in text


@pytest.mark.parametrize("kind", list(StarterKind))
def test_init_writes_a_commented_pipeline_that_validates(
    kind: StarterKind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "pipeline.yaml"
    assert camel_ray("init", str(path.parent), "--kind", kind.value) == 0
    assert str(path) in capsys.readouterr().out
    pipeline = load_pipeline_text(path.read_text(encoding="utf-8"), "pipeline.yaml")
    assert pipeline.spec.stages[-1].kind == "evaluate"
    assert path.read_text(encoding="utf-8").count("#") >= 5


def test_init_overwrites_nothing(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert camel_ray("init", str(good.parent)) == 10
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert good.read_text(encoding="utf-8") == GOOD
    assert camel_ray("init", str(good)) == 10
    assert "a file stands in its way" in capsys.readouterr().err


@pytest.mark.parametrize("error", [SpecError("a", "b"), ModelError("gone"), StorageUnavailable("full")])
def test_an_error_ends_with_its_sentence_and_exit_code(
    error: CamelError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("camel_ray.api.explain.explain", fail)
    assert camel_ray("explain") == error.exit_code
    assert capsys.readouterr().err == f"{error}\n"


def test_a_bug_ends_with_a_hint_and_shows_its_traceback_only_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr("camel_ray.api.explain.explain", fail)
    assert camel_ray("explain") == 1
    error = capsys.readouterr().err
    assert error.startswith("bug in camel-ray: KeyError at test_commands.py:")
    assert "--debug" in error
    assert len(error.splitlines()) == 1
    assert camel_ray("--debug", "explain") == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("camel_ray.api.explain.explain", stop)
    assert camel_ray("explain") == 130


def test_the_command_line_imports_nothing_that_trains(good: Path) -> None:
    code = (
        "import sys\n"
        "from camel_ray.cli import main\n"
        f"try: main.main(['validate', '-f', {str(good)!r}])\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


@pytest.mark.parametrize("lines", [0, 1])
def test_a_reader_that_goes_away_is_no_error(lines: int) -> None:
    """Without a line read, the pipe is closed before the command prints."""
    command = [sys.executable, "-m", "camel_ray", "schema"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert [process.stdout.readline() for _ in range(lines)] == ["{\n"] * lines
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_how_to_continue_names_stage_and_checkpoint(tmp_path: Path) -> None:
    checkpoints = tmp_path / "work" / "checkpoints"
    for name in ("checkpoint-20", "checkpoint-100", "checkpoint-300"):
        (checkpoints / name).mkdir(parents=True)
    assert newest_checkpoint(checkpoints) is None
    for name in ("checkpoint-20", "checkpoint-100"):
        (checkpoints / name / "manifest.json").touch()
    assert newest_checkpoint(checkpoints) == 100
    command = "camel-ray run -f a.yaml"
    assert how_to_continue(command, "chat", tmp_path / "progress.jsonl") == (
        "stopped in stage 'chat' (step 100 is saved); `camel-ray run -f a.yaml` continues with it "
        "and skips what is done"
    )
    assert "no checkpoint yet" in how_to_continue(command, "chat", tmp_path / "elsewhere" / "progress.jsonl")
    assert "before a stage began" in how_to_continue(command, None, None)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s ago"), (89, "89 s ago"), (300, "5 min ago"), (7200, "2 h ago"), (200_000, "2 d ago")]
)
def test_ages_have_one_unit(seconds: float, text: str) -> None:
    assert age(seconds) == text
