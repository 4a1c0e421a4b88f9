"""The one schema: everything a user can write in a CamelPipeline file, and nothing that needs torch, ray or
transformers.
"""
