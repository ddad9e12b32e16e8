"""Claims of the diffusion family."""
