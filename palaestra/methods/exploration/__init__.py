"""How data is gathered: optimism, curiosity and other reasons to try what is not known yet."""
