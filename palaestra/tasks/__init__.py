"""Which tasks are worth learning from."""
