"""Diffusion of graphs: node features and adjacency noised together, denoised by a pair of scores."""
