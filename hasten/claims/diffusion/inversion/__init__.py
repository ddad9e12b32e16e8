"""Claims of the methods that invert a sampler."""
