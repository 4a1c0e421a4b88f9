"""What an attempt may tell the progress server, taken apart and cut to size.

Reports come from user code in pods, so nothing in them is believed: numbers are finite and bounded, strings are short
and printable, lists end. Pure; `progress_server.py` calls it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from camel_ray.api.status import ArtifactRef, Progress, Result

METRICS = 50
"""Figures kept of a report."""
_ARTIFACTS = 10
_WORD = 64
_URI = 1024
_MESSAGE = 1000
_LARGEST = 2**53
"""Whole numbers beyond it are not the same in every JSON reader."""
_METRIC_NAME = re.compile(r"[A-Za-z0-9_./-]{1,64}")


@dataclass(frozen=True)
class Report:
    """One report. Both parts None: the attempt only asks whether to stop."""

    progress: Progress | None = None
    result: Result | None = None


def parse_report(body: bytes, *, attempt: int, now: str) -> Report:
    """Read a report of attempt number `attempt`, received at `now`.

    `trainerStatus` is Kubeflow Trainer's contract, `stage` and `result` are ours; other keys are left alone. Raises
    ValueError with a sentence where a value is not what it should be.
    """
    document = _document(body)
    status, stage, result = (_mapping(document, key) for key in ("trainerStatus", "stage", "result"))
    progress = None
    if status is not None or stage is not None:
        progress = _progress(status or {}, stage or {}, attempt=attempt, now=now)
    return Report(progress, None if result is None else _result(result, attempt=attempt))


def parse_result(line: str, *, attempt: int) -> Result:
    """Read what a stage's process printed as its result, with the same limits. Raises ValueError as `parse_report`."""
    return _result(_document(line.encode("utf-8", "replace")), attempt=attempt)


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None
    except ValueError:
        raise ValueError("the body is not JSON") from None
    if not isinstance(document, dict):
        raise ValueError("the body is not a JSON object")
    return document


def _progress(status: Mapping[str, Any], stage: Mapping[str, Any], *, attempt: int, now: str) -> Progress:
    percentage = _whole(status, "progressPercentage", limit=100)
    return Progress(
        attempt=attempt,
        percentage=percentage,
        task=_text(stage, "task", _WORD),
        done=_whole(stage, "done"),
        total=_whole(stage, "total"),
        unit=_text(stage, "unit", _WORD),
        remaining_seconds=_whole(status, "estimatedRemainingSeconds"),
        metrics=_listed_metrics(status.get("metrics")),
        updated=now,
    )


def _result(result: Mapping[str, Any], *, attempt: int) -> Result:
    code = _whole(result, "code", limit=255)
    if code is None:
        raise ValueError("result.code is missing")
    listed = result.get("artifacts") or []
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise ValueError("result.artifacts is not a list of objects")
    return Result(
        attempt=attempt,
        code=code,
        message=_text(result, "message", _MESSAGE),
        artifacts=[
            ArtifactRef(kind=_text(a, "kind", _WORD), uri=_text(a, "uri", _URI), digest=_text(a, "digest", _WORD))
            for a in listed[:_ARTIFACTS]
        ],
        metrics=_finite(_mapping(result, "metrics") or {}),
    )


def _listed_metrics(listed: Any) -> dict[str, float]:
    """Kubeflow's list of names and values; values are numbers or their texts."""
    if listed is None:
        return {}
    if not isinstance(listed, list) or not all(isinstance(item, dict) and "name" in item for item in listed):
        raise ValueError("trainerStatus.metrics is not a list of names and values")
    return _finite({str(item["name"]): item.get("value") for item in listed})


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Figures that can be kept; others (no finite number, an odd name) are left out, because trainers send them."""
    kept: dict[str, float] = {}
    for name, value in values.items():
        if len(kept) == METRICS:
            break
        if isinstance(value, bool) or not isinstance(value, int | float | str) or not _METRIC_NAME.fullmatch(name):
            continue
        try:
            number = float(value)
        except (ValueError, OverflowError):
            continue
        if math.isfinite(number):
            kept[name] = number
    return kept


def _mapping(document: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    value = document.get(key)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{key} is not an object")
    return value


def _whole(values: Mapping[str, Any], key: str, *, limit: int = _LARGEST) -> int | None:
    """A number from 0 to `limit`, without its fraction."""
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} is not a number")
    if not 0 <= value <= limit:
        raise ValueError(f"{key} is not between 0 and {limit}")
    return int(value)


def _text(values: Mapping[str, Any], key: str, longest: int) -> str:
    value = values.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{key} is not a string")
    printable = "".join(c if c.isprintable() else " " for c in value[: 4 * longest])
    return " ".join(printable.split())[:longest]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
