"""Supervised training: Hugging Face and TRL trainers with DeepSpeed ZeRO, inside Ray Train workers."""
