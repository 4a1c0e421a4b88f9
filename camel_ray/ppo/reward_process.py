"""The process a user's reward function runs in. Started by `reward_function.py` as a plain script; imports nothing of
ours.

Speaks JSON lines: a request {prompts, answers, rows}, a reply {scores} or {error}. What the function prints goes to
stderr, so it cannot get between the replies.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _load(path: Path, name: str) -> Callable[..., Any]:
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickle look their module up
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise AttributeError(f"it defines no function '{name}'")
    return function  # type: ignore[no-any-return]


def _call(function: Callable[..., Any], request: dict[str, Any]) -> dict[str, Any]:
    try:
        scores = function(request["prompts"], request["answers"], request["rows"])
        scores = scores.tolist() if hasattr(scores, "tolist") else list(scores)
        return {"scores": [None if score is None else float(score) for score in scores]}
    except Exception as error:
        return {"error": _describe(error)}


def _serve(path: Path, name: str, replies: TextIO) -> None:
    def reply(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=replies, flush=True)

    try:
        function = _load(path, name)
    except BaseException as error:
        reply({"error": _describe(error)})
        return
    reply({"ready": True})
    for line in sys.stdin:
        reply(_call(function, json.loads(line)))


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)
        _serve(Path(sys.argv[1]), sys.argv[2], channel)
