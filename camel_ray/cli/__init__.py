"""The command line: one file per group of commands. Nothing here imports torch, ray or transformers before it is
needed.
"""
