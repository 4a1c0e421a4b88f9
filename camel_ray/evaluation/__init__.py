"""Figures about models and the report a person reads: text metrics, perplexity, judging by a reward model, HTML.

Nothing is imported here: the report must be writable on a machine without torch.
"""
