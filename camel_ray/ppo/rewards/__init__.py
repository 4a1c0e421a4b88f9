"""Where scores come from: user functions, checks of answers, web services, and how they add up.

Read `sources.py` first: it is what a round of PPO calls. Nothing here knows Ray; the reward model's scores come in as a
callable. `process.py` and `child.py` run user code in a process that can be killed at any moment.
"""

from camel_ray.ppo.rewards.baseline import RewardBaseline
from camel_ray.ppo.rewards.score import Answered, Failure, Scores
from camel_ray.ppo.rewards.sources import RewardSources

__all__ = ["Answered", "Failure", "RewardBaseline", "RewardSources", "Scores"]
