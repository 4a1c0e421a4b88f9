"""The small ppo stage."""

from __future__ import annotations

from ppo_stage import assert_same, plain, ppo

__all__ = ["assert_same", "plain", "ppo"]
