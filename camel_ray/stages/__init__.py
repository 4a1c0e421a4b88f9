"""One module per stage kind, each with `run(context) -> list[Output]`; `contract.py` says what they are given and
give back.
"""
