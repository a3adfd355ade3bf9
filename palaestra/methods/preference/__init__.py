"""Methods that learn from preferences and scores of texts that there are."""
