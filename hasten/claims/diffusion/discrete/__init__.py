"""Claims of the samplers of masked models."""
