"""Rollout engines: what writes the answers. Each is a role with `version`, `generate` and `load_weights`."""
