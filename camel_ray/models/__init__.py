"""Loading, building, saving and running language models, reward models and tokenizers."""
