"""`data`: read, clean, deduplicate and split rows once, for all stages that use them."""

from __future__ import annotations

from camel_ray.api.data import DataSpec


class DataStageSpec(DataSpec):
    """Read, clean, deduplicate and split rows. Makes a `dataset` artifact."""
