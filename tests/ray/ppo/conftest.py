"""The small ppo stage."""

from __future__ import annotations

from ppo_stage import assert_same, local_ray, plain, ppo

__all__ = ["assert_same", "local_ray", "plain", "ppo"]
