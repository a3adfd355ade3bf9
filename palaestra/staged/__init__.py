"""Algorithms one after another, each beginning with what an earlier one learnt: recipes as files that people read."""

from palaestra.staged.running import known, read, stages

__all__ = ["known", "read", "stages"]
