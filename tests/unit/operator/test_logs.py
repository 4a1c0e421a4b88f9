"""One line per event, with what it is about and without secrets."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
import warnings
from collections.abc import Iterator

import pytest

from camel_ray.operator import logs

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJl"


@pytest.fixture(autouse=True)
def root_logger_is_restored() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.getLogger("urllib3").level)
    yield
    logging.captureWarnings(False)
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    logging.getLogger("urllib3").setLevel(before[2])


def written(log_format: logs.LogFormat, level: str = "INFO") -> io.StringIO:
    stream = io.StringIO()
    logs.set_up(log_format, level=level, stream=stream)
    return stream


def test_a_json_line_carries_the_context_and_its_own_fields() -> None:
    stream = written("json")
    with logs.context(namespace="team-a", pipeline="support"):
        logging.getLogger("camel_ray.operator").info("created %s", "x", extra={"stage": "sft", "attempt": 2})
    logging.getLogger("camel_ray.operator").info("outside")
    inside, outside = map(json.loads, stream.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", inside.pop("time"))
    assert inside == {
        "level": "info",
        "logger": "camel_ray.operator",
        "message": "created x",
        "namespace": "team-a",
        "pipeline": "support",
        "stage": "sft",
        "attempt": 2,
    }
    assert "pipeline" not in outside


def test_contexts_nest_and_belong_to_their_thread() -> None:
    stream = written("json")
    with logs.context(pipeline="a"):
        with logs.context(stage="sft"):
            thread = threading.Thread(target=logging.warning, args=("other thread",))
            thread.start()
            thread.join()
            logging.warning("inner")
        logging.warning("outer")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line.get("pipeline"), line.get("stage")) for line in lines] == [(None, None), ("a", "sft"), ("a", None)]


def test_a_text_line_is_one_line_whatever_the_message_holds() -> None:
    stream = written("text")
    with logs.context(pipeline="support"):
        logging.info("the API server says: no\n2026-01-01T00:00:00.000Z ERROR forged \x1b[31m", extra={"stage": "a\nb"})
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(
        r"INFO the API server says: no\n2026-01-01T00:00:00.000Z ERROR forged \x1b[31m [pipeline=support stage=a\nb]"
    )


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_tokens_are_taken_out_of_messages_fields_and_tracebacks(log_format: logs.LogFormat) -> None:
    stream = written(log_format)
    logging.info("sent Authorization: Bearer abc.def-123 and %s", TOKEN, extra={"error": f"refused {TOKEN}"})
    try:
        raise ValueError(f"bearer {TOKEN}")
    except ValueError:
        logging.exception("failed")
    text = stream.getvalue()
    assert "abc.def" not in text and TOKEN not in text and TOKEN.split(".")[1] not in text
    assert "Authorization: Bearer (removed)" in text


def test_an_exception_is_one_json_line_with_its_words_and_traceback() -> None:
    stream = written("json")
    try:
        raise KeyError("spec")
    except KeyError:
        logging.getLogger("x").exception("reconcile failed")
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert line["error"] == "KeyError: 'spec'"
    assert line["traceback"].startswith("Traceback (most recent call last):\n")


def test_warnings_of_python_become_lines_and_levels_hold() -> None:
    stream = written("json", level="WARNING")
    logging.info("not shown")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old call", DeprecationWarning, stacklevel=1)
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert line["logger"] == "py.warnings" and "old call" in line["message"]


def test_a_second_set_up_replaces_the_first() -> None:
    first = written("text")
    second = written("json")
    logging.info("once")
    assert first.getvalue() == "" and json.loads(second.getvalue())["message"] == "once"
    with pytest.raises(ValueError, match="LOUD"):
        written("text", level="LOUD")
