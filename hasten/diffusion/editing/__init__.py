"""Edits of images in the latent of a diffusion model."""
