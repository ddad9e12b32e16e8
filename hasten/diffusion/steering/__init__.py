"""Drawing from densities that are made of a diffusion model's: annealed, multiplied, tilted by a reward."""
