"""Methods of language models: what they learn from their own answers."""
