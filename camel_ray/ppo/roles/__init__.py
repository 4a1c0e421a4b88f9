"""The roles of a run. Each is a small class that lives in a `RoleHost` and works on the share of the experience its
rank was given; none knows where the others live.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_CLASSES = {
    "actor": ("actor", "Actor"),
    "critic": ("critic", "Critic"),
    "reference": ("reference", "Reference"),
    "reward": ("reward", "Reward"),
    "rollout": ("rollout", "Rollout"),
    "buffer": ("buffer", "Buffer"),
}


def role_class(role: str) -> type[Any]:
    """The class of a role. Imported when it is asked for: roles that do not train need no DeepSpeed, whose import
    takes seconds.
    """
    module, name = _CLASSES[role]
    found: type[Any] = getattr(import_module(f"{__name__}.{module}"), name)
    return found
