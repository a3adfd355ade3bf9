"""Who shows how it is done: scripted controllers, trained policies, and the episodes that they play."""
