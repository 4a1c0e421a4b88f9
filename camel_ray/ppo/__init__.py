"""Reinforcement learning of a policy: role groups of Ray actors, ragged experience, DeepSpeed engines.

Read `loop.py` first: it is the whole algorithm. The mathematics (`advantages`, `kl`, `losses`, `importance`,
`token_rewards`) knows neither Ray nor DeepSpeed and works on flat tensors: N tokens of whole sequences, A action
tokens, B sequences.
"""
