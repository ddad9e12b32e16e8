"""Gradient and proximal-gradient methods."""
