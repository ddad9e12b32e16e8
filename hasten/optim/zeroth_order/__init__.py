"""Training from function values alone."""
