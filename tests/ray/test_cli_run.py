"""`run`, `stages` and `report` on a pipeline that really runs, and what Ctrl-C leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PIPELINE = """\
apiVersion: camel-ray.dev/v1alpha1
kind: CamelPipeline
metadata: {name: demo}
spec:
  storage: ./runs
  stages:
  - name: rows
    data: {source: rows.jsonl, format: text, validation: 0.1}
  - name: words
    tokenizer: {data: rows, vocabSize: 300}
"""
COMMAND = (sys.executable, "-m", "camel_ray")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pipeline.yaml").write_text(PIPELINE, encoding="utf-8")
    return tmp_path


def write_rows(folder: Path) -> None:
    rows = [{"text": f"row {i} says {i * i} words about camels"} for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def camel_ray(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_run_runs_what_is_not_done_and_stages_and_report_say_so(folder: Path) -> None:
    write_rows(folder)
    before = camel_ray(folder, "stages", "-f", "pipeline.yaml")
    assert [line.split()[:4] for line in before.stdout.splitlines()[1:]] == [
        ["rows", "data", "would", "run"],
        ["words", "tokenizer", "would", "follow"],
    ]
    nothing = camel_ray(folder, "report", "-f", "pipeline.yaml")
    assert nothing.returncode == 10
    assert "start with `camel-ray run -f pipeline.yaml`" in nothing.stderr

    first = camel_ray(folder, "run", "-f", "pipeline.yaml")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    lines = first.stdout.splitlines()
    assert lines[0] == "[1/2] rows (data) started"
    assert "rows to train on" in lines[1]
    assert "held out" in lines[1]
    assert lines[2] == "[2/2] words (tokenizer) started"
    assert "300 tokens in the vocabulary" in lines[3]
    assert lines[4].endswith("report.html")
    assert len(lines) == 5

    again = camel_ray(folder, "run", "-f", "pipeline.yaml")
    assert again.stdout.count("is up to date") == 2
    after = camel_ray(folder, "stages", "-f", "pipeline.yaml")
    assert [line.split()[2] for line in after.stdout.splitlines()[1:]] == ["done", "done"]
    assert "ago" in after.stdout
    copied = camel_ray(folder, "report", "-f", "pipeline.yaml", "-o", "copy.html")
    assert copied.stdout == "copy.html\n"
    assert "<html" in (folder / "copy.html").read_text(encoding="utf-8")

    unknown = camel_ray(folder, "run", "-f", "pipeline.yaml", "--from", "word")
    assert unknown.returncode == 11
    assert "--from word" in unknown.stderr
    from_words = camel_ray(folder, "run", "-f", "pipeline.yaml", "--from", "words")
    assert "rows (data) is up to date" in from_words.stdout
    assert "words (tokenizer) started" in from_words.stdout


def test_a_data_error_is_one_sentence_with_its_exit_code(folder: Path) -> None:
    failed = camel_ray(folder, "run", "-f", "pipeline.yaml")
    assert failed.returncode == 12
    assert failed.stdout.splitlines()[:2] == ["[1/2] rows (data) started", "[1/2] rows (data) failed"]
    assert len(failed.stderr.splitlines()) == 1
    assert "rows.jsonl" in failed.stderr


def test_ctrl_c_stops_cleanly_and_says_how_to_continue(folder: Path) -> None:
    os.mkfifo(folder / "rows.jsonl")  # reading it waits for ever, so the stage is still there when the signal comes
    process = subprocess.Popen(
        [*COMMAND, "run", "-f", "pipeline.yaml"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "[1/2] rows (data) started\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert out == "[1/2] rows (data) stopped\n"
    stopping, stopped = err.splitlines()
    assert stopping == "stopping; press Ctrl-C again to end at once"
    assert stopped.startswith("stopped in stage 'rows'")
    assert "`camel-ray run -f pipeline.yaml` continues" in stopped

    (folder / "rows.jsonl").unlink()
    write_rows(folder)
    continued = camel_ray(folder, "run", "-f", "pipeline.yaml")
    assert continued.returncode == 0, continued.stderr
    assert "tokens in the vocabulary" in continued.stdout
