"""Claims of the probability paths."""
