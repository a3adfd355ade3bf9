"""Rewards of texts: verifiers, and rewards of anyone's by name."""
