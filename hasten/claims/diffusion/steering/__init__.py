"""Claims of the steering methods."""
