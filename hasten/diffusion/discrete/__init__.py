"""Samplers of masked diffusion models over discrete tokens."""
