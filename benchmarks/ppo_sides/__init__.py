"""The sides of `ppo_vs_trl.py`, each a process of its own that speaks JSON lines (see `gate.py`)."""
