"""Environments: a user's class that the policy talks with, in processes that can be killed."""

from camel_ray.ppo.environment.client import Environments, Opening, Turn

__all__ = ["Environments", "Opening", "Turn"]
