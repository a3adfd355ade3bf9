"""Text tasks: questions whose answers a program can judge, made without end and in a second."""
