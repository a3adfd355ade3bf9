"""How experience is produced: a source of steps, how it is collected, and how a policy explores."""
