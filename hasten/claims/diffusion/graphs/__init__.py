"""Claims of graph diffusion."""
