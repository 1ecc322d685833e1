"""A run as pages of a local server: look at it, ask it, review its labels."""
