"""What `evaluate` reads although nobody names it: on a machine with an empty mirror it has to be fetched before."""

from __future__ import annotations

from typing import Any

import pytest

from camel_ray.api.graph import looked_at

DATA = [{"name": "old", "data": {}}, {"name": "text", "data": {}}, {"name": "rows", "data": {}}]
BASE = {"name": "base", "needs": [], "pretrain": {"data": "text"}}
CHAT = {"name": "chat", "needs": ["base"], "sft": {"data": "rows"}}
TUNED = {"name": "tuned", "needs": ["chat"], "ppo": {"prompts": "rows"}}


@pytest.mark.parametrize(
    ("stages", "member", "found"),
    [
        ([BASE, CHAT, TUNED], {}, ["text", "chat"]),
        ([BASE, CHAT, TUNED], {"text": "rows", "baseline": "base"}, []),
        ([BASE, CHAT, TUNED], {"text": {"source": "x"}, "model": "chat"}, ["base"]),
        ([BASE, CHAT, TUNED], {"baseline": "org/hub", "model": {"source": "chat"}}, ["text"]),
        ([BASE, CHAT], {"model": "org/hub"}, ["text"]),
        ([BASE], {}, ["text"]),  # a model from scratch started from none
        ([{**BASE, "pretrain": {"data": {"source": "x"}}}], {}, []),
        ([BASE, {**CHAT, "sft": {"data": "rows", "model": {"source": "org/hub"}}}], {}, ["text"]),
        ([BASE, {"name": "more", "needs": ["base"], "pretrain": {"data": "old"}}], {}, ["old", "base"]),
        ([BASE, CHAT, {**TUNED, "needs": [], "ppo": {"prompts": "rows", "model": "base"}}], {}, ["text", "base"]),
    ],
)
def test_text_and_baseline_that_evaluate_takes_by_default(
    stages: list[dict[str, Any]], member: dict[str, Any], found: list[str]
) -> None:
    whole = [*DATA, *stages, {"name": "figures", "evaluate": member}]
    assert looked_at(whole, len(whole) - 1) == found
    assert looked_at(whole, len(whole) - 2) == []
