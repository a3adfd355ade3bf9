"""Loops: how an algorithm meets its experience. Each is short enough to be read whole, and to be copied."""
