"""What is learnt in which order: where episodes start, and which task they pose."""
